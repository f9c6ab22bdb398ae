"""Take-down: rows of a job, and the samples that came of them, are forgotten everywhere the job holds them."""

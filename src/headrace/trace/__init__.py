"""From a batch back to the URL: what the steps of a run saw, and when a sample was seen."""

"""Models, objectives, the loop, checkpoints and probes. Stands on `headrace.pipeline`."""

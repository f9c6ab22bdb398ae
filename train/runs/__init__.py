"""The folder of a run: checkpoints, metrics, exported weights."""

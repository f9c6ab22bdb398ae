"""Processes, devices and number formats of a run."""

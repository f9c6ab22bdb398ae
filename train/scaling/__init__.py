"""Scaling laws of runs: collect them, fit, predict, and tell which over-fit."""

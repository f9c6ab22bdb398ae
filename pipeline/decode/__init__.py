"""Compressed images -> the pixels of a batch."""

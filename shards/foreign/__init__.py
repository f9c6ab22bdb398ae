"""Datasets of other people, read where they lie: found, indexed, iterated."""

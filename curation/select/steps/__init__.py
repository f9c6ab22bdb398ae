"""The steps of select, one a file."""

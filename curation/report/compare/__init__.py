"""Two datasets beside each other."""

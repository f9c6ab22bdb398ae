"""Model files with a name: which there are, where they lie on this machine, and getting them."""

"""Where each view of an image is cut and what is done to its colours, as a function of (seed, position, view)."""

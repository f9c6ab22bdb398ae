"""Where each view of an image is cut, as a function of (seed, position)."""

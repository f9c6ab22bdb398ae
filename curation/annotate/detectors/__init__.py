"""Detectors of faces and of other things to hide: pixels in, boxes out. They know no annotator and no recipe."""

"""Downstream tasks whose truth lies on the picture: reading what others have, packing it, judging what was trained."""

"""Objectives that compare views of a picture: MoCo v3, SimCLR, BYOL, SwAV. Each is one module of this folder."""

"""Objectives whose truth lies on the picture: a class of each pixel, boxes and masks of things."""

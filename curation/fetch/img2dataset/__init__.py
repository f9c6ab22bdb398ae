"""For those who come from img2dataset: its flags as a recipe, and itself as the part that asks for URLs."""

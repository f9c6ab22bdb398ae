"""What the coefficients of a picture tell of how it was saved."""

"""Quantiles of Student's t, which few runs need in place of the normal ones."""

import math

HALVINGS = 80


def student_quantile(share: float, freedom: int) -> float:
    """Return t of which `share` (0.5..1) lies below, for whole degrees of freedom of 1 and more.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4: for whole degrees the distribution is a finite sum.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < 2 * share - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _between(angle: float, freedom: int) -> float:
    """Return the share between -t and t where t = sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total

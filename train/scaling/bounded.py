"""Least squares of y = factors x terms + c in which no factor and no constant lies below zero, at many places at once.

A law is linear in these once its exponents are given; a place is one choice of them. Under such bounds the best is that
of the unbounded ones over each set of factors that are not zero.
"""

# G places, M points, K terms, J of them that are not zero

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Solved:
    """The unbounded best by some of the terms; the constant is apart, so that nearly constant terms stay sound."""

    moving: list[int]
    constant: bool
    slopes: Floats
    """[G, J]."""
    centre: Floats
    """[G, J]: the mean of each term, zero where there is no constant."""
    inverse: Floats
    """[G, J, J]: of the normal equations of the centred terms."""
    middle: float
    """The mean of y, zero where there is no constant."""

    def factors(self, num_terms: int) -> Floats:
        """Return the factors [G, K + 1], the constant last."""
        found = np.zeros((len(self.slopes), num_terms + 1))
        found[:, self.moving] = self.slopes
        if self.constant:
            found[:, -1] = self.middle - (self.centre * self.slopes).sum(axis=1)
        return found


def best_factors(terms: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the factors [G, K + 1], the constant last, and what they leave of `y` [G, M], for terms [G, M, K]."""
    num_places, num_points, num_terms = terms.shape
    best = np.full(num_places, np.inf)
    factors, left = np.zeros((num_places, num_terms + 1)), np.zeros((num_places, num_points))
    for solved in _all(terms, y):
        given = solved.factors(num_terms)
        residuals = _residuals(terms, y, given)
        errors = (residuals**2).sum(axis=1)
        better = (given >= 0).all(axis=1) & (errors < best)
        best = np.where(better, errors, best)
        factors, left = np.where(better[:, None], given, factors), np.where(better[:, None], residuals, left)
    return factors, left


def span(terms: Floats, y: Floats, *, weights: Floats, limit: float, new_point: bool) -> tuple[Floats, Floats]:
    """Return the least and the greatest [G] of weights x (factors, constant) with a squared error of at most `limit`.

    `weights` [G, K + 1] are none below zero. `new_point`: of one more point, whose own error counts in the limit.
    Where no factors at all stay under the limit it is inf and -inf. The set is convex, so its ends lie where the
    unbounded ones of some set of factors do, if these are not below zero there.
    """
    num_points, num_terms = terms.shape[1:]
    lowest, highest = np.full(len(terms), np.inf), np.full(len(terms), -np.inf)
    for solved in _all(terms, y):
        given = solved.factors(num_terms)
        spare = limit - (_residuals(terms, y, given) ** 2).sum(axis=1)
        pull = weights[:, solved.moving] - weights[:, -1:] * solved.centre
        turn = np.einsum("gjk,gk->gj", solved.inverse, pull)
        spread = (pull * turn).sum(axis=1) + (weights[:, -1] ** 2 / num_points if solved.constant else 0.0)
        error = spread + 1.0 if new_point else np.where(spread > 0, spread, np.inf)
        move = np.sqrt(np.maximum(spare, 0.0) / error)
        for sign in (-1.0, 1.0):
            moved = given.copy()
            moved[:, solved.moving] += sign * move[:, None] * turn
            if solved.constant:
                shift = weights[:, -1] / num_points - (solved.centre * turn).sum(axis=1)
                moved[:, -1] += sign * move * shift
            value = (weights * moved).sum(axis=1) + (sign * move if new_point else 0.0)
            sound = (spare >= 0) & (moved >= 0).all(axis=1)
            lowest = np.where(sound, np.minimum(lowest, value), lowest)
            highest = np.where(sound, np.maximum(highest, value), highest)
    return lowest, highest


def _all(terms: Floats, y: Floats) -> Iterator[_Solved]:
    num_terms = terms.shape[-1]
    for mask in range(1 << (num_terms + 1)):
        yield _solve(terms, y, [term for term in range(num_terms) if mask >> term & 1], bool(mask >> num_terms))


def _solve(terms: Floats, y: Floats, moving: list[int], constant: bool) -> _Solved:
    part = terms[..., moving]
    scale = np.sqrt((part**2).mean(axis=1))
    centre = part.mean(axis=1) if constant else np.zeros_like(scale)
    middle = float(y.mean()) if constant else 0.0
    free = (part - centre[:, None]) / scale[:, None]
    gram = np.einsum("gmj,gmk->gjk", free, free) + 1e-14 * len(y) * np.eye(len(moving))
    inverse = np.linalg.inv(gram) / (scale[:, :, None] * scale[:, None, :])
    slopes = np.einsum("gjk,gmk,m->gj", inverse, part - centre[:, None], y - middle)
    return _Solved(moving=moving, constant=constant, slopes=slopes, centre=centre, inverse=inverse, middle=middle)


def _residuals(terms: Floats, y: Floats, factors: Floats) -> Floats:
    return np.asarray(y - np.einsum("gmk,gk->gm", terms, factors[:, :-1]) - factors[:, -1:])

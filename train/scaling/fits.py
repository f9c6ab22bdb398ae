"""Fits of scaling laws by least squares, with intervals by profile likelihood.

Every law is linear in all but one or two of its numbers. So those are searched on a grid that closes in on the best
point, and the others follow exactly, none of them below zero. That finds the same fit from any start, and needs none.

The laws: L = a N^-b + c and E = a (C + d)^-b + c (Scaling Vision Transformers, arXiv:2106.04560, section 2.2), and
L = a N^-b + e D^-f + c (Chinchilla, arXiv:2203.15556, section 3.3).
"""

# M points, G places of the grid, K terms with a factor each

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.train.scaling.bounded import Floats, best_factors, span
from headrace.train.scaling.student import student_quantile

LEVELS = 14
"""How often the grid closes in."""
SHRINK = 0.4
GRID = (129, 33)
"""Places along an axis where one number is searched for, and where two are."""
MARGIN = 3
"""Places that are kept on each side of what an interval is looked for in: a ridge may end in a point between them."""
FINER = 4
"""So much closer lie the places that intervals are told by. One place of margin and none closer cut a fifth off."""
WITHIN = 0.975
"""The quantile of Student's t for an interval of 95 %."""
EXPONENTS = (1e-3, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """The form of a law."""

    name: str
    formula: str
    variables: tuple[str, ...]
    """What it is a function of, in the order of its columns."""
    factors: tuple[str, ...]
    """Names of what multiplies the terms; the constant c is besides."""
    searched: tuple[str, ...]
    """Names of what is searched for."""
    ranges: Callable[[Floats], list[tuple[float, float]]]
    """Returns where to search, for values of the variables [M, V] with geometric mean 1."""
    terms: Callable[[Floats, Floats], Floats]
    """Returns the terms [G, M, K] of values [M, V] at places [G, S]."""
    rescale: Callable[[dict[str, Floats], Floats], dict[str, Floats]]
    """Returns the numbers for variables in their own units, of which the given are the geometric means."""

    @property
    def num_numbers(self) -> int:
        """Numbers that a fit determines."""
        return len(self.factors) + len(self.searched) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Where a number lies in 95 % of cases."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """Every place whose law leaves little enough of the points to be true in 95 % of cases."""

    x: Floats
    """[M, V], divided by their geometric means."""
    means: Floats
    """[V]."""
    y: Floats
    limit: float
    """The greatest sum of squares that is little enough."""
    places: Floats
    """[G, S]: what is searched for, not its logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A law with its numbers."""

    law: Law
    numbers: dict[str, float]
    intervals: dict[str, Interval]
    """Empty where there are no more points than numbers."""
    rmse: float
    """Root mean square of what the points differ from the law, in their unit."""
    points: int
    profile: Profile | None = None
    """None where there are no more points than numbers."""

    @property
    def undetermined(self) -> str:
        """Why the points do not determine the law; '' where they do."""
        for name in (name for name in self.law.searched if name != "d"):
            span = self.intervals.get(name, Interval(low=self.numbers[name], high=self.numbers[name]))
            if span.low < 1.01 * EXPONENTS[0] or span.high > 0.99 * EXPONENTS[1]:
                return f"the exponent {name} may be anything from {span.low:.3g} to {span.high:.3g}"
        missing = [name for name in self.law.factors if not self.numbers[name]]
        return f"{missing[0]} is zero: that term explains nothing" if missing else ""

    def at(self, *values: float) -> float:
        """Return what the law says."""
        searched = np.asarray([[self.numbers[name] for name in self.law.searched]])
        terms = self.law.terms(np.asarray([values], np.float64), searched)[0, 0]
        return float(terms @ [self.numbers[name] for name in self.law.factors] + self.numbers["c"])

    def interval_at(self, *values: float) -> Interval | None:
        """Return where a new run lies in 95 % of cases; None where points are no more than numbers."""
        known = self.profile
        if known is None:
            return None
        at = self.law.terms(np.asarray([values], np.float64) / known.means, known.places)[:, 0]
        return _span(self.law, known, np.concatenate([at, np.ones((len(at), 1))], axis=1), new_point=True)


def fit(law: Law, x: Floats, y: Floats) -> Fit:
    """Fit `law` to points: `x` [M, V], all above zero, and `y` [M].

    The intervals are those of the profile likelihood, with Student's t for M - numbers degrees of freedom: whatever is
    said by a law whose sum of squares is at most (1 + t^2 / (M - numbers)) times the least. For a new run its own
    square is in the sum. For a law that is linear in all its numbers these are the textbook's intervals.
    Raises ValueError for too few points and for values that a law cannot take.
    """
    x, y = np.asarray(x, np.float64).reshape(len(y), -1), np.asarray(y, np.float64)
    _check(law, x, y)
    means = np.exp(np.log(x).mean(axis=0))
    scaled = x / means
    place, factors, residuals = _search(law, scaled, y)
    numbers = law.rescale(dict(zip((*law.factors, "c", *law.searched), (*factors, *place), strict=True)), means)
    least, spare = float((residuals**2).sum()), len(y) - law.num_numbers
    profile = None
    if spare > 0:
        limit = least * (1 + student_quantile(WITHIN, spare) ** 2 / spare)
        profile = Profile(x=scaled, means=means, y=y, limit=limit, places=_allowed(law, scaled, y, place, limit))
    return Fit(
        law=law,
        numbers={name: float(value) for name, value in numbers.items()},
        intervals={} if profile is None else _intervals(law, profile),
        rmse=math.sqrt(least / len(y)),
        points=len(y),
        profile=profile,
    )


def _check(law: Law, x: Floats, y: Floats) -> None:
    if len(y) < law.num_numbers:
        raise ValueError(f"{law.name}: {law.num_numbers} numbers need as many points, got {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all()):
        raise ValueError(f"{law.name}: every value must be finite, and {', '.join(law.variables)} above zero")
    for name, column in zip(law.variables, x.T, strict=True):
        if len(np.unique(column)) < 2:
            raise ValueError(f"{law.name}: {name} is {column[0]:g} at every point; nothing follows from that")


def _search(law: Law, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the best place [S], its factors with the constant [K + 1], and what they leave of the points [M]."""
    low, high = np.log(np.asarray(law.ranges(x))).T
    middle, half = (low + high) / 2, (high - low) / 2
    best = (math.inf, middle)
    for _ in range(LEVELS):
        places = _grid(np.maximum(middle - half, low), np.minimum(middle + half, high))
        errors = _errors(law, x, y, places)
        at = int(np.argmin(errors))
        best = min(best, (float(errors[at]), places[at]), key=lambda one: one[0])
        middle, half = best[1], half * SHRINK
    place = np.exp(best[1])
    factors, left = best_factors(law.terms(x, place[None]), y)
    return place, factors[0], left[0]


def _allowed(law: Law, x: Floats, y: Floats, best: Floats, limit: float) -> Floats:
    """Return the places [G, S] that leave a sum of squares of at most `limit`, by a grid that closes in on them."""
    bottom, top = np.log(np.asarray(law.ranges(x))).T
    low, high = bottom, top
    for _ in range(LEVELS):
        places = np.concatenate([np.log(best)[None], _grid(low, high)])
        inside = places[_errors(law, x, y, places) <= limit]
        inside = inside if len(inside) else places[:1]
        margin = MARGIN * (high - low) / (GRID[len(low) - 1] - 1)
        wide = (np.ptp(inside, axis=0) >= (high - low) / 2).all()
        low, high = (
            np.maximum(inside.min(axis=0) - margin, bottom),
            np.minimum(inside.max(axis=0) + margin, top),
        )
        if wide:
            break
    places = np.concatenate([np.log(best)[None], _grid(low, high, finer=FINER)])
    inside = places[_errors(law, x, y, places) <= limit]
    allowed: Floats = np.exp(inside if len(inside) else places[:1])
    return allowed


def _grid(low: Floats, high: Floats, *, finer: int = 1) -> Floats:
    num_places = finer * (GRID[len(low) - 1] - 1) + 1
    axes = [np.linspace(*ends, num_places) for ends in zip(low, high, strict=True)]
    places: Floats = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    return places


def _errors(law: Law, x: Floats, y: Floats, places: Floats) -> Floats:
    """Return the least sum of squares at each place, of which the logarithms are given."""
    errors: Floats = (best_factors(law.terms(x, np.exp(places)), y)[1] ** 2).sum(axis=1)
    return errors


def _intervals(law: Law, profile: Profile) -> dict[str, Interval]:
    """Return where each number lies, in its own unit."""
    ones = np.ones(len(profile.places))
    numbers = dict.fromkeys((*law.factors, "c"), ones) | dict(zip(law.searched, profile.places.T, strict=True))
    units = law.rescale(numbers, profile.means)
    found = {}
    for index, name in enumerate((*law.factors, "c")):
        weights = np.zeros((len(ones), len(law.factors) + 1))
        weights[:, index] = units[name]
        found[name] = _span(law, profile, weights, new_point=False)
    return found | {n: Interval(low=float(units[n].min()), high=float(units[n].max())) for n in law.searched}


def _span(law: Law, profile: Profile, weights: Floats, *, new_point: bool) -> Interval:
    terms = law.terms(profile.x, profile.places)
    # The best fit's own rounding must not put it beyond its limit.
    limit = max(profile.limit, float((best_factors(terms, profile.y)[1] ** 2).sum(axis=1).min()) * (1 + 1e-9))
    low, high = span(terms, profile.y, weights=weights, limit=limit, new_point=new_point)
    return Interval(low=float(low.min()), high=float(high.max()))


def _power_terms(x: Floats, at: Floats) -> Floats:
    return np.exp(-at[:, :1] * np.log(x[:, 0]))[..., None]


def _shifted_terms(x: Floats, at: Floats) -> Floats:
    return np.exp(-at[:, :1] * np.log(x[:, 0] + at[:, 1:]))[..., None]


def _joint_terms(x: Floats, at: Floats) -> Floats:
    return np.exp(-at[:, None, :] * np.log(x)[None])


def _power_in_units(numbers: dict[str, Floats], means: Floats) -> dict[str, Floats]:
    return numbers | {"a": numbers["a"] * means[0] ** numbers["b"]}


def _shifted_in_units(numbers: dict[str, Floats], means: Floats) -> dict[str, Floats]:
    return _power_in_units(numbers, means) | {"d": numbers["d"] * means[0]}


def _joint_in_units(numbers: dict[str, Floats], means: Floats) -> dict[str, Floats]:
    return _power_in_units(numbers, means) | {"e": numbers["e"] * means[1] ** numbers["f"]}


POWER = Law(
    name="power",
    formula="a x^-b + c",
    variables=("x",),
    factors=("a",),
    searched=("b",),
    ranges=lambda _: [EXPONENTS],
    terms=_power_terms,
    rescale=_power_in_units,
)
SHIFTED = Law(
    name="shifted power",
    formula="a (x + d)^-b + c",
    variables=("x",),
    factors=("a",),
    searched=("b", "d"),
    # A shift far below the least value is none.
    ranges=lambda x: [EXPONENTS, (1e-4 * float(x.min()), 10 * float(x.max()))],
    terms=_shifted_terms,
    rescale=_shifted_in_units,
)
JOINT = Law(
    name="joint power",
    formula="a x^-b + e y^-f + c",
    variables=("x", "y"),
    factors=("a", "e"),
    searched=("b", "f"),
    ranges=lambda _: [EXPONENTS, EXPONENTS],
    terms=_joint_terms,
    rescale=_joint_in_units,
)

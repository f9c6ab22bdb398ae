"""The size that is best for a given number of operations, as approach 2 of arXiv:2203.15556, section 3.2.

Runs of about as many operations are put together; a parabola in log N through their losses has its lowest point at the
best size, and a line through those points in log-log says how the best size grows with operations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.train.scaling.bounded import Floats
from headrace.train.scaling.collect import RunRow
from headrace.train.scaling.fits import WITHIN, Interval
from headrace.train.scaling.setting import told_apart
from headrace.train.scaling.student import student_quantile

SAME = 1.25
"""Runs whose operations differ by at most this factor are compared as if they had the same."""
LEAST_SIZES = 3
SHOWN = 3
"""Runs, and kinds of runs, that a note names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The best size at one number of operations."""

    flops: float
    parameters: float
    loss: float
    runs: tuple[str, ...]
    among: str
    """The setting and the number of samples that its runs have in common, for people."""
    inside: bool
    """False: it lies beyond the sizes that were tried, so it is a guess."""
    interval: Interval | None = None
    """Where the best size lies in 95 % of cases; None for three runs, and where it may be any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """parameters = factor x flops ^ exponent."""

    factor: float
    exponent: float
    among: str
    """What the runs behind it have in common, as `Optimum.among`."""


def optima(rows: Sequence[RunRow]) -> tuple[list[Optimum], list[str]]:
    """Return the best sizes, by rising operations, and for people which runs have equal operations but not all else.

    Runs without sizes, operations or losses are passed over. Those of other objectives, settings or numbers of samples
    are never on one parabola.
    """
    known = [row for row in rows if row.flops and row.parameters and row.validation_loss is not None]
    told = told_apart([row.setting for row in known])
    found, notes = [], []
    for group in _equal_flops(known):
        alike: dict[tuple[str, str, int | None], list[RunRow]] = {}
        for row in group:
            alike.setdefault((row.objective, row.setting, row.samples), []).append(row)
        best = [_optimum(rows, _among(told[setting], samples)) for (_, setting, samples), rows in alike.items()]
        found += [one for one in best if one is not None]
        if not any(best) and len({row.parameters for row in group}) >= LEAST_SIZES and len(alike) > 1:
            notes.append(_mixed(alike))
    return found, notes


def _equal_flops(rows: Sequence[RunRow]) -> list[list[RunRow]]:
    groups: list[list[RunRow]] = []
    for row in sorted(rows, key=lambda row: row.flops or 0.0):
        if groups and (row.flops or 0.0) <= SAME * (groups[-1][0].flops or 0.0):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _mixed(alike: Mapping[tuple[str, str, int | None], Sequence[RunRow]]) -> str:
    told = told_apart([setting for _, setting, _ in alike])
    parts = [
        f"{', '.join(row.name for row in rows[:SHOWN])}{', ...' if len(rows) > SHOWN else ''} ("
        + ", ".join(filter(None, (objective, _among(told[setting], samples))))
        + ")"
        for (objective, setting, samples), rows in list(alike.items())[:SHOWN]
    ]
    flops = next(iter(alike.values()))[0].flops
    return (
        f"best size at {flops:.2g} FLOPs: {LEAST_SIZES} sizes that differ in size alone are needed; not put together: "
        + " and ".join(parts)
    )


def _among(setting: str, samples: int | None) -> str:
    return ", ".join(filter(None, (setting, f"{samples:,} samples" if samples else "")))


def _optimum(rows: Sequence[RunRow], among: str) -> Optimum | None:
    sizes = np.log([float(row.parameters or 0) for row in rows])
    losses = np.array([row.validation_loss for row in rows], np.float64)
    if len(np.unique(sizes)) < LEAST_SIZES:
        return None
    middle = sizes.mean()
    curve, slope, level = np.polyfit(sizes - middle, losses, 2)
    if curve <= 0:
        return None  # without a lowest point: the best size is not among, nor near, those that were tried
    place = -slope / (2 * curve)
    return Optimum(
        flops=float(np.exp(np.mean(np.log([row.flops or 1.0 for row in rows])))),
        parameters=math.exp(min(place + middle, 700.0)),
        loss=float(level - slope**2 / (4 * curve)),
        runs=tuple(row.name for row in rows),
        among=among,
        inside=bool(sizes.min() <= place + middle <= sizes.max()),
        interval=_interval(sizes - middle, losses, middle),
    )


def _interval(x: Floats, losses: Floats, middle: float) -> Interval | None:
    """Return the sizes at which the slope of a parabola may be zero: Fieller's theorem with Student's t.

    The slope at v is linear in the coefficients, so it is held against its own error; that is a quadratic in v.
    """
    columns = np.stack([x**2, x, np.ones_like(x)], axis=1)
    spare = len(x) - columns.shape[1]
    if spare < 1:
        return None
    coefficients = np.linalg.lstsq(columns, losses, rcond=None)[0]
    noise = ((losses - columns @ coefficients) ** 2).sum() / spare * student_quantile(WITHIN, spare) ** 2
    error = np.linalg.inv(columns.T @ columns)[:2, :2] * noise
    (curve, slope), ((of_curve, of_both), (_, of_slope)) = coefficients[:2], error
    square, linear, level = 4 * (curve**2 - of_curve), 4 * (slope * curve - of_both), slope**2 - of_slope
    if square <= 0:
        return None  # the parabola may as well be a line
    root = max(0.0, linear**2 - 4 * square * level)  # below zero by rounding alone: the estimate lies within
    low, high = ((-linear + sign * math.sqrt(root)) / (2 * square) + middle for sign in (-1, 1))
    return Interval(low=math.exp(min(low, 700.0)), high=math.exp(min(high, 700.0)))


def growth(found: Sequence[Optimum]) -> Growth | None:
    """Return how the best size grows with operations, of the runs that have in common what most optima have.

    None for fewer than two such optima inside of what was tried.
    """
    kinds: dict[str, list[Optimum]] = {}
    for one in found:
        if one.inside:
            kinds.setdefault(one.among, []).append(one)
    inside = max(kinds.values(), key=len, default=[])
    if len(inside) < 2:
        return None
    exponent, level = np.polyfit(np.log([one.flops for one in inside]), np.log([one.parameters for one in inside]), 1)
    return Growth(factor=float(np.exp(level)), exponent=float(exponent), among=inside[0].among)

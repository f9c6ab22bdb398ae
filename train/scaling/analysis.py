"""What a set of runs says of scaling: laws, predictions, correlations, verdicts; as data that a page or JSON shows.

Runs of different objectives are never put together: their losses have nothing to do with each other.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.train.scaling.bounded import Floats
from headrace.train.scaling.collect import RunRow
from headrace.train.scaling.correlation import pearson, spearman
from headrace.train.scaling.fits import JOINT, POWER, SHIFTED, Fit, Interval, Law, fit
from headrace.train.scaling.isoflop import Growth, Optimum, growth, optima
from headrace.train.scaling.overfitting import Verdict, judge
from headrace.train.scaling.setting import told_apart

Value = Callable[[RunRow], float | int | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """A law that was fitted to some of the runs."""

    title: str
    """For example `validation loss by parameters`."""
    y_name: str
    x_names: tuple[str, ...]
    held_equal: str
    """What the runs have in common, for people."""
    runs: tuple[str, ...]
    x: tuple[tuple[float, ...], ...]
    y: tuple[float, ...]
    fit: Fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the other runs say of one that was held out."""

    run: str
    law: str
    predicted: float
    interval: Interval | None
    measured: float
    undetermined: str = ""
    """Why the other runs do not determine the law; '' where they do."""

    @property
    def missed_by(self) -> float:
        """Predicted less measured."""
        return self.predicted - self.measured

    @property
    def inside(self) -> bool | None:
        """True if what was measured lies within the interval."""
        return None if self.interval is None else self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """Validation loss against accuracy."""

    of: str
    runs: int
    pearson: float
    spearman: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """What the runs of one objective say."""

    objective: str
    rows: tuple[RunRow, ...]
    verdicts: dict[str, Verdict]
    laws: tuple[FittedLaw, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    optima: tuple[Optimum, ...] = ()
    growth: Growth | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    """What could not be fitted, and why."""


# A law with what it is of: one variable by another, among runs that have the third and fourth in common.
_LOSS: tuple[str, Value] = ("validation loss", lambda row: row.validation_loss)
_ERROR: tuple[str, Value] = ("error", lambda row: row.error)
_PARAMETERS: tuple[str, Value] = ("parameters", lambda row: row.parameters)
_SAMPLES: tuple[str, Value] = ("samples", lambda row: row.samples)
_IMAGES: tuple[str, Value] = ("images", lambda row: row.images)
_FLOPS: tuple[str, Value] = ("FLOPs", lambda row: row.flops)

_PLANS: tuple[tuple[Law, tuple[str, Value], tuple[tuple[str, Value], ...], tuple[tuple[str, Value], ...]], ...] = (
    (POWER, _LOSS, (_PARAMETERS,), (_SAMPLES, _IMAGES)),
    (POWER, _LOSS, (_SAMPLES,), (_PARAMETERS, _IMAGES)),
    (JOINT, _LOSS, (_PARAMETERS, _SAMPLES), (_IMAGES,)),
    (JOINT, _LOSS, (_PARAMETERS, _IMAGES), (_SAMPLES,)),
)


def analyse(rows: Sequence[RunRow], *, hold_out: str = "") -> list[Analysis]:
    """Return an analysis for each objective among the runs.

    `hold_out` names the run that the others are to predict; '' = of each objective the one with the most operations, or
    parameters and images. Raises ValueError if no run is called that.
    """
    names = [row.name for row in rows]
    if hold_out and hold_out not in names:
        raise ValueError(f"no run is called {hold_out!r}; there are {', '.join(names[:20])}")
    return [
        _analyse_one(objective, [row for row in rows if row.objective == objective], hold_out)
        for objective in dict.fromkeys(row.objective for row in rows)
    ]


def _analyse_one(objective: str, rows: Sequence[RunRow], hold_out: str) -> Analysis:
    notes: list[str] = []
    verdicts = judge(rows)
    best, mixed = optima(rows)
    return Analysis(
        objective=objective,
        rows=tuple(rows),
        verdicts=verdicts,
        laws=tuple(_laws(rows, notes)),
        predictions=tuple(_predictions(rows, hold_out, notes)),
        correlations=tuple(_correlations(rows, verdicts)),
        optima=tuple(best),
        growth=growth(best),
        notes=tuple(dict.fromkeys([*notes, *mixed])),
    )


def _laws(rows: Sequence[RunRow], notes: list[str]) -> Iterator[FittedLaw]:
    without = sum(row.validation_loss is None for row in rows)
    if without:
        notes.append(f"{without} of {len(rows)} runs have no validation loss and are in no law of it")
    for law, y, x, equal in _PLANS:
        found = list(_fits(rows, law, y, x, equal))
        if not found:
            notes.append(
                f"{_title(y, x)}: no {law.num_numbers + 1} runs that differ in {' and '.join(n for n, _ in x)} alone"
            )
        yield from found
    settings = told_apart([row.setting for row in rows])
    for y, setting in itertools.product((_LOSS, _ERROR), settings):
        frontier = _frontier([row for row in rows if row.setting == setting], y)
        points = np.array([[row.flops] for row in frontier], np.float64)
        told = ", ".join(filter(None, (settings[setting], "the best for their FLOPs")))
        if len(frontier) > SHIFTED.num_numbers:
            yield _fitted(frontier, SHIFTED, y, (_FLOPS,), told, points)
        elif frontier:
            among = f" ({settings[setting]})" if settings[setting] else ""
            notes.append(
                f"{y[0]} by FLOPs{among}: {len(frontier)} runs at the frontier, {SHIFTED.num_numbers + 1} are needed"
            )


def _fits(
    rows: Sequence[RunRow],
    law: Law,
    y: tuple[str, Value],
    x: tuple[tuple[str, Value], ...],
    equal: tuple[tuple[str, Value], ...],
) -> Iterator[FittedLaw]:
    """Yield a fit for each set of runs with one setting and `equal` in common, more than the law has numbers."""
    groups: dict[tuple[str, tuple[float | int | None, ...]], list[RunRow]] = {}
    settings = told_apart([row.setting for row in rows])
    for row in rows:
        if y[1](row) is not None and all(value(row) for _, value in x):
            groups.setdefault((row.setting, tuple(value(row) for _, value in equal)), []).append(row)
    for (setting, common), group in groups.items():
        points = np.array([[value(row) for _, value in x] for row in group], np.float64)
        # As many different values as a curve through them needs; for one of two variables two are enough.
        needed = law.num_numbers if len(x) == 1 else 2
        if len(group) <= law.num_numbers or min(len(np.unique(column)) for column in points.T) < needed:
            continue
        told = [f"{name} {value:,}" for (name, _), value in zip(equal, common, strict=True) if value]
        yield _fitted(group, law, y, x, ", ".join(filter(None, (*told, settings[setting]))), points)


def _fitted(
    rows: Sequence[RunRow],
    law: Law,
    y: tuple[str, Value],
    x: tuple[tuple[str, Value], ...],
    held_equal: str,
    points: Floats,
) -> FittedLaw:
    values = np.array([y[1](row) for row in rows], np.float64)
    return FittedLaw(
        title=_title(y, x),
        y_name=y[0],
        x_names=tuple(name for name, _ in x),
        held_equal=held_equal,
        runs=tuple(row.name for row in rows),
        x=tuple(map(tuple, points.tolist())),
        y=tuple(values.tolist()),
        fit=fit(law, points, values),
    )


def _title(y: tuple[str, Value], x: tuple[tuple[str, Value], ...]) -> str:
    return f"{y[0]} by {' and '.join(name for name, _ in x)}"


def _frontier(rows: Sequence[RunRow], y: tuple[str, Value]) -> list[RunRow]:
    """Return the runs that none beats with as few operations, by rising operations."""
    known = [row for row in rows if row.flops and y[1](row) is not None]
    best, found = math.inf, []
    for row in sorted(known, key=lambda row: (row.flops or 0.0, y[1](row) or 0.0)):
        value = y[1](row)
        if value is not None and value < best:
            best = value
            found.append(row)
    return found


def _predictions(rows: Sequence[RunRow], hold_out: str, notes: list[str]) -> Iterator[Prediction]:
    known = [row for row in rows if row.validation_loss is not None and row.parameters]
    if hold_out and hold_out not in [row.name for row in known]:
        if hold_out in [row.name for row in rows]:
            notes.append(f"{hold_out} cannot be held out: its validation loss or its parameters are not known")
        return
    if not known:
        return
    held = next((row for row in known if row.name == hold_out), None) or max(known, key=_amount)
    others = [row for row in rows if row.name != held.name]
    said = False
    for law, y, x, equal in _PLANS:
        values = [value(held) for _, value in x]
        alike = [
            row
            for row in others
            if row.setting == held.setting and all(value(row) == value(held) for _, value in equal)
        ]
        for found in _fits(alike, law, y, x, equal) if all(values) else ():
            said = True
            at = [float(value) for value in values if value is not None]
            yield Prediction(
                run=held.name,
                law=f"{found.title} ({found.held_equal})" if found.held_equal else found.title,
                predicted=found.fit.at(*at),
                interval=found.fit.interval_at(*at),
                measured=held.validation_loss or 0.0,
                undetermined=found.fit.undetermined,
            )
    if not said:
        notes.append(f"{held.name} cannot be predicted: too few other runs for any law")


def _amount(row: RunRow) -> tuple[float, float, float]:
    return (row.flops or 0.0, row.parameters or 0.0, float((row.images or 0) * (row.samples or 0)))


def _correlations(rows: Sequence[RunRow], verdicts: dict[str, Verdict]) -> Iterator[Correlation]:
    known = [row for row in rows if row.validation_loss is not None and row.accuracy is not None]
    sound = [row for row in known if verdicts[row.name].word != "over-fits"]
    for name, chosen in (("all runs", known), ("runs that do not over-fit", sound)):
        if len(chosen) > 2 and (chosen is known or len(sound) < len(known)):
            losses = np.array([row.validation_loss for row in chosen], np.float64)
            accuracies = np.array([row.accuracy for row in chosen], np.float64)
            yield Correlation(
                of=name, runs=len(chosen), pearson=pearson(losses, accuracies), spearman=spearman(losses, accuracies)
            )

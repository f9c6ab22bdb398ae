"""One page of what runs say of scaling: a table of the runs with verdicts, and each law over its points."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from headrace.page.html import Html, Page, Value, columns, details, facts, paragraph, table
from headrace.page.scatter import Series, scatter_chart
from headrace.train.scaling.analysis import Analysis, FittedLaw
from headrace.train.scaling.fits import Fit, Interval
from headrace.train.scaling.isoflop import Growth

MAX_CURVES = 20
CURVE_POINTS = 60


def render(analyses: Sequence[Analysis], *, title: str) -> bytes:
    """Return the page."""
    num_runs = sum(len(one.rows) for one in analyses)
    page = Page(title=title, subtitle=f"{num_runs} runs")
    for one in analyses:
        of = f" ({one.objective})" if len(analyses) > 1 and one.objective else ""
        for name, blocks in _sections(one):
            page.section(f"{name}{of}", *blocks)
    return page.render()


def _sections(one: Analysis) -> Iterator[tuple[str, list[Html]]]:
    words = [verdict.word for verdict in one.verdicts.values()]
    counted = [("runs", len(one.rows)), *((word, words.count(word)) for word in dict.fromkeys(words))]
    yield "Verdicts", [facts(counted)]
    if curves := [row for row in one.rows if len(row.curve) > 1]:
        series = [Series(name=row.name, curve=[(float(s), v) for s, v in row.curve]) for row in curves[:MAX_CURVES]]
        more = [paragraph(f"The first {MAX_CURVES} of {len(curves)} runs.")] if len(curves) > MAX_CURVES else []
        yield "Validation loss by step", [scatter_chart(series, x_label="step", y_label="validation loss"), *more]
    if sized := [row for row in one.rows if row.train_loss is not None and row.validation_loss is not None]:
        points = [(row.train_loss or 0.0, row.validation_loss or 0.0, row.name) for row in sized]
        low, high = min(p[0] for p in points), max(p[0] for p in points)
        chart = scatter_chart(
            [Series(name="runs", points=points), Series(name="equal", curve=[(low, low), (high, high)])],
            x_label="training loss",
            y_label="validation loss",
        )
        yield (
            "Training and validation loss",
            [chart, paragraph("Far above the line: it knows its images by heart.")],
        )
    yield "Laws", [*_laws(one), *([paragraph("; ".join(one.notes) + ".")] if one.notes else [])]
    if one.predictions:
        yield "A run that was held out", [_predictions(one)]
    if one.optima:
        yield "Best size for the same operations", [_optima(one)]
    if one.correlations:
        told = ((row.validation_loss, row.accuracy, row.name) for row in one.rows)
        known = [(x, y, name) for x, y, name in told if x is not None and y is not None]
        chart = scatter_chart([Series(name="runs", points=known)], x_label="validation loss", y_label="accuracy")
        rows = [[each.of, each.runs, _short(each.pearson), _short(each.spearman)] for each in one.correlations]
        head = ("among", "runs", "Pearson", "Spearman")
        yield "Validation loss and accuracy", [columns(chart, table(head, rows))]
    yield "Runs", [_runs(one)]


def _runs(one: Analysis) -> Html:
    cells: dict[str, list[Value]] = {
        "run": [row.name for row in one.rows],
        "verdict": [one.verdicts[row.name].word for row in one.rows],
        "why": [one.verdicts[row.name].why for row in one.rows],
        "parameters": [row.parameters for row in one.rows],
        "samples": [row.samples for row in one.rows],
        "steps": [row.steps for row in one.rows],
        "images": [row.images for row in one.rows],
        "FLOPs": [_short(row.flops) for row in one.rows],
        "training loss": [_short(row.train_loss) for row in one.rows],
        "validation loss": [_short(row.validation_loss) for row in one.rows],
        "accuracy": [_short(row.accuracy) for row in one.rows],
    }
    known = {name: column for name, column in cells.items() if any(value is not None for value in column)}
    return table(list(known), list(zip(*known.values(), strict=True)))


def _laws(one: Analysis) -> Iterator[Html]:
    sound = [law for law in one.laws if not law.fit.undetermined]
    yield columns(*(_chart(law) for law in sound if len(law.x_names) == 1))
    head = ("law", "among", "runs", "fit", "95 % intervals", "rmse")
    yield table(head, [[*_about(law), formula(law), _intervals(law.fit), _short(law.fit.rmse)] for law in sound])
    unsound = [[*_about(law), law.fit.undetermined] for law in one.laws if law.fit.undetermined]
    if unsound:
        title = f"{len(unsound)} that these runs do not determine"
        yield details(title, table(("law", "among", "runs", "why"), unsound))


def _about(law: FittedLaw) -> list[Value]:
    return [law.title, law.held_equal, len(law.runs)]


def formula(law: FittedLaw) -> str:
    """Return a fitted law with its numbers, for people."""
    names = dict(zip(law.fit.law.variables, law.x_names, strict=True))
    numbers = {name: f"{value:.4g}" for name, value in law.fit.numbers.items()}
    return re.sub(r"[a-z]+", lambda word: (names | numbers)[word[0]], law.fit.law.formula)


def growth_formula(growth: Growth) -> str:
    """Return how the best size grows, for people."""
    among = f" ({growth.among})" if growth.among else ""
    return f"{growth.factor:.3g} x FLOPs ^ {growth.exponent:.3f}{among}"


def _intervals(fit: Fit) -> str:
    return ", ".join(f"{name} {_span(interval)}" for name, interval in fit.intervals.items())


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.4g} .. {interval.high:.4g}"


def _chart(law: FittedLaw) -> Html:
    x = [point[0] for point in law.x]
    points = [(at, y, f"{name}: {y:.4g}") for at, y, name in zip(x, law.y, law.runs, strict=True)]
    through = np.geomspace(min(x), max(x), CURVE_POINTS)
    curve = [(float(at), law.fit.at(float(at))) for at in through]
    label = f"{law.title}, {law.held_equal}" if law.held_equal else law.title
    return Html(
        paragraph(label)
        + scatter_chart(
            [Series(name="runs", points=points), Series(name=formula(law), curve=curve)],
            x_label=law.x_names[0],
            y_label=law.y_name,
            log_x=True,
            log_y=True,
        )
    )


def _predictions(one: Analysis) -> Html:
    head = ("run", "predicted by", "predicted", "95 % interval", "measured", "missed by", "within", "doubt")
    return table(
        head,
        [
            [p.run, p.law, _short(p.predicted), _span(p.interval), _short(p.measured), _short(p.missed_by),
             "" if p.inside is None else _yes(p.inside), p.undetermined]
            for p in one.predictions
        ],
    )  # fmt: skip


def _optima(one: Analysis) -> Html:
    head = ("FLOPs", "among", "best parameters", "95 % interval", "loss there", "runs", "within the sizes tried")
    rows: list[list[Value]] = [
        [
            _short(best.flops),
            best.among,
            _short(best.parameters),
            _span(best.interval),
            _short(best.loss),
            ", ".join(best.runs),
            _yes(best.inside),
        ]
        for best in one.optima
    ]
    text = f"Best size = {growth_formula(one.growth)}." if one.growth else ""
    return Html(table(head, rows) + (paragraph(text) if text else ""))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")

"""Curves of one or several runs as one page that opens offline, from what `metrics.jsonl` holds."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from headrace.page.charts import line_chart
from headrace.page.html import Html, Link, Page, Value, facts, heading, paragraph, table
from headrace.train.runs.alarm_rows import COLUMNS, alarm_rows, spike_charts
from headrace.train.runs.metrics import MAX_STEP, Metrics, read_metrics
from headrace.train.runs.monitor_curves import curves_of
from headrace.train.runs.place_curves import place_curves
from headrace.train.steady.alarms import DIP, SPIKE
from headrace.train.steady.bad_steps import z_score

MAX_POINTS = 1000
"""Points of one curve; of more, the lowest and the highest of each stretch, so that no spike is lost."""
MAX_RUNS = 20
MAX_ROWS = 200
MAX_SHOWN = 1e300
"""Larger ones are not finite either: the span of a curve must be."""
OUTLIER_WINDOW = 50
OUTLIER_Z = 6.0

# Of a step counted from 0: trace and metrics count from 1.
BAD_STEP_FILE = re.compile(r"(?P<kind>nonfinite|spike)-(?P<step>[0-9]{8,18})-rank[0-9]+\.json")
BAD_STEPS = {"nonfinite": "loss or gradient not finite", "spike": "spike"}

Remarkable = tuple[str, int]
"""Folder of a run, and a step of it."""
NO_PAGES: Mapping[Remarkable, Link] = MappingProxyType({})

CURVES = (
    ("loss", "train", "loss", "Loss of each logged step's global batch."),
    ("loss", "validation", "validation loss", "On images that are not trained on."),
    ("ema_loss", "validation", "validation loss of the average", "Of the weights' moving average, on the same images."),
    ("lr", "train", "learning rate", ""),
    ("grad_norm", "train", "gradient norm", "Before clipping."),
    ("first_layer_grad_norm", "train", "gradient norm of the first layer", "Instabilities show here first."),
    ("images_per_second", "train", "images per second", "Of all processes, without validation and saving."),
    ("tflops", "train", "TFLOP/s", "Every position counts, as in published numbers."),
    ("mfu_percent", "train", "MFU, percent", "Operations that the loss needs, over the bf16 peak of all devices."),
    ("step_seconds", "train", "seconds a step", "Mean over ranks since the line before."),
    ("data_wait_percent", "train", "waiting for data, percent", "Mean over ranks since the line before."),
    ("data_wait_seconds_worst", "train", "waiting for data, seconds, worst rank", "Since the line before."),
    ("memory_allocated_bytes_worst", "train", "memory in tensors, bytes, worst rank", "The peak so far."),
    ("memory_reserved_bytes_worst", "train", "memory reserved, bytes, worst rank", "The peak so far; CUDA only."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run folder tells."""

    name: str
    """As it is shown: the folder's last name where that is enough."""
    folder: str
    objective: str
    lines: list[Metrics]
    stopped_at: tuple[tuple[int, str], ...] = ()
    """Steps that stopped the run, as trace counts them, and why; the run may have gone on from there since."""

    def of(self, event: str) -> list[Metrics]:
        """Return the lines of one kind."""
        return [line for line in self.lines if line["event"] == event]


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Return what the folders of runs tell. Raises ValueError naming one that holds no run."""
    if len(folders) > MAX_RUNS:
        raise ValueError(f"{len(folders)} runs are too many for one page, at most {MAX_RUNS}")
    names = [Path(folder).resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        lines = read_metrics(Path(folder) / "metrics.jsonl")
        if not lines:
            raise ValueError(f"{folder}: no run, or one without a step: metrics.jsonl is missing or empty")
        shown = folder if names.count(name) > 1 else name
        objective, stopped = _objective(Path(folder)), _stopped_at(Path(folder))
        runs.append(Run(name=shown, folder=folder, objective=objective, lines=lines, stopped_at=stopped))
    return runs


def _stopped_at(folder: Path) -> tuple[tuple[int, str], ...]:
    """Return the steps whose samples a run left in a file as it stopped."""
    found = (BAD_STEP_FILE.fullmatch(path.name) for path in folder.iterdir())
    steps = {(int(match["step"]) + 1, BAD_STEPS[match["kind"]]) for match in found if match is not None}
    return tuple(sorted(steps))


def _objective(folder: Path) -> str:
    try:
        data = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        return str(data["objective"]["kind"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return ""


def summaries(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row of numbers for each run."""
    return [_summary(run) for run in runs]


def _summary(run: Run) -> dict[str, Any]:
    steps, validations = run.of("train"), run.of("validation")
    losses = [line["loss"] for line in validations if _is_number(line.get("loss"))]
    return {
        "run": run.name,
        "objective": run.objective,
        "steps": max((line["step"] for line in steps), default=0),
        "samples": max((line["samples"] for line in steps if _is_number(line.get("samples"))), default=0),
        "loss": steps[-1]["loss"] if steps and _is_number(steps[-1].get("loss")) else None,
        "validation_loss": losses[-1] if losses else None,
        "best_validation_loss": min(losses, default=None),
        "images_per_second": _mean(steps, "images_per_second"),
        "mfu_percent": _mean(steps, "mfu_percent"),
        "data_wait_percent": _mean(steps, "data_wait_percent"),
        "skipped_steps": len(run.of("skipped")),
        "spikes": len(run.of(SPIKE)),
        "dips": len(run.of(DIP)),
        "changes": len(run.of("change")),
    }


def render(runs: Sequence[Run], *, title: str, pages: Mapping[Remarkable, Link] = NO_PAGES) -> bytes:
    """Return the page; `pages` show what a step saw, and stand where the command for it would."""
    page = Page(title=title, subtitle=", ".join(run.name for run in runs))
    rows = summaries(runs)
    if len(runs) == 1:
        page.section("Summary", facts([(name.replace("_", " "), value) for name, value in rows[0].items()]))
    else:
        head = [name.replace("_", " ") for name in rows[0]]
        page.section("Summary", table(head, [list(row.values()) for row in rows]))
    for name, event, label, text in CURVES:
        series = [(run.name, thinned(_points(run.of(event), name))) for run in runs]
        series = [(run, points) for run, points in series if points]
        if series:
            chart = line_chart(series, x_label="step", y_label=label)
            page.section(label[:1].upper() + label[1:], chart, *([paragraph(text)] if text else []))
    for curves in curves_of(runs):
        named = [(shown, thinned(_points(lines, name))) for shown, lines, name in curves.series]
        if any(points for _, points in named):
            chart = line_chart([pair for pair in named if pair[1]], x_label="step", y_label=curves.label)
            page.section(curves.title, chart, paragraph(curves.text))
    for chart_title, chart in spike_charts(runs):
        page.section(
            chart_title, chart, paragraph("A mark where a layer's largest gradient stood far above its median.")
        )
    if places := place_curves(runs):
        chart = line_chart(places, x_label="place of the predicted patch", y_label="validation loss")
        page.section("Loss by place", chart, paragraph("Mean over the validation set; 0 is the first in the order."))
    for section, columns, found in (
        ("Steps that stopped a run", "run, step, why, look at it", _stopped(runs, pages)),
        ("Spikes and dips", ", ".join(COLUMNS), alarm_rows(runs, lambda run, step: _look(runs[run], step, pages))),
        ("Skipped steps", "run, step, why, loss, gradient norm, positions, look at it", _skipped(runs, pages)),
        ("Planned changes", "run, from step, what, before, after", _changes(runs)),
        ("Steps that stand out", "run, step, gradient norm, deviations, look at it", _outliers(runs, pages)),
    ):
        if found:
            page.section(section, _table(columns.split(", "), found))
    return page.render()


def _table(head: Sequence[str], rows: Sequence[Sequence[Value | Link]]) -> Html:
    more = f"{len(rows) - MAX_ROWS} more are not shown." if len(rows) > MAX_ROWS else ""
    return Html(table(head, rows[:MAX_ROWS]) + (heading(more) if more else ""))


def _points(lines: Sequence[Metrics], name: str) -> list[tuple[float, float]]:
    """Return (step, value); a value that was not finite is a gap."""
    return [
        (float(line["step"]), float(line[name]) if _is_number(line[name]) else math.nan)
        for line in lines
        if name in line
    ]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most about MAX_POINTS points: of each stretch the lowest, the highest and a gap, in their order."""
    if not any(math.isfinite(y) for _, y in points):
        return []
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) * 2 / MAX_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else {stretch[0]}
        kept.extend(sorted(ends))
    return kept


def remarkable(runs: Sequence[Run]) -> list[Remarkable]:
    """Return the steps worth a look: that stopped a run, were skipped, had a spike, then those that stand out most."""
    found = [(run.folder, step) for run in runs for step, _ in run.stopped_at]
    found += [(run.folder, line["step"]) for run in runs for line in run.of("skipped")]
    found += [(run.folder, line["step"]) for run in runs for line in run.of(SPIKE)]
    found += [(run.folder, line["step"]) for _, run, line in _far_above_all(runs)]
    return list(dict.fromkeys(found))


def _stopped(runs: Sequence[Run], pages: Mapping[Remarkable, Link]) -> list[list[Value | Link]]:
    return [[run.name, step, why, _look(run, step, pages)] for run in runs for step, why in run.stopped_at]


def _skipped(runs: Sequence[Run], pages: Mapping[Remarkable, Link]) -> list[list[Value | Link]]:
    return [
        [
            run.name,
            line["step"],
            str(line.get("reason")),
            _shown(line.get("loss")),
            _shown(line.get("grad_norm")),
            _positions(line.get("positions")),
            _look(run, line["step"], pages),
        ]
        for run in runs
        for line in run.of("skipped")
    ]


def _changes(runs: Sequence[Run]) -> list[list[Value | Link]]:
    return [
        [run.name, line["step"], path, str(was), str(now)]
        for run in runs
        for line in run.of("change")
        for path, was, now in _changes_in(line.get("changes"))
    ]


def _positions(value: Any) -> str:
    return "..".join(map(str, value)) if isinstance(value, list) else ""


def _changes_in(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, before, after) of a line's changes; what is none, in a file that others wrote, is passed over."""
    for path, pair in value.items() if isinstance(value, dict) else ():
        if isinstance(pair, list) and len(pair) == 2:
            yield path, *pair


def _outliers(runs: Sequence[Run], pages: Mapping[Remarkable, Link]) -> list[list[Value | Link]]:
    return [
        [run.name, line["step"], line["grad_norm"], round(z, 1), _look(run, line["step"], pages)]
        for z, run, line in _far_above_all(runs)
    ]


def _far_above_all(runs: Sequence[Run]) -> list[tuple[float, Run, Metrics]]:
    """Return the steps whose gradient norm is far above those of the lines before, the furthest first."""
    found = [(z, run, line) for run in runs for z, line in _far_above(run.of("train"))]
    return sorted(found, key=lambda one: -one[0])


def _far_above(lines: Sequence[Metrics]) -> Iterator[tuple[float, Metrics]]:
    past: list[float] = []
    for line in lines:
        if not _is_number(line.get("grad_norm")):
            continue
        norm = float(line["grad_norm"])
        if len(past) >= OUTLIER_WINDOW and (z := z_score(past[-OUTLIER_WINDOW:], norm)) > OUTLIER_Z:
            yield z, line
        past.append(norm)


def _look(run: Run, step: int, pages: Mapping[Remarkable, Link]) -> Value | Link:
    if (run.folder, step) in pages:
        return pages[run.folder, step]
    return f"headrace trace {shlex.quote(run.folder)} --step {step}"


def _mean(lines: Sequence[Metrics], name: str) -> float | None:
    values = [line[name] for line in lines if _is_number(line.get(name))]
    return round(math.fsum(value / len(values) for value in values), 2) if values else None


def _is_number(value: Any) -> bool:
    return (type(value) is float and abs(value) <= MAX_SHOWN) or (type(value) is int and abs(value) < MAX_STEP)


def _shown(value: Any) -> Value:
    return value if _is_number(value) else "not finite"

"""What the page of a run says of spikes and dips: a table of them, and for each layer the steps at which it spiked."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headrace.page.charts import mark_rows
from headrace.page.html import Html, Link, Value
from headrace.train.runs.metrics import Metrics
from headrace.train.runs.monitor_curves import GRADIENTS, Told
from headrace.train.steady.alarms import DIP, RECOVERED, SPIKE

COLUMNS = ("run", "step", "what", "of", "value", "before", "look at it")
MAX_LAYERS = 60

Number = int | float
Look = Callable[[int, int], Value | Link]
"""Of the number of a run and a step: how to see what the step saw."""


def alarm_rows(runs: Sequence[Told], look: Look) -> list[list[Value | Link]]:
    """Return the rows of the table, in the order of the runs and their steps."""
    rows = []
    for number, run in enumerate(runs):
        for line in run.lines:
            told = _told(line)
            if told is not None:
                rows.append([run.name, line["step"], *told, look(number, line["step"])])
    return rows


def _told(line: Metrics) -> tuple[str, str, Value, Value] | None:
    if line["event"] == SPIKE:
        others = len(layers) - 1 if isinstance(layers := line.get("layers"), dict) else 0
        of = f"{_text(line.get('layer'))}{f' and {others} more' if others > 0 else ''}"
        times = line.get("times")
        median = f"{times:.1f} times the median" if _is_number(times) else ""
        return "spike of the largest gradient", of, _value(line.get("max")), median
    if line["event"] == DIP:
        before, step = line.get("before"), line.get("before_step")
        text = f"{before:.4g} at step {step}" if _is_number(before) and _is_number(step) else ""
        return "dip", _text(line.get("curve")), _value(line.get("value")), text
    if line["event"] == RECOVERED:
        worst = line.get("worst")
        text = f"{worst:.4g} at worst" if _is_number(worst) else ""
        return "back from a dip", _text(line.get("curve")), _value(line.get("value")), text
    return None


def spike_charts(runs: Sequence[Told]) -> Iterator[tuple[str, Html]]:
    """Yield for each run with spikes a title and a chart: layers as rows, steps from left to right, dips below."""
    for run in runs:
        marks: dict[str, list[tuple[float, str]]] = {layer: [] for layer in _layers(run.lines)}
        spikes = 0
        for line in run.lines:
            for layer, times in _spiking(line):
                if layer in marks:
                    marks[layer].append((float(line["step"]), f"step {line['step']}: {times:.1f} times the median"))
                    spikes += 1
        if not spikes:
            continue
        for line in run.lines:
            if line["event"] == DIP:
                marks.setdefault(f"dip: {_text(line.get('curve'))}", []).append(
                    (float(line["step"]), f"step {line['step']}")
                )
        last = max(line["step"] for line in run.lines)
        of_run = f", {run.name}" if len(runs) > 1 else ""
        yield f"Spikes by layer{of_run}", mark_rows(list(marks.items()), x=(0, float(last)), x_label="step")


def _layers(lines: Sequence[Metrics]) -> list[str]:
    """Return the names of layers in the order of the model; of very many those that spiked."""
    names = dict.fromkeys(
        name.removeprefix("max/")
        for line in lines
        if line["event"] == GRADIENTS
        for name in line
        if name.startswith("max/")
    )
    if len(names) > MAX_LAYERS:
        spiked = {layer for line in lines for layer, _ in _spiking(line)}
        names = dict.fromkeys([name for name in names if name in spiked][:MAX_LAYERS])
    return list(names)


def _spiking(line: Metrics) -> Iterator[tuple[str, float]]:
    layers = line.get("layers") if line["event"] == SPIKE else None
    for layer, times in layers.items() if isinstance(layers, dict) else ():
        if _is_number(times):
            yield layer, float(times)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _value(value: Any) -> Value:
    return value if _is_number(value) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

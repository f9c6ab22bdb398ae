"""Curves of what looked at a run beside its loss: monitors, and gradient norms of layers.

Their names are those that the run chose, so they are found in its lines.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from headrace.train.runs.metrics import Metrics

MONITOR, GRADIENTS = "monitor/", "gradients"
MAX_LAYERS = 5
"""Lines of one chart: of more layers, so many spread evenly, the first and the last among them."""
MAX_MONITORS = 20


class Told(Protocol):
    """A run, as the report has read it."""

    @property
    def name(self) -> str:
        """As it is shown."""
        ...

    @property
    def lines(self) -> Sequence[Metrics]:
        """Of its metrics."""
        ...


class Curves(NamedTuple):
    """One chart."""

    title: str
    label: str
    text: str
    series: list[tuple[str, list[Metrics], str]]
    """Name, lines, and which of their values is drawn."""


def curves_of(runs: Sequence[Told]) -> Iterator[Curves]:
    """Yield the charts that there are something for."""
    accuracies = []
    for run in runs:
        for event in _names(line["event"] for line in run.lines if line["event"].startswith(MONITOR))[:MAX_MONITORS]:
            name = event.removeprefix(MONITOR)
            shown = f"{run.name}: {name}" if len(runs) > 1 else name
            accuracies.append((shown, [line for line in run.lines if line["event"] == event], "accuracy"))
    if accuracies:
        yield Curves("Accuracy of monitors", "accuracy", "Classes told from the trunk's frozen features.", accuracies)
    for run in runs:
        lines = [line for line in run.lines if line["event"] == GRADIENTS]
        layers = _spread(_names(name.removeprefix("l2/") for line in lines for name in line if name.startswith("l2/")))
        of_run = f", {run.name}" if len(runs) > 1 else ""
        if layers:
            series = [(layer, lines, f"l2/{layer}") for layer in layers]
            yield Curves(f"Gradient norm by layer{of_run}", "gradient norm", "Before clipping.", series)
            series = [(layer, lines, f"max/{layer}") for layer in layers]
            yield Curves(f"Largest gradient by layer{of_run}", "magnitude", "Instabilities show here first.", series)


def _names(found: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _spread(names: Sequence[str]) -> list[str]:
    if len(names) <= MAX_LAYERS:
        return list(names)
    return [names[number * (len(names) - 1) // (MAX_LAYERS - 1)] for number in range(MAX_LAYERS)]

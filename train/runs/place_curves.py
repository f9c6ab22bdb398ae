"""Curves of the losses by place, of the first and the last validation of each run: AIM's figures 7 and 9."""

import math
from collections.abc import Sequence

from headrace.train.runs.metrics import Metrics
from headrace.train.runs.monitor_curves import Told

EVENT = "loss_by_place"
Points = list[tuple[float, float]]


def place_curves(runs: Sequence[Told]) -> list[tuple[str, Points]]:
    """Return a name and the (place, loss) of each curve; a place where nothing is predicted is a gap."""
    found = []
    for run in runs:
        lines = [line for line in run.lines if line["event"] == EVENT and isinstance(line.get("losses"), list)]
        for line in [*lines[:1], *lines[1:][-1:]]:
            step = f"step {line['step']:,}"
            found.append((f"{run.name}, {step}" if len(runs) > 1 else step, _points(line)))
    return [(name, points) for name, points in found if points]


def _points(line: Metrics) -> Points:
    return [
        (float(place), float(loss) if type(loss) in (int, float) else math.nan)
        for place, loss in enumerate(line["losses"])
    ]

"""The losses by place are drawn: the first and the last validation of each run."""

import math
from types import SimpleNamespace
from typing import Any

from headrace.train.runs.place_curves import place_curves
from headrace.train.runs.report import Run, render


def run(name: str, *lines: dict[str, Any]) -> Run:
    return Run(name=name, folder=name, objective="aim", lines=[{"event": "loss_by_place", **line} for line in lines])


def test_the_first_and_the_last_validation_are_drawn() -> None:
    one = run("a", *({"step": step, "losses": [None, 1.0 - step, 0.5]} for step in (0, 4, 8)))
    curves = place_curves([one])
    assert [name for name, _ in curves] == ["step 0", "step 8"]
    assert curves[1][1][1:] == [(1.0, -7.0), (2.0, 0.5)]
    assert math.isnan(curves[0][1][0][1])
    both = place_curves([one, run("b", {"step": 2, "losses": [0.1]})])
    assert [name for name, _ in both] == ["a, step 0", "a, step 8", "b, step 2"]


def test_lines_of_others_are_passed_over() -> None:
    lines = [{"step": 1}, {"step": 2, "losses": "all"}, {"step": 3, "losses": []}, {"step": 4, "losses": ["x", True]}]
    curves = place_curves([run("a", *lines)])
    assert [(name, [math.isnan(loss) for _, loss in points]) for name, points in curves] == [("step 4", [True, True])]
    assert place_curves([SimpleNamespace(name="b", lines=[])]) == []


def test_the_report_has_them() -> None:
    page = render([run("a", {"step": 3, "losses": [None, 0.9, 0.8]})], title="t").decode()
    assert "Loss by place" in page
    assert "step 3" in page
    assert "Loss by place" not in render([run("b")], title="t").decode()

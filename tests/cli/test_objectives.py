"""`headrace objectives` lists what a run can minimise; the other lists are made in the same way."""

import json
from collections.abc import Callable

import pytest

from headrace.train.objectives import OBJECTIVES


def test_each_objective_has_a_line(run: Callable[..., tuple[int, str]]) -> None:
    code, out = run("objectives")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(OBJECTIVES)
    assert all(len(line.split()) > 5 for line in out.splitlines())


@pytest.mark.parametrize("command", ["annotators", "steps", "decoders", "objectives"])
def test_json_is_one_list_with_every_line(run: Callable[..., tuple[int, str]], command: str) -> None:
    _, shown = run(command)
    code, out = run(command, "--json")
    assert code == 0
    assert [[line["name"], line["text"]] for line in json.loads(out)] == [
        line.split(maxsplit=1) for line in shown.splitlines()
    ]

"""`headrace objectives` lists what a run can minimise."""

from collections.abc import Callable

from headrace.train.objectives import OBJECTIVES


def test_each_objective_has_a_line(run: Callable[..., tuple[int, str]]) -> None:
    code, out = run("objectives")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(OBJECTIVES)
    assert all(len(line.split()) > 5 for line in out.splitlines())

"""Ranks of one host share its cores."""

import os

import pytest

from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.mixture import Mixture, Source


@pytest.mark.parametrize(
    ("ranks", "cores", "own"),
    [(None, 8, 8), ("1", 8, 8), ("4", 8, 2), ("3", 8, 2), ("8", 2, 1), ("", 8, 8), ("x", 8, 8), ("0", 8, 8)],
)
def test_the_cores_are_divided_among_the_ranks_of_the_host(
    monkeypatch: pytest.MonkeyPatch, ranks: str | None, cores: int, own: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert own_cores() == own
    mixture = Mixture(sources=(Source(name="a", url="/a"),))
    assert Turbo(mixture).calls_at_once == own

"""The garbage collector does not start inside a step, and is left as it was found."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.train.collector import collecting_at_boundaries
from headrace.train.config import load_run
from headrace.train.loop import train


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """Generations that are collected, as they are."""
    seen: list[int] = []

    def note(phase: str, facts: dict[str, int]) -> None:
        if phase == "start":
            seen.append(facts["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_nothing_is_collected_between_boundaries(collections: list[int]) -> None:
    with collecting_at_boundaries():
        del collections[:]
        keep = [[number] for number in range(100_000)]  # many times what starts the collector
        assert not collections
    assert len(keep) == 100_000
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collecting_at_boundaries():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_run_collects_at_its_checkpoints_and_leaves_the_collector_on(
    run_file: Callable[..., Path], collections: list[int]
) -> None:
    config = load_run(run_file(steps=4, validation=None, checkpoint={"every": 2}))
    during: list[list[int]] = []
    train(config, on_metrics=lambda _: during.append(list(collections)))
    assert gc.isenabled()
    # Two steps, the checkpoint, two steps: between the lines of the first two nothing was collected.
    assert during[0] == during[1]
    assert len(during[2]) > len(during[1])

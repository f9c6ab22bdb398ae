"""A rank that does not come is named by those that wait."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import distributed

from headrace.train.parallel.presence import Presence


@pytest.fixture
def ranks() -> Iterator[Callable[..., list[Presence]]]:
    """Return a function that makes ranks which meet in one store."""
    made: list[Presence] = []

    def make(size: int, *, silent: tuple[int, ...] = (), store: Any = None, **options: Any) -> list[Presence]:
        store = distributed.HashStore() if store is None else store
        found = [Presence(rank, size, store, tell_after_seconds=0.2, **options) for rank in range(size)]
        for one in found:
            if one.rank not in silent:
                one.start()
        made.extend(found)
        return found

    yield make
    for one in made:
        one.close()


def until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 150
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_who_does_not_come_is_named_and_who_waits_is_not(ranks: Callable[..., list[Presence]]) -> None:
    first, second, third, _ = ranks(4)
    for one in (first, second, third):
        one.comes("step 7")
    until(lambda: first.missing() == second.missing() == "rank 3")
    assert third.missing() == ""  # two look, which is enough
    first.leaves()
    assert first.missing() == ""


def test_several_are_told_by_number(ranks: Callable[..., list[Presence]]) -> None:
    first, *_ = ranks(20)
    first.comes("step 7")
    until(lambda: first.missing() == "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 11 more")


def test_a_rank_that_computes_warns_of_one_that_does_not_answer(
    ranks: Callable[..., list[Presence]], caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = ranks(3, silent=(2,))
    for one in (first, *others):
        one.comes("step 7")
        one.leaves()
    # Two ranks look for who is missing. On a busy machine one may miss the other too, at first.
    said = r"rank {} of 3 has computed for \d+ s behind step 7, and rank 2 does not answer: it may hang"
    until(lambda: all(re.search(said.format(rank), caplog.text) for rank in (0, 1)))


def test_ranks_that_all_take_long_are_not_spoken_of(
    ranks: Callable[..., list[Presence]], caplog: pytest.LogCaptureFixture
) -> None:
    every = ranks(2, silent=(0, 1))
    for one in every:
        one.comes("step 7")
        one.leaves()
    for number in range(1, 100):
        for one in every:
            one.beat(one.at.since + number * one.period)
    assert all(one._missing == [] for one in every)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Hanging:
    """A store whose keeper was stopped."""

    def __init__(self) -> None:
        self.released, self.answered = threading.Event(), threading.Event()

    def set(self, *_: Any) -> None:
        self.released.wait(300)
        self.answered.set()


def test_a_store_that_does_not_answer_is_its_keepers_fault(ranks: Callable[..., list[Presence]]) -> None:
    store = Hanging()
    _, second = ranks(2, silent=(0,), store=store, kept_by_first=True)
    second.comes("step 7")
    until(lambda: second.missing() == "rank 0")
    store.released.set()


class Broken:
    """A store whose keeper is gone."""

    def set(self, *_: Any) -> None:
        raise distributed.DistNetworkError("gone")


def test_a_store_that_is_gone_says_nothing(ranks: Callable[..., list[Presence]]) -> None:
    first, _ = ranks(2, store=Broken())
    first.comes("step 7")
    time.sleep(0.6)
    assert first._thread.is_alive()
    assert first.missing() == ""


def test_ranks_part_together(ranks: Callable[..., list[Presence]]) -> None:
    first, second = ranks(2, silent=(0, 1))
    parted = threading.Event()

    def leave() -> None:
        first.part(300)
        parted.set()

    threading.Thread(target=leave, daemon=True).start()
    assert not parted.wait(0.5)
    second.part(300)
    assert parted.wait(150)


def test_a_rank_that_parts_alone_leaves(ranks: Callable[..., list[Presence]]) -> None:
    store = Hanging()
    for kept in (None, store, Broken()):
        first, _ = ranks(2, silent=(0, 1), store=kept)
        first.part(0.3)
    assert not store.answered.is_set()
    store.released.set()

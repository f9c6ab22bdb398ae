"""A run that stands still ends in the stated time; one that goes on, or may stand for good reason, is let be."""

import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from headrace.train.parallel import presence, watchdog
from headrace.train.parallel.presence import STEPPING, Beat, Presence, Seen
from headrace.train.parallel.watchdog import HangLimits, Watchdog, judge

LIMIT = 100.0
TICK = 0.02


def seen(
    number: int = 5, moves: int = 0, phase: Any = "backward", *, seconds: float = LIMIT, quiet: float = 0.0
) -> Seen:
    beat = Beat(count=1, number=number, moves=moves, phase=phase, step=7, seconds=seconds, code="a.py:1 in f")
    return Seen(beat, quiet)


def judged(*ranks: Seen | None) -> Any:
    limits = HangLimits(seconds=LIMIT, data_seconds=50.0)
    found = {rank: one for rank, one in enumerate(ranks) if one is not None}
    return judge(found, len(ranks), limit=lambda phase: limits.of(phase, LIMIT), quiet=LIMIT / 3)


@pytest.mark.parametrize(
    ("ranks", "held_up_by", "text"),
    [
        ([seen(), seen(moves=-1, phase="forward")], [1], "held up by rank 1 in forward of step 8 at a.py:1 in f"),
        ([seen(), seen(4, 3, "data", seconds=150)], [1], "held up by rank 1 in data of step 8"),
        (
            [seen(), seen(quiet=40), None],
            [1, 2],
            "ranks 1, 2 do not answer: stopped, or the machine is gone; last heard",
        ),
        ([seen(), None], [1], "rank 1 does not answer: stopped, or the machine is gone"),
        (
            [seen(), seen()],
            [0, 1],
            "no rank is behind the others, so what they exchange does not arrive: ranks 0, 1 in",
        ),
        ([seen(phase="data", seconds=150)], [0], "held up by rank 0 in data of step 8"),
        ([seen(phase=""), seen(phase="saving", quiet=40)], [1], "last heard of: rank 1 in saving of step 8"),
    ],
)
def test_who_holds_the_run_up_is_named(ranks: list[Seen | None], held_up_by: list[int], text: str) -> None:
    verdict = judged(*ranks)
    assert verdict.ranks == held_up_by
    assert text in verdict.text


@pytest.mark.parametrize(
    "last",
    [
        seen(4, phase="saving", seconds=1e6),
        seen(4, phase="looking", seconds=1e6),
        seen(4, phase="", seconds=1e6),
        seen(4, phase="forward", seconds=3),
        seen(4, phase="data", seconds=149),
        seen(5, seconds=99),
    ],
    ids=["saves", "looks", "between", "slow", "waits for an outage", "not yet"],
)
def test_a_rank_that_moves_or_may_last_is_waited_for(last: Seen) -> None:
    assert judged(seen(), last) is None


beats = st.builds(
    seen,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["", "saving", "looking", *STEPPING]),
    seconds=st.floats(0, 300),
)


@given(st.lists(beats, min_size=1, max_size=5))
def test_of_ranks_that_answer_only_those_behind_that_stand_too_long_in_a_step_are_named(ranks: list[Seen]) -> None:
    verdict = judged(*ranks)
    first = min((one.beat.number, one.beat.moves) for one in ranks)
    behind = [rank for rank, one in enumerate(ranks) if (one.beat.number, one.beat.moves) == first]
    late = all(
        ranks[rank].beat.phase in STEPPING
        and ranks[rank].beat.seconds >= LIMIT + 50.0 * (ranks[rank].beat.phase == "data")
        for rank in behind
    )
    assert (verdict is not None) == late
    if verdict is not None:
        assert verdict.ranks == behind


def test_without_a_number_the_time_follows_from_the_steps_and_is_never_short() -> None:
    limits = HangLimits(most_seconds=1800)
    assert limits.of_step(deque()) == 300
    assert limits.of_step(deque([0.5, 0.5, 9.0])) == 300
    assert limits.of_step(deque([30.0, 40.0, 35.0])) == 700
    assert limits.of_step(deque([500.0])) == 1800
    assert HangLimits(seconds=60).of_step(deque([500.0])) == 60
    assert HangLimits(seconds=4000, most_seconds=1800).of_step(deque()) == 1800


class Alone:
    """One process that is watched, by threads or tick by tick, and what it ended with."""

    def __init__(self, folder: Path, *, seconds: float, store: Any = None, **options: Any) -> None:
        self.presence = Presence(
            options.pop("rank", 0),
            options.pop("size", 1),
            distributed.HashStore() if store is None else store,
            tell_after_seconds=0.2,
            **options,
        )
        self.left: list[int] = []
        self.watchdog = Watchdog(self.presence, HangLimits(seconds=seconds), folder, leave=self.left.append)

    def start(self) -> None:
        self.presence.start()
        self.watchdog.start()

    def steps(self, number: int) -> None:
        for step in range(number):
            for phase in STEPPING:
                self.presence.enters(phase, step)
            self.presence.enters("")

    def close(self) -> None:
        self.watchdog.close()
        self.presence.close()


def pass_by(clock: list[float], seconds: float, *every: Alone) -> None:
    """Let so much time pass for all of them, in the ticks of their threads."""
    ended = set()
    for _ in range(round(seconds / TICK)):
        clock[0] += TICK
        for number, one in enumerate(every):
            one.presence.beat(clock[0])
            if number not in ended and one.watchdog.is_to_end(clock[0]):
                one.watchdog._end()
                ended.add(number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of presence and watchdog, in the one place of the list."""
    now = [1000.0]
    fake = types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr(watchdog, "time", fake)
    monkeypatch.setattr(presence, "time", fake)
    return now


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Alone]]:
    monkeypatch.setattr(watchdog, "LEAVING_SECONDS", 0.01)
    made = []

    def make(seconds: float = 1.0, **options: Any) -> Alone:
        made.append(Alone(tmp_path, seconds=seconds, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(fact: Callable[[], Any]) -> None:
    end = time.monotonic() + 150
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_that_stands_leaves_and_says_where_its_threads_stand(
    alone: Callable[..., Alone], clock: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = alone()
    one.steps(3)
    one.presence.enters("data", 3)
    pass_by(clock, 0.9, one)
    assert not one.left
    pass_by(clock, 0.5, one)
    assert one.left == [1]
    assert "in test_a_process_that_stands" in (tmp_path / "hang-00000003-rank0.txt").read_text()
    (said,) = [record.getMessage() for record in caplog.records if "stood still" in record.getMessage()]
    assert said.startswith("rank 0 of 1: the run has stood still for 1 s, hang_seconds is 1: held up by rank 0 in data")
    assert said.endswith("start the same command again, it continues from the newest checkpoint")


@pytest.mark.parametrize("where", ["the first step", "a save", "between steps"])
def test_what_may_last_is_waited_for(alone: Callable[..., Alone], clock: list[float], where: str) -> None:
    one = alone(0.3)
    if where == "the first step":
        one.presence.enters("data", 0)
        one.presence.enters("forward")
    else:
        one.steps(3)
        one.presence.enters("saving" if where == "a save" else "")
    pass_by(clock, 30, one)
    assert not one.left
    assert not one.presence.verdict


def test_a_main_thread_that_leaves_by_itself_is_given_time(
    alone: Callable[..., Alone], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "LEAVING_SECONDS", 300)
    one = alone(0.5)
    one.steps(2)
    one.presence.enters("backward", 2)
    one.start()
    until(lambda: one.presence.verdict)
    one.presence.leaving.set()
    time.sleep(0.2)
    one.close()
    one.watchdog._thread.join(150)
    assert not one.left
    assert "stood still" not in caplog.text  # it is the main thread's to say


def test_a_process_that_was_suspended_takes_no_sleep_for_a_hang(
    alone: Callable[..., Alone], clock: list[float]
) -> None:
    one = alone(2.0)
    one.steps(2)
    one.presence.enters("backward", 2)
    pass_by(clock, 0.5, one)
    clock[0] += 3600
    pass_by(clock, 0.5, one)
    assert not one.presence.verdict
    one.presence.enters("update")
    pass_by(clock, 0.5, one)
    assert not one.left
    pass_by(clock, 5, one)
    assert one.left == [1]


def test_ranks_that_all_save_do_not_all_ask_for_the_table(alone: Callable[..., Alone], clock: list[float]) -> None:
    asked: set[int] = set()

    class Counting:
        def __init__(self, rank: int) -> None:
            self.rank, self.store = rank, store

        def __getattr__(self, name: str) -> Any:
            if name == "multi_get":
                asked.add(self.rank)
            return getattr(self.store, name)

    store = distributed.HashStore()
    ranks = [alone(0.4, store=Counting(rank), rank=rank, size=4) for rank in range(4)]
    for one in ranks:
        one.steps(2)
        one.presence.enters("saving")
    pass_by(clock, 10, *ranks)
    assert asked == {0, 1}
    assert not any(one.left for one in ranks)


class Hanging:
    """A store whose keeper was stopped."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def set(self, *_: Any) -> None:
        self.released.wait(300)


def test_a_store_that_does_not_answer_is_named_in_place_of_the_rank(
    alone: Callable[..., Alone], caplog: pytest.LogCaptureFixture
) -> None:
    store = Hanging()
    one = alone(0.6, store=store, rank=1, size=2, kept_by_first=True)
    one.steps(2)
    one.presence.enters("backward", 2)
    one.start()
    until(lambda: one.left)
    assert "rank 0 does not answer, nor the store of the ranks, which it keeps" in caplog.text
    store.released.set()


def test_ranks_tell_each_other_who_it_is(tmp_path: Path, alone: Callable[..., Alone], clock: list[float]) -> None:
    store = distributed.HashStore()
    ranks = [alone(1.5, store=store, rank=rank, size=3) for rank in range(3)]
    for one in ranks:
        one.steps(2)
        one.presence.enters("forward", 2)
        if one.presence.rank != 2:
            one.presence.enters("backward")
    pass_by(clock, 3, *ranks)
    assert all(one.left for one in ranks)
    told = [one.presence.verdict for one in ranks]
    assert all("held up by rank 2 in forward of step 3" in text for text in told), told
    assert [path.name for path in tmp_path.glob("hang-*")] == ["hang-00000002-rank2.txt"]

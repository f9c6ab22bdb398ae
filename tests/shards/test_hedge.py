"""Late reads are asked twice: the first answer counts, errors wait for the other, and the share is bounded."""

import threading
import time

import pytest

from headrace.patience import Stop
from headrace.shards.hedge import MEASURED, MEASURED_FIRST, MOST_SHARE, Hedge


def measured(stop: Stop | None = None, *, seconds: float = 0.001) -> Hedge:
    """One whose reads took so long: what they took here depends on what else the machine does."""
    hedge = Hedge(stop or Stop())
    for _ in range(MEASURED_FIRST):
        assert hedge.read("a", lambda _: b"quick") == b"quick"
    hedge._seconds.extend([seconds] * MEASURED)
    return hedge


class Attempts:
    """Attempts by number: the first ones wait until they are stopped, or for `seconds`."""

    def __init__(self, *waits: float | None) -> None:
        self.waits, self.stops = list(waits), list[Stop]()
        self.lock = threading.Lock()

    def __call__(self, stop: Stop) -> int:
        with self.lock:
            number = len(self.stops)
            self.stops.append(stop)
        wait = self.waits[number]
        if wait is None:
            raise OSError(f"attempt {number} failed")
        if stop.wait(wait):
            raise OSError("stopped")
        return number


def test_a_late_read_is_doubled_and_the_loser_is_stopped() -> None:
    hedge, attempts = measured(), Attempts(300, 0)
    began = time.monotonic()
    assert hedge.read("a", attempts) == 1
    assert time.monotonic() - began < 100
    assert hedge.num_hedged == 1
    assert all(stop.wait(60) for stop in attempts.stops)


def test_nothing_is_doubled_before_the_times_are_known_or_when_it_is_quick() -> None:
    hedge, attempts = Hedge(Stop()), Attempts(0.3, 0)
    assert hedge.read("a", attempts) == 0
    assert (hedge.num_hedged, len(attempts.stops)) == (0, 1)
    quick = measured(seconds=200.0)
    assert quick.read("a", Attempts(0)) == 0
    assert quick.num_hedged == 0


def test_an_error_counts_only_if_no_attempt_succeeds() -> None:
    assert measured().read("a", Attempts(0.4, 0)) in (0, 1)
    with pytest.raises(OSError, match="attempt 0 failed"):
        measured(seconds=200.0).read("a", Attempts(None))
    hedge = measured()
    assert hedge.read("a", Attempts(0.5, None)) == 0  # the second failed first


def test_a_server_that_is_slow_as_a_whole_is_not_asked_twice_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    hedge = measured()
    monkeypatch.setattr(hedge, "limit_seconds", lambda: 0.001)
    for _ in range(60):
        hedge.read("a", Attempts(0.02, 0.02))
    assert 1 <= hedge.num_hedged <= MOST_SHARE * (MEASURED_FIRST + 61) + 1


def test_a_stop_ends_both() -> None:
    stop = Stop()
    hedge, attempts = measured(stop), Attempts(300, 300)
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="the reader is closed"):
        hedge.read("a", attempts)
    assert time.monotonic() - began < 100
    assert all(one.wait(60) for one in attempts.stops)

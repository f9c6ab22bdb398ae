"""Promises of progress: exact sums, whatever comes late or twice; rates of now, and the time that is left."""

from headrace.shards.heartbeat import Beat
from headrace.shards.progress import Progress, Tally, no_progress


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_counts_are_of_units_done_and_under_way() -> None:
    seen: list[Progress] = []
    tally: Tally[str] = Tally(["a", "b", "c"], seen.append, clock=Clock())
    tally.heard(0, Beat({"rows": 2}, {"timeout": 1}))
    tally.heard(0, Beat({"rows": 5}, {"timeout": 2}))
    tally.heard(1, Beat({"rows": 1}))
    tally.ended(0, "A", Beat({"rows": 10, "bytes": 7}, {"timeout": 3}))
    assert seen[-1].counts == {"rows": 11, "bytes": 7}
    assert seen[-1].failures == {"timeout": 3}
    assert (seen[-1].done, seen[-1].total) == (1, 3)


def test_a_beat_after_the_result_changes_nothing() -> None:
    tally: Tally[str] = Tally(["a"], no_progress, clock=Clock())
    tally.ended(0, "A", Beat({"rows": 10}))
    tally.heard(0, Beat({"rows": 9}))
    assert tally.progress().counts == {"rows": 10}


def test_what_a_dead_worker_counted_is_forgotten() -> None:
    tally: Tally[str] = Tally(["a"], no_progress, clock=Clock())
    tally.heard(0, Beat({"rows": 9}))
    tally.died(0)
    assert tally.progress().counts == {}


def test_the_time_left_follows_the_rows_that_units_expect() -> None:
    clock = Clock()
    tally: Tally[str] = Tally([str(number) for number in range(4)], no_progress, clock=clock)
    assert tally.progress().left_seconds is None
    tally.heard(0, Beat({"rows": 0}, {}, {"rows": 100}))
    clock.now += 10
    tally.heard(0, Beat({"rows": 50}, {}, {"rows": 100}))
    progress = tally.progress()
    assert progress.expected == {"rows": 400}
    assert progress.rates == {"rows": 5.0}
    assert progress.left_seconds == 70.0


def test_the_rate_is_of_the_last_minute() -> None:
    clock = Clock()
    tally: Tally[str] = Tally(["a"], no_progress, clock=clock)
    for second in range(1, 201):
        clock.now = 100.0 + second
        tally.heard(0, Beat({"rows": 100 * min(second, 100)}))
        progress = tally.progress()
        if second == 90:
            assert progress.rates == {"rows": 100.0}
    assert progress.rates == {"rows": 0.0}
    assert progress.left_seconds is None


def test_without_counts_the_time_left_follows_the_units() -> None:
    clock = Clock()
    tally: Tally[str] = Tally(["a", "b", "c"], no_progress, clock=clock)
    clock.now += 10
    tally.ended(0, "A", Beat())
    assert tally.progress().left_seconds == 20.0


def test_hosts_are_those_of_units_under_way() -> None:
    tally: Tally[str] = Tally(["a", "b"], no_progress, clock=Clock())
    tally.heard(0, Beat(hosts={"x": 3.0, "y": 1.0}))
    tally.heard(1, Beat(hosts={"x": 5.0}))
    assert tally.progress().hosts == {"x": 5.0, "y": 1.0}
    tally.ended(1, "B", Beat(hosts={"x": 5.0}))
    assert tally.progress().hosts == {"x": 3.0, "y": 1.0}


def test_the_main_counter_is_what_is_counted_or_expected() -> None:
    assert Progress(done=0, total=1).main is None
    assert Progress(done=0, total=1, counts={"bytes": 1, "images": 2}).main == "images"
    assert Progress(done=0, total=1, counts={"bytes": 1}, expected={"rows": 5}).main == "rows"

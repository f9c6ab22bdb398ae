"""The limit of all requests: down where much fails at many hosts, up while more of them bring more."""

import itertools
from collections.abc import Iterator

import pytest

from headrace.curation.fetch.net import throttle as module
from headrace.curation.fetch.net.throttle import FIRST_LIMIT, LEAST_LIMIT, LOOK_SECONDS, Throttle


@pytest.fixture
def now() -> Iterator[float]:
    """The times of one look after the other."""
    return itertools.count(0.0, LOOK_SECONDS)


def looked(throttle: Throttle, now: Iterator[float], *, answers: int, failures: int = 0, hosts: int = 50) -> int:
    for number in range(answers):
        throttle.answered(f"good{number}", troubled=False)
    for number in range(failures):
        throttle.answered(f"bad{number % hosts}", troubled=True)
    throttle.look(next(now), held_back=True)
    return throttle.limit


def test_it_begins_with_no_more_than_it_is_allowed() -> None:
    assert Throttle(3, lambda _: None).limit == 3
    assert Throttle(1000, lambda _: None).limit == FIRST_LIMIT


def test_it_rises_while_more_requests_bring_more_answers_and_takes_back_a_step_that_did_not(now) -> None:
    moved: list[int] = []
    throttle = Throttle(1000, moved.append)
    throttle.look(next(now), held_back=True)
    for _ in range(40):
        looked(throttle, now, answers=min(throttle.limit, 130) * 10)  # the line carries 130 at a time
    assert 130 <= throttle.limit <= 200
    assert max(moved) <= 260


def test_it_stays_where_nothing_waits_for_a_place(now) -> None:
    throttle = Throttle(1000, lambda _: None)
    for _ in range(10):
        for number in range(100):
            throttle.answered(f"h{number}", troubled=False)
        throttle.look(next(now), held_back=False)
    assert throttle.limit == FIRST_LIMIT


def test_many_failing_hosts_lower_it_and_one_host_does_not(now) -> None:
    throttle = Throttle(64, lambda _: None)
    throttle.look(next(now), held_back=True)
    assert looked(throttle, now, answers=10, failures=90, hosts=1) == 64
    assert looked(throttle, now, answers=80, failures=20) == 64  # a list has its dead links
    assert looked(throttle, now, answers=20, failures=80) == int(64 * module.CUT)
    for _ in range(20):
        looked(throttle, now, answers=20, failures=80)
    assert throttle.limit == LEAST_LIMIT
    for _ in range(60):
        looked(throttle, now, answers=throttle.limit * 10)
    assert throttle.limit == 64

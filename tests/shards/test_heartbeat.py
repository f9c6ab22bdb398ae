"""Promises of heartbeats: they count, come seldom, cost a unit nothing, and are nothing where nobody listens."""

import asyncio
import contextlib

import pytest

from headrace.shards.heartbeat import MAX_HOST_LETTERS, SHOWN_HOSTS, Beat, Pulse, beat, beating, expect, pulse, waiting


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_listener_nothing_happens() -> None:
    expect(rows=3)
    beat(rows=1, failed="timeout")
    with waiting("host"):
        beat()


def test_a_pulse_counts_what_its_unit_says() -> None:
    with pulse(lambda _: None) as counting:
        expect(rows=3)
        beat(rows=1, bytes=10)
        beat(rows=1, failed="timeout")
        beat(rows=1, bytes=5)
    beat(rows=100)
    assert counting.beat() == Beat({"rows": 3, "bytes": 15}, {"timeout": 1}, {"rows": 3}, {})


def test_beats_come_seldom_and_each_tells_all() -> None:
    sent: list[Beat] = []
    clock = Clock()
    counting = Pulse(sent.append, clock=clock)
    for tenth in range(21):
        clock.now = tenth / 10
        counting.count({"rows": 1}, None)
    assert [item.counts["rows"] for item in sent] == [6, 11, 16, 21]


def test_requests_under_way_make_a_host_slow() -> None:
    clock = Clock()
    counting = Pulse(lambda _: None, clock=clock)
    for _ in range(4):
        with counting.waiting("fast"):
            clock.now += 0.5
    with counting.waiting("stuck"):
        clock.now += 60
        assert counting.beat().hosts == {"stuck": 60.0, "fast": 0.5}
    with contextlib.suppress(TimeoutError), counting.waiting("stuck"):
        clock.now += 20
        raise TimeoutError
    assert counting.beat().hosts == {"stuck": 40.0, "fast": 0.5}


def test_a_beat_has_a_bounded_size() -> None:
    clock = Clock()
    counting = Pulse(lambda _: None, clock=clock)
    for number in range(1000):
        with counting.waiting(f"{number}." + 250 * "x"):
            clock.now += number
    hosts = counting.beat().hosts
    assert [round(seconds) for seconds in hosts.values()] == [999, 998, 997, 996, 995]
    assert len(hosts) == SHOWN_HOSTS
    assert all(len(host) == MAX_HOST_LETTERS for host in hosts)


def test_a_unit_that_only_waits_shows_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.shards.heartbeat.BEAT_SECONDS", 0.02)
    sent: list[Beat] = []

    async def wait() -> None:
        async with beating():
            with waiting("stuck"):
                await asyncio.sleep(0.2)

    with pulse(sent.append):
        asyncio.run(wait())
    assert any("stuck" in item.hosts for item in sent)

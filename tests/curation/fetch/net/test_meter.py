"""Who is too slow: an answer that drips, from its first byte on; nobody while this machine or its network stands."""

import asyncio
from typing import Any

from headrace.curation.fetch.net.board import HostBoard
from headrace.curation.fetch.net.meter import LOOK_SECONDS, Meter

SECONDS = 4 * LOOK_SECONDS


class Line:
    """What the meter sees of a connection."""

    def __init__(self, *coming: int) -> None:
        self.num_received = 0
        self.coming = iter(coming)
        self.error: Any = None

    def fail(self, error: Exception) -> None:
        self.error = error


def judged(lines: dict[str, Line], looks: int, late: tuple[int, ...] = ()) -> set[str]:
    async def main() -> None:
        meter = Meter(min_bytes_per_second=1000, seconds=SECONDS)
        watches = [meter.watching(host, line) for host, line in lines.items()]
        for watch in watches:
            watch.__enter__()
        for look in range(looks):
            for line in lines.values():
                line.num_received += next(line.coming, 0)
            meter.look(late=look in late)
        for watch in watches:
            watch.__exit__(None, None, None)

    asyncio.run(main())
    return {host for host, line in lines.items() if line.error is not None}


def test_an_answer_that_drips_is_failed_and_one_that_thinks_or_flows_is_not() -> None:
    lines = {"drips": Line(*[10] * 9), "flows": Line(*[300] * 9), "thinks": Line(), "bursts": Line(*[0, 0, 1100] * 3)}
    assert judged(lines, 9) == {"drips"}
    error = lines["drips"].error
    assert (error.error_class, error.retryable, error.is_slow) == ("timeout", False, True)
    assert error.message == "under 1000 bytes a second for 1 s"


def test_nobody_is_judged_while_nothing_moves_from_several_hosts() -> None:
    assert judged({f"h{number}": Line(5000) for number in range(5)}, 9) == set()
    assert judged({"one": Line(5000), "other": Line(5000)}, 9) == {"one", "other"}
    assert judged({**{f"h{number}": Line(5000) for number in range(5)}, "flows": Line(*[300] * 9)}, 9) == {
        f"h{number}" for number in range(5)
    }


def test_nobody_is_judged_by_a_time_in_which_this_process_stood_still() -> None:
    assert judged({"drips": Line(*[10] * 9)}, 6, late=(4,)) == set()
    assert judged({"drips": Line(*[10] * 9)}, 9, late=(3,)) == {"drips"}


def test_what_one_process_tells_of_a_host_the_others_hear_once(tmp_path, monkeypatch) -> None:
    one, other = HostBoard(tmp_path / "hosts"), HostBoard(tmp_path / "hosts")
    assert list(other.news()) == []
    monkeypatch.setattr("os.getpid", lambda: 1)
    one.tell("dead.example", "timeout")
    one.tell("x" * 5000, "timeout")
    with (tmp_path / "hosts").open("a") as file:
        file.write('["old.example", "dns", 1.0, 1]\nrubbish\n["half')
    monkeypatch.setattr("os.getpid", lambda: 2)
    ((host, error_class, ago),) = other.news()
    assert (host, error_class) == ("dead.example", "timeout")
    assert 0 <= ago < 600
    assert list(other.news()) == []

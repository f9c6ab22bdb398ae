"""What a unit of work counts while it runs: rows, bytes, images, failures by class, how long hosts take.

A unit calls `expect`, `beat` and `waiting` where something is done, and need not know who listens: outside `run_units`
they do nothing. A heartbeat is no part of a result: it may be lost, it is never stored, and a driver that is gone is no
error. Each one tells all that was counted since the unit began, so that the newest is enough.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

BEAT_SECONDS = 0.5
"""At most one heartbeat of a unit in this time."""
SHOWN_HOSTS = 5
MAX_HOST_LETTERS = 60
"""Five of these and the counts fit into one atomic write to a pipe."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What one unit has counted since it began."""

    counts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    """Rows, images or samples that failed, by class."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """What `counts` will be when the unit is done."""
    hosts: Mapping[str, float] = field(default_factory=dict)
    """The slowest hosts: seconds a request, those under way included."""


class Pulse:
    """The counters of one unit. `send` gets a Beat now and then, from the thread that counts."""

    def __init__(self, send: Callable[[Beat], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._sent = clock()
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._under_way: dict[object, tuple[str, float]] = {}

    def count(self, counts: Mapping[str, int], failed: str | None) -> None:
        """Add to the counters, and to the failures of class `failed`."""
        for name, number in counts.items():
            self._counts[name] += number
        if failed is not None:
            self._failures[failed] += 1
        self._send_if_due()

    def expect(self, counts: Mapping[str, int]) -> None:
        """Say what the counters will be; a second call adds."""
        self._expected.update(counts)
        self._send_if_due()

    @contextlib.contextmanager
    def waiting(self, host: str) -> Iterator[None]:
        """Count the time inside for `host`."""
        ticket = object()
        self._under_way[ticket] = (host, self._clock())
        try:
            yield
        finally:
            _, begun = self._under_way.pop(ticket)
            self._requests[host] += 1
            self._seconds[host] = self._seconds.get(host, 0.0) + self._clock() - begun

    def beat(self) -> Beat:
        """Return what has been counted."""
        return Beat(dict(self._counts), dict(self._failures), dict(self._expected), self._slowest())

    def _send_if_due(self) -> None:
        now = self._clock()
        if now - self._sent >= BEAT_SECONDS:
            self._sent = now
            self._send(self.beat())

    def _slowest(self) -> dict[str, float]:
        now = self._clock()
        requests, seconds = Counter(self._requests), dict(self._seconds)
        for host, begun in list(self._under_way.values()):
            requests[host] += 1
            seconds[host] = seconds.get(host, 0.0) + now - begun
        means = {host[:MAX_HOST_LETTERS]: seconds[host] / number for host, number in requests.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1])[:SHOWN_HOSTS])


_PULSE: ContextVar[Pulse | None] = ContextVar("headrace.pulse", default=None)


@contextlib.contextmanager
def pulse(send: Callable[[Beat], None]) -> Iterator[Pulse]:
    """Count what is counted inside."""
    begun = Pulse(send)
    token = _PULSE.set(begun)
    try:
        yield begun
    finally:
        _PULSE.reset(token)


def counting(send: Callable[[Beat], None]) -> Pulse:
    """Count what is counted in this context from now on; for a context that is a unit's own."""
    begun = Pulse(send)
    _PULSE.set(begun)
    return begun


def beat(*, failed: str | None = None, **counts: int) -> None:
    """Count what was just done, for example `beat(rows=1, bytes=1234)` or `beat(rows=1, failed="timeout")`.

    Without arguments: only show that the unit is alive.
    """
    current = _PULSE.get()
    if current is not None:
        current.count(counts, failed)


@contextlib.asynccontextmanager
async def beating() -> AsyncIterator[None]:
    """Show that the unit is alive while the event loop waits."""

    async def go_on() -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beat()

    task = asyncio.get_running_loop().create_task(go_on())
    try:
        yield
    finally:
        task.cancel()


def expect(**counts: int) -> None:
    """Say how much this unit will count, for the time that is left: `expect(rows=10_000)`."""
    current = _PULSE.get()
    if current is not None:
        current.expect(counts)


def waiting(host: str) -> contextlib.AbstractContextManager[None]:
    """Count the time inside as a request to `host`."""
    current = _PULSE.get()
    return contextlib.nullcontext() if current is None else current.waiting(host)

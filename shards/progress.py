"""How far a run is: what its driver knows, and tells whoever watches."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.shards.heartbeat import Beat

log = logging.getLogger(__name__)

R = TypeVar("R")

TELL_SECONDS = 0.2
RATE_SECONDS = 60.0
"""Rates are over the last minute, so that they follow what happens."""
MAIN_COUNTERS = ("rows", "images", "samples", "members")
"""The first of these that is counted is what rate and remaining time are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is. It never decides anything."""

    done: int
    """Units, or steps, that are done."""
    total: int
    noun: str = "shards"
    """What `done` counts."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What units have counted, of those under way too: rows, images, bytes."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By class."""
    hosts: Mapping[str, float] = field(default_factory=dict)
    """The slowest hosts of the units under way: seconds a request."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """What `counts` will be at the end, if units not begun yet are like the others."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """`counts` a second, over the last minute."""
    elapsed_seconds: float = 0.0
    left_seconds: float | None = None
    """Time until the end at this rate; None while nobody can know."""

    @property
    def main(self) -> str | None:
        """The counter that says best how far it is."""
        return next((name for name in MAIN_COUNTERS if name in self.counts or name in self.expected), None)


OnProgress = Callable[[Progress], None]
"""Called from the driver's own thread, a few times a second at most and after each unit."""


def no_progress(_: Progress) -> None:
    """Ignore progress."""


class Tally(Generic[R]):
    """Results and heartbeats of a run, by the number of the unit."""

    def __init__(
        self,
        names: Sequence[str],
        on_progress: OnProgress,
        on_result: Callable[[int, R], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.results: dict[int, R] = {}
        self._names = names
        self._num_units = len(names)
        self._on_progress = on_progress
        self._on_result = on_result
        self._clock = clock
        self._begun = self._told = clock()
        self._running: dict[int, Beat] = {}
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()
        self._past: deque[tuple[float, Counter[str]]] = deque([(self._begun, Counter())])

    def heard(self, number: int, beat: Beat) -> None:
        """Take the newest heartbeat of a unit; one that comes after its result tells nothing new."""
        if number not in self.results:
            self._running[number] = beat

    def ended(self, number: int, result: R, beat: Beat) -> None:
        """Take the result of a unit and what it counted in all."""
        self.results[number] = result
        self._running.pop(number, None)
        self._counts.update(beat.counts)
        self._failures.update(beat.failures)
        self._expected.update(beat.expected)
        counted = ", ".join(f"{name} {count}" for name, count in {**beat.counts, **beat.failures}.items())
        done = len(self.results)
        log.info("unit %s: done (%d of %d): %s", self._names[number], done, self._num_units, counted or "no counts")
        if self._on_result is not None:
            self._on_result(number, result)
        self.tell()

    def died(self, number: int) -> None:
        """Forget what a unit counted, as it will begin again."""
        self._running.pop(number, None)

    def tell_if_due(self) -> None:
        """Tell the watcher, unless it was told just now."""
        if self._clock() - self._told >= TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tell the watcher."""
        self._told = self._clock()
        self._on_progress(self.progress())

    def progress(self) -> Progress:
        """Return how far the run is."""
        counts, failures, expected = Counter(self._counts), Counter(self._failures), Counter(self._expected)
        hosts: dict[str, float] = {}
        for beat in self._running.values():
            counts.update(beat.counts)
            failures.update(beat.failures)
            expected.update(beat.expected)
            for host, seconds in beat.hosts.items():
                hosts[host] = max(seconds, hosts.get(host, 0.0))
        begun = len(self.results) + len(self._running)
        scale = self._num_units / begun if begun else 0.0
        expected = Counter({name: round(number * scale) for name, number in expected.items()})
        rates = self._rates(counts)
        return Progress(
            done=len(self.results),
            total=self._num_units,
            counts=dict(counts),
            failures=dict(failures),
            hosts=hosts,
            expected=dict(expected),
            rates=rates,
            elapsed_seconds=self._clock() - self._begun,
            left_seconds=self._left(counts, expected, rates),
        )

    def _rates(self, counts: Counter[str]) -> dict[str, float]:
        now = self._clock()
        if now - self._past[-1][0] >= 1.0:
            self._past.append((now, counts))
        while len(self._past) > 1 and now - self._past[0][0] > RATE_SECONDS:
            self._past.popleft()
        then, before = self._past[0]
        seconds = now - then
        # A unit whose worker died takes its counts with it.
        return {name: max(0, number - before[name]) / seconds for name, number in counts.items()} if seconds else {}

    def _left(self, counts: Mapping[str, int], expected: Mapping[str, int], rates: Mapping[str, float]) -> float | None:
        for name, number in expected.items():
            if rates.get(name):
                return max(0, number - counts.get(name, 0)) / rates[name]
        done = len(self.results)
        return (self._num_units - done) * (self._clock() - self._begun) / done if done and not expected else None

"""Where each rank is, told to the others in the store that all ranks met in.

A rank that hangs says nothing of it. So each rank says every few seconds where its main thread is, and those that wait
look for who is behind, or silent. A thread tells and looks, as the main thread may wait in C++, and as the store may be
kept by the very process that hangs.
"""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Phase = Literal["", "data", "forward", "backward", "update", "saving", "looking"]
"""What a rank is at; '' = something else: the start, what comes between two steps, the end."""
STEPPING: tuple[Phase, ...] = ("data", "forward", "backward", "update")

NAMING_RANKS = 2
"""So many ranks look for who is missing: two, as one of them may be it."""
SHOWN_RANKS = 8
PARTING_LOOK_SECONDS = 0.05

log = logging.getLogger(__name__)


class At(NamedTuple):
    """Where a rank is. Ranks at the same place have the same `number` and `moves`; those behind have less."""

    number: int = 0
    """Of shared calls: odd inside one, even between two."""
    moves: int = 0
    """Phases begun since."""
    phase: Phase = ""
    step: int = 0
    """Steps done when the latest began."""
    where: str = ""
    """The shared call, or the last one."""
    since: float = 0.0
    """On the clock of `time.monotonic`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a rank said of itself."""

    count: int
    """Of its beats: a rank whose count does not grow is silent."""
    number: int
    moves: int
    phase: Phase
    step: int
    seconds: float
    """How long it has been there."""
    code: str
    """The line of Python that its main thread is at."""


@dataclass(slots=True)
class Seen:
    """What another rank knows of one."""

    beat: Beat
    quiet: float = 0.0
    """Seconds since its count last grew, as far as it was looked at."""


class Presence:
    """Where this rank is, told to the others, and where the others are."""

    def __init__(
        self, rank: int, size: int, store: Any, *, tell_after_seconds: float, kept_by_first: bool = False
    ) -> None:
        self.rank, self.size, self.kept_by_first = rank, size, kept_by_first
        self.period = tell_after_seconds / 4
        """Seconds between two beats."""
        self.after_beat: Callable[[Mapping[int, Seen]], None] = lambda _: None
        """Called in the thread after each beat, with what this rank has seen of the others since it stands."""
        self.look_after = float("inf")
        """Seconds at one place after which this rank looks, also if it is not one of the first."""
        self.steps_begun = 0
        """By this process."""
        self.verdict = ""
        """Why this rank is to end; whoever waits for others looks at it."""
        self.leaving = threading.Event()
        """Set once the main thread leaves by the verdict."""
        self.answered_at = time.monotonic()
        """When the store last answered."""
        self._store, self._tell_after = store, tell_after_seconds
        self._main = threading.get_ident()
        self.at = At(since=time.monotonic())
        self._seen: dict[int, Seen] = {}
        self._missing: list[int] | None = None
        # When the store was asked something that it has not answered; 0 = it has.
        self._asked = 0.0
        self._count, self._warn_at, self._last = 0, 2 * tell_after_seconds, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to tell and to look."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for, as the store may hang."""
        self._ended.set()

    def part(self, seconds: float) -> None:
        """Return when every rank has come here, after `seconds` at most: the shared calls of this one are over."""
        # A thread, as the store may hang.
        parting = threading.Thread(target=self._part, args=(time.monotonic() + seconds,), name="parting", daemon=True)
        parting.start()
        parting.join(seconds)

    def _part(self, until: float) -> None:
        keys = [f"parted/{rank}" for rank in range(self.size)]
        with contextlib.suppress(Exception):  # whoever keeps the store may be gone
            self._store.set(keys[self.rank], "")
            while not self._store.check(keys) and time.monotonic() < until:
                time.sleep(PARTING_LOOK_SECONDS)

    def comes(self, where: str) -> None:
        """Note that this rank comes to the next call that all ranks share."""
        self._move(number=self.at.number + 1, moves=0, where=where)

    def leaves(self) -> None:
        """Note that the shared call is over."""
        self._move(number=self.at.number + 1, moves=0)

    def enters(self, phase: Phase, step: int | None = None) -> None:
        """Note what this rank is at from here on."""
        at = self.at
        self.steps_begun += phase == "data"
        self._move(moves=at.moves + 1, phase=phase, step=at.step if step is None else step)

    def _move(self, **changes: Any) -> None:
        self._missing = None
        self.at = self.at._replace(since=time.monotonic(), **changes)

    def missing(self) -> str:
        """Return who does not wait where this rank does, as far as it is known; '' = not known."""
        missing = self._missing
        if self.kept_by_first and self._asked and time.monotonic() - self._asked > self._tell_after / 2:
            missing = [0]  # the store does not answer, and rank 0 keeps it
        return named(missing) if missing else ""

    def tell_all(self, key: str, text: str) -> None:
        """Leave `text` in the store; called in the thread."""
        self._store.set(key, text)

    def told(self, key: str) -> str:
        """Return what a rank left under `key`, '' for nothing; called in the thread."""
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _watch(self) -> None:
        while not self._ended.wait(self.period):
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """Tell where this rank is at the time `now`, and look for the others if it stands; the thread does so."""
        # A process that was suspended must not take its own sleep for the others' silence.
        passed, self._last = min(now - self._last, 2 * self.period), now
        self._count, at = self._count + 1, self.at
        stays = now - at.since
        # A store that is gone is no news here: its process is, and the main thread says so.
        with contextlib.suppress(Exception):  # the library has errors of several kinds
            self._asked = now
            self._store.set(f"beat/{self.rank}", self._beat(self._count, at, stays))
            if (self.rank < NAMING_RANKS and stays >= self._tell_after / 2) or stays >= self.look_after:
                self._look(at, passed, may_miss=stays >= self._tell_after)
            else:
                self._seen.clear()
            self._asked, self.answered_at = 0.0, time.monotonic()
            self.after_beat(self._seen)
        if at.number % 2 == 0 and stays >= self._warn_at and self.missing():
            self._warn(stays)
            self._warn_at *= 2
        elif stays < self._tell_after:
            self._warn_at = 2 * self._tell_after

    def _warn(self, stays: float) -> None:
        """Speak of a rank that is missed where the main thread cannot: it waits for gradients in C++."""
        where = f" behind {self.at.where}" if self.at.where else ""
        text = "rank %d of %d has computed for %.0f s%s, and %s does not answer: it may hang"
        log.warning(text, self.rank, self.size, stays, where, self.missing())

    def _beat(self, count: int, at: At, stays: float) -> str:
        return json.dumps([count, at.number, at.moves, at.phase, at.step, round(stays, 1), line_of(self._main)])

    def _look(self, at: At, passed: float, *, may_miss: bool) -> None:
        keys = [f"beat/{rank}" for rank in range(self.size)]
        # One question where all are there, as they are but for the start.
        there = keys if self._store.check(keys) else [key for key in keys if self._store.check([key])]
        for key, told in zip(there, self._store.multi_get(there) if there else [], strict=True):
            rank, beat = int(key.removeprefix("beat/")), _read_beat(told)
            seen = self._seen.setdefault(rank, Seen(beat))
            seen.quiet = seen.quiet + passed if seen.beat.count == beat.count and rank != self.rank else 0.0
            seen.beat = beat
        late = [rank for rank in range(self.size) if rank != self.rank and self._is_late(rank, at.number)]
        if self.at is at:
            self._missing = late if may_miss else None

    def _is_late(self, rank: int, number: int) -> bool:
        seen = self._seen.get(rank)
        return seen is None or seen.beat.number < number or seen.quiet >= self._tell_after


def _read_beat(told: bytes) -> Beat:
    count, number, moves, phase, step, seconds, code = json.loads(told)
    return Beat(count=count, number=number, moves=moves, phase=phase, step=step, seconds=seconds, code=code)


def named(ranks: Sequence[int]) -> str:
    """Return the ranks as they are spoken of."""
    names = ", ".join(str(rank) for rank in ranks[:SHOWN_RANKS])
    rest = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank {names}{rest}" if len(ranks) == 1 else f"ranks {names}{rest}"


def line_of(thread: int) -> str:
    """Return the line of Python that a thread is at: file and function, without the machine's folders."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    code = frame.f_code
    return f"{'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno} in {code.co_name}"

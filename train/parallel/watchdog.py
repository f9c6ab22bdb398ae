"""A run that stands still ends itself: in a stated time, naming the rank that holds it up and where that rank is.

One rank that hangs makes all stand: they wait for it in a sum, or in C++ for its gradients, where no exception reaches.
So a thread of each process looks whether its main thread moves. Nothing that lasts is taken for a hang: not the first
step, which compiles, not a save or a validation, and not a rank that is slow but moves.
"""

import contextlib
import faulthandler
import json
import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.train.parallel.presence import NAMING_RANKS, STEPPING, At, Beat, Phase, Presence, Seen, named

MIN_SECONDS = 300.0
STEPS_LONG = 20.0
"""Where no time is given: so many median steps, and at least MIN_SECONDS."""
MEDIAN_OF = 100
SHOWN_PLACES = 3
KEY = "hang"
MAX_PERIOD_SECONDS = 5.0
# The first step of a process compiles and waits for the first batch: it may take what it takes.
FIRST_WATCHED = 2
# Of the time that a rank may stand: after which a rank that says nothing counts as silent, and one that could not
# look after itself has its stacks dumped.
QUIET_SHARE = 1 / 3
DUMP_SHARE = 0.9
# The first two ranks judge; the others so much later, if those could not.
OTHERS_LATER = 1.25
# A main thread that waits in Python leaves by itself, in an error that all contexts see; one in C++ cannot.
LEAVING_SECONDS = 5.0
CLOSING_SECONDS = 120.0
STDERR = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HangLimits:
    """How long a rank may stand still."""

    seconds: float | None = None
    """In one phase of a step; None = by the steps so far."""
    data_seconds: float = 0.0
    """What waiting for data may take longer: an outage that the stream rides out."""
    most_seconds: float = float("inf")
    """Never longer than this, waiting for data aside."""

    def of_step(self, steps: "deque[float]") -> float:
        """Return the seconds that a phase may take, `steps` being the latest."""
        seconds = self.seconds
        if seconds is None:
            seconds = max(MIN_SECONDS, STEPS_LONG * statistics.median(steps)) if steps else MIN_SECONDS
        return min(seconds, self.most_seconds)

    def of(self, phase: Phase, step_limit: float) -> float:
        """Return the seconds that a rank may stand in `phase`; infinite for what may last."""
        if phase not in STEPPING:
            return float("inf")
        return step_limit + (self.data_seconds if phase == "data" else 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who holds the run up."""

    ranks: list[int]
    text: str


def judge(seen: Mapping[int, Seen], size: int, *, limit: Callable[[Phase], float], quiet: float) -> Verdict | None:
    """Return who holds up a run in which the caller has not moved for long; None if it may still go on.

    `quiet` are seconds after which one that says nothing is silent.
    """
    silent = [rank for rank in range(size) if rank not in seen or seen[rank].quiet >= quiet]
    if silent:
        known = {rank: seen[rank].beat for rank in silent if rank in seen}
        last = f"; last heard of: {_places(known)}" if known else ""
        text = f"{named(silent)} {_verb(silent)} not answer: stopped, or the machine is gone{last}"
        return Verdict(ranks=silent, text=text)
    beats = {rank: one.beat for rank, one in seen.items()}
    first = min((beat.number, beat.moves) for beat in beats.values())
    behind = {rank: beat for rank, beat in sorted(beats.items()) if (beat.number, beat.moves) == first}
    if any(beat.seconds < limit(beat.phase) for beat in behind.values()):
        return None
    if len(behind) == size > 1:
        text = f"no rank is behind the others, so what they exchange does not arrive: {_places(behind)}"
        return Verdict(ranks=list(behind), text=text)
    return Verdict(ranks=list(behind), text=f"held up by {_places(behind)}")


def _verb(ranks: list[int]) -> str:
    return "does" if len(ranks) == 1 else "do"


def _places(beats: Mapping[int, Beat]) -> str:
    """Return where ranks are, those of one place together."""
    places: dict[str, list[int]] = {}
    for rank, beat in beats.items():
        code = f" at {beat.code}" if beat.code else ""
        places.setdefault(f"{beat.phase or 'between steps'} of step {beat.step + 1}{code}", []).append(rank)
    shown = [f"{named(ranks)} in {place}" for place, ranks in list(places.items())[:SHOWN_PLACES]]
    rest = len(places) - len(shown)
    return ", ".join(shown) + (f", and {rest} more places" if rest else "")


class Watchdog:
    """Watches the main thread of one process, and ends the process where the run stands still."""

    def __init__(
        self, presence: Presence, limits: HangLimits, folder: Path, *, leave: Callable[[int], None] = os._exit
    ) -> None:
        self._presence, self._limits, self._folder, self._leave = presence, limits, folder, leave
        self._steps: deque[float] = deque(maxlen=MEDIAN_OF)
        self._begun, self._since = presence.steps_begun, time.monotonic()
        self._at: At = presence.at
        # How long the main thread has not moved. Not by the clock: a suspended process comes back to a late one.
        self._stood, self._last = 0.0, self._since
        self._verdict: Verdict | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._set_periods()
        presence.after_beat = self._look

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        self._ended.set()
        self._presence.after_beat = lambda _: None
        faulthandler.cancel_dump_traceback_later()

    def _set_periods(self) -> None:
        self._limit = self._limits.of_step(self._steps)
        self._period = min(MAX_PERIOD_SECONDS, self._limit / 16)
        self._presence.period = min(self._presence.period, self._limit / 16)
        # All ranks save for minutes on end, and the table of thousands is large.
        self._presence.look_after = self._limit if self._at.phase in STEPPING else float("inf")

    def _watch(self) -> None:
        while not self._ended.wait(self._period):
            if self.is_to_end(time.monotonic()):
                self._end()
                return

    def is_to_end(self, now: float) -> bool:
        """Look whether the main thread moves at the time `now`: True once it is judged that it never will."""
        self._stood, self._last = self._stood + min(now - self._last, 2 * self._period), now
        self._follow(now)
        if self._presence.steps_begun < FIRST_WATCHED:
            return False
        # By a thread of C: it speaks also where the interpreter is held, and this thread is not.
        faulthandler.dump_traceback_later(DUMP_SHARE * self._limit, file=STDERR)
        if not self._presence.verdict and self._stood >= OTHERS_LATER * self._limit:
            self._blame_the_store(now)
        return bool(self._presence.verdict)

    def _follow(self, now: float) -> None:
        """Note where the main thread is, and how long its steps take."""
        begun, at = self._presence.steps_begun, self._presence.at
        if begun > self._begun:
            if self._begun:
                self._steps.append((now - self._since) / (begun - self._begun))
            self._begun, self._since = begun, now
        if at is not self._at:
            self._at, self._stood = at, 0.0
            self._set_periods()

    def _look(self, seen: Mapping[int, Seen]) -> None:
        """Judge, or take what another rank judged; called in the thread of the presence."""
        presence, limit = self._presence, self._limit
        if presence.steps_begun < FIRST_WATCHED or self._stood < limit / 2 or presence.verdict:
            return
        if told := presence.told(KEY):
            self._take(Verdict(**json.loads(told)))
            return
        if seen and self._stood >= (limit if presence.rank < NAMING_RANKS else OTHERS_LATER * limit):
            verdict = judge(
                seen, presence.size, limit=lambda phase: self._limits.of(phase, limit), quiet=limit * QUIET_SHARE
            )
            if verdict is not None:
                presence.tell_all(KEY, json.dumps(asdict(verdict)))
                # This rank may keep the store: the others read it before they lose it.
                time.sleep(3 * presence.period)
                self._take(verdict)

    def _blame_the_store(self, now: float) -> None:
        """Judge where nothing is known of the others, as the store does not answer either."""
        presence = self._presence
        if now - presence.answered_at < QUIET_SHARE * self._limit:
            return
        if presence.kept_by_first and presence.rank:
            self._take(Verdict(ranks=[0], text="rank 0 does not answer, nor the store of the ranks, which it keeps"))
        elif self._at.phase in STEPPING:
            text = "the store of the ranks does not answer: torchrun on the first machine, or that machine, is gone"
            self._take(Verdict(ranks=[], text=text))

    def _take(self, verdict: Verdict) -> None:
        presence = self._presence
        self._verdict = verdict
        presence.verdict = (
            f"rank {presence.rank} of {presence.size}: the run has stood still for {self._stood:.0f} s, hang_seconds "
            f"is {self._limit:g}: {verdict.text}; start the same command again, it continues from the newest checkpoint"
        )

    def _end(self) -> None:
        """Leave, once the main thread has had its time to leave by itself."""
        presence = self._presence
        if self._verdict is not None and presence.rank in self._verdict.ranks:
            self._dump()
        if presence.leaving.wait(LEAVING_SECONDS):
            if self._ended.wait(CLOSING_SECONDS):
                return
        else:
            log.error("%s", presence.verdict)
        self._leave(1)

    def _dump(self) -> None:
        """Write what all threads of this process are at."""
        path = self._folder / f"hang-{self._at.step:08d}-rank{self._presence.rank}.txt"
        try:
            with path.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            log.error("%s: where this rank stands could not be written: %s", path, error)
            return
        log.error("rank %d: where its threads stand is in %s", self._presence.rank, path)


@contextlib.contextmanager
def watching(presence: Presence | None, limits: HangLimits, folder: Path) -> Iterator[None]:
    """End this process where the run stands still inside this context; without a presence nothing is watched."""
    if presence is None:
        yield
        return
    watchdog = Watchdog(presence, limits, folder)
    watchdog.start()
    with contextlib.closing(watchdog):
        yield

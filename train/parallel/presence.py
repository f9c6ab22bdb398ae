"""Which rank does not come: each that waits long says so in the store that all ranks met in.

A rank that hangs says nothing. So those that wait look for who is missing, and name it. A thread tells and looks, as
the main thread may wait in C++, and as the store may be kept by the very process that hangs.
"""

import contextlib
import logging
import threading
import time
from typing import Any

NAMING_RANKS = 2
"""So many ranks look for who is missing: two, as one of them may be it."""
SHOWN_RANKS = 8

log = logging.getLogger(__name__)


class Presence:
    """Where this rank is, told to the others once it stays there for long."""

    def __init__(
        self, rank: int, size: int, store: Any, *, tell_after_seconds: float, kept_by_first: bool = False
    ) -> None:
        self.rank, self.size, self._kept_by_first = rank, size, kept_by_first
        self._store, self._tell_after = store, tell_after_seconds
        # The number is the same on all ranks that are at the same place: odd in a shared call, even between two.
        self._number, self._where, self._since = 0, "", time.monotonic()
        self._missing: list[int] | None = None
        # When the store was asked something that it has not answered; 0 = it has.
        self._asked = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to tell and to look."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for, as the store may hang."""
        self._ended.set()

    def comes(self, where: str) -> None:
        """Note that this rank comes to the next call that all ranks share."""
        self._move(where)

    def leaves(self) -> None:
        """Note that the shared call is over."""
        self._move(self._where)

    def _move(self, where: str) -> None:
        self._missing = None
        self._number, self._where, self._since = self._number + 1, where, time.monotonic()

    def missing(self) -> str:
        """Return who does not wait where this rank does, as far as it is known; '' = not known."""
        missing = self._missing
        if self._kept_by_first and self._asked and time.monotonic() - self._asked > self._tell_after / 2:
            missing = [0]  # the store does not answer, and rank 0 keeps it
        if not missing:
            return ""
        names = ", ".join(str(rank) for rank in missing[:SHOWN_RANKS])
        rest = f" and {len(missing) - SHOWN_RANKS} more" if len(missing) > SHOWN_RANKS else ""
        return f"rank {names}{rest}" if len(missing) == 1 else f"ranks {names}{rest}"

    def _watch(self) -> None:
        told, warn_at = -1, 0.0
        while not self._ended.wait(self._tell_after / 4):
            number, stays = self._number, time.monotonic() - self._since
            if stays < self._tell_after:
                continue
            # A store that is gone is no news here: its process is, and the main thread says so.
            with contextlib.suppress(Exception):  # the library has errors of several kinds
                self._asked = time.monotonic()
                if number != told:
                    self._store.set(f"waits/{self.rank}", str(number))
                    told, warn_at = number, 2 * self._tell_after
                elif self.rank < NAMING_RANKS:
                    self._look(number)
                self._asked = 0.0
            if number % 2 == 0 and stays >= warn_at and self.missing():
                self._warn(stays)
                warn_at *= 2

    def _warn(self, stays: float) -> None:
        """Speak of a rank that is missed where the main thread cannot: it waits for gradients in C++."""
        where = f" behind {self._where}" if self._where else ""
        text = "rank %d of %d has computed for %.0f s%s, and %s does not answer: it may hang"
        log.warning(text, self.rank, self.size, stays, where, self.missing())

    def _look(self, number: int) -> None:
        missing = [rank for rank in range(self.size) if rank != self.rank and self._told_by(rank) < number]
        if self._number == number:
            self._missing = missing

    def _told_by(self, rank: int) -> int:
        """Return the number of the call that a rank last said it waits in."""
        key = f"waits/{rank}"
        if not self._store.check([key]):
            return -1
        return int(self._store.get(key).decode())

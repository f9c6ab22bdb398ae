"""The limit of all requests at a time: down where much fails, up while that brings more.

Every few seconds the answers of that time are looked at. Where many hosts let time run out or cannot be looked up, the
way there is too narrow (a router, a name server): fewer requests. Where the limit is what holds requests back and more
of them brought more answers, more requests; where it brought nothing, the step is taken back.
"""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_LIMIT = 64
"""As many are made at once to begin with, if `fetch.concurrency` is no less."""
LEAST_LIMIT = 8
LOOK_SECONDS = 5.0
MIN_ANSWERS = 20
MIN_HOSTS = 8
"""So many answers and failing hosts before failures say something about this machine's own way."""
TROUBLED_SHARE = 0.4
CUT = 0.7
RAISE = 1.3
WORTH = 1 / 6
"""A raise must bring this part of itself in answers, or it is taken back: of 30 % more requests, 5 %."""
REST_LOOKS = 12
"""After a step that brought nothing, so many looks pass before the next one."""


class Throttle:
    """Moves one limit, at most `most`."""

    def __init__(self, most: int, move: Callable[[int], None]) -> None:
        self.limit = min(most, FIRST_LIMIT)
        self._most = most
        self._move = move
        self._answers = self._failures = 0
        self._failing: set[str] = set()
        self._held_back = False
        self._before_raise: tuple[int, float] | None = None
        self._rest = 0
        self._looked: float | None = None

    def answered(self, host: str, *, troubled: bool) -> None:
        """Count one attempt that ended; `troubled`: time ran out, or the name server gave no answer."""
        self._answers += not troubled
        self._failures += troubled
        if troubled:
            self._failing.add(host)

    def look(self, now: float, *, held_back: bool) -> None:
        """Judge what was counted, if it is time. `held_back`: requests wait for a place at this moment."""
        self._held_back = self._held_back or held_back
        if self._looked is None:
            self._looked = now
        seconds = now - self._looked
        if seconds < LOOK_SECONDS:
            return
        ended, rate = self._answers + self._failures, self._answers / seconds
        if self._failures > TROUBLED_SHARE * ended and ended >= MIN_ANSWERS and len(self._failing) >= MIN_HOSTS:
            self._set(max(min(LEAST_LIMIT, self._most), int(self.limit * CUT)), "much fails")
            self._before_raise, self._rest = None, REST_LOOKS
        elif self._before_raise is not None:
            self._judge_raise(rate)
        elif self._rest:
            self._rest -= 1
        elif self._held_back and self.limit < self._most and ended >= MIN_ANSWERS:
            self._before_raise = (self.limit, rate)
            self._set(min(self._most, int(self.limit * RAISE) + 1), "requests wait for a place")
        self._answers = self._failures = 0
        self._failing.clear()
        self._held_back, self._looked = held_back, now

    def _judge_raise(self, rate: float) -> None:
        assert self._before_raise is not None
        limit, before = self._before_raise
        self._before_raise = None
        if rate < before * (1 + WORTH * (self.limit / limit - 1)):
            self._rest = REST_LOOKS
            self._set(limit, "more brought nothing")

    def _set(self, limit: int, why: str) -> None:
        if limit == self.limit:
            return
        log.info("%d -> %d requests at a time: %s", self.limit, limit, why)
        self.limit = limit
        self._move(limit)

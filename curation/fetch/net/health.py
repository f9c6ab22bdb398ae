"""Does a host answer, and does this machine's own network?

That a host cannot be reached says something about the host only while others can be. So a failure counts once anybody
has answered after its attempt began, or a host that answered before can still be connected to. Until then it waits: an
outage of one's own network is no answer of any server. A host that fails again and again is left alone for a while.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from yarl import URL

from headrace.curation.fetch.errors import FetchError

log = logging.getLogger(__name__)

UNREACHED = ("connect", "dns", "timeout")
"""Error classes that a host and the way to it may both be the cause of."""

MAX_WITNESSES = 8
MIN_WITNESSES = 3
"""Hosts that must have answered before their silence says something about the network."""
MIN_SILENT_HOSTS = 20
FIRST_WAIT_SECONDS = 1.0
MAX_WAIT_SECONDS = 30.0

DEAD_AFTER = 8
"""Attempts in a row that failed, the last one an attempt's time or more after the first: then a host is asked once in
DEAD_SECONDS. Measured from the first's end, as an overloaded host lets one attempt hang and answers the others."""
SLOW_AFTER = 3
"""Answers in a row that dripped: then too, as each was watched from its first byte on."""
DEAD_SECONDS = 30.0
MAX_STREAKS = 100_000


@dataclass(slots=True)
class _Streak:
    """Failed attempts at one host without an answer between them."""

    began: float
    asked: float
    error_class: str
    failed: float
    """When the last attempt ended."""
    attempts: int = 0
    slow: int = 0
    """Of these, answers that dripped."""
    is_told: bool = False
    """Others know that the host is dead, or said so."""


class Health:
    """What is known of the hosts of one client. Use it inside a running loop."""

    def __init__(
        self,
        probe: Callable[[URL], Awaitable[bool]],
        *,
        outage_seconds: float,
        attempt_seconds: float,
        on_dead: Callable[[str, str], None] = lambda _host, _error_class: None,
    ) -> None:
        """`on_dead` hears of each host that is left alone from now on, and of the class it failed with."""
        self._probe = probe
        self._on_dead = on_dead
        self._outage_seconds = outage_seconds
        self._attempt_seconds = attempt_seconds
        self._streaks: dict[str, _Streak] = {}
        self._witnesses: OrderedDict[str, URL] = OrderedDict()
        self._silent: set[str] = set()
        self._heard_at = self._back_at = float("-inf")
        self._lock = asyncio.Lock()

    def heard(self, url: URL, *, witness: bool = True) -> None:
        """Note that something came back from a host; a witness answered, so that it can be asked again."""
        self._heard_at = asyncio.get_running_loop().time()
        host = url.raw_host or ""
        if witness:
            self._witnesses[host] = url
            self._witnesses.move_to_end(host)
            while len(self._witnesses) > MAX_WITNESSES:
                self._witnesses.popitem(last=False)

    def check_host(self, host: str) -> None:
        """Raise FetchError for a host that has failed for so long that it is not asked again yet."""
        streak, now = self._streaks.get(host), asyncio.get_running_loop().time()
        if streak is None or not self._is_dead(streak, now):
            return
        if now - streak.asked < DEAD_SECONDS:
            error = FetchError(streak.error_class, "the host did not answer other rows; not asked again")
            error.stands_for = streak.failed
            error.not_asked = True
            raise error
        streak.asked = now

    def is_dead(self, host: str) -> bool:
        """True if a host has failed for so long that asking it twice for one row is in vain."""
        streak = self._streaks.get(host)
        return streak is not None and self._is_dead(streak, asyncio.get_running_loop().time())

    def _is_dead(self, streak: _Streak, now: float) -> bool:
        if streak.is_told or streak.slow >= SLOW_AFTER:
            return True
        return streak.attempts >= DEAD_AFTER and now - streak.began >= self._attempt_seconds

    @property
    def has_heard(self) -> bool:
        """True if anybody has answered: then a silent host says something about itself."""
        return self._heard_at > float("-inf")

    def succeeded(self, host: str) -> None:
        """Note a whole answer, whatever it says."""
        self._streaks.pop(host, None)

    def failed(self, host: str, error_class: str, *, slow: bool = False) -> None:
        """Note the end of an attempt without one."""
        now = asyncio.get_running_loop().time()
        streak = self._streak(host, error_class, now)
        streak.attempts, streak.failed = streak.attempts + 1, now
        streak.slow += slow
        if self._is_dead(streak, now) and not streak.is_told:
            streak.is_told, streak.asked = True, now
            log.info("%s: %d attempts without a whole answer; it is asked less", host, streak.attempts)
            self._on_dead(host, error_class)

    def told(self, host: str, error_class: str, seconds_ago: float) -> None:
        """Take the word of another process that a host does not answer."""
        if error_class not in UNREACHED:
            return
        now = asyncio.get_running_loop().time()
        streak = self._streak(host, error_class, now)
        if not streak.is_told:
            streak.is_told, streak.asked = True, now - seconds_ago

    def _streak(self, host: str, error_class: str, now: float) -> _Streak:
        if len(self._streaks) > MAX_STREAKS:
            del self._streaks[next(iter(self._streaks))]
        return self._streaks.setdefault(host, _Streak(now, now, error_class, now))

    async def was_outage(self, host: str, began: float) -> bool:
        """True if an attempt that began then and reached nobody must be made again: the network was down, and is back.

        Raises ConnectionError if it does not come back in time.
        """
        if not self.has_heard:  # counted until then: a web crawl meets millions
            self._silent.add(host)
        if not self._outage_seconds or len(self._witnesses) < MIN_WITNESSES:
            return False
        async with self._lock:
            if self._back_at > began:
                return True
            if self._heard_at > began or await self._someone_answers():
                return False
            await self._wait_for_network()
            return True

    async def _wait_for_network(self) -> None:
        loop = asyncio.get_running_loop()
        began, wait = loop.time(), FIRST_WAIT_SECONDS
        log.warning("no host can be reached, %s neither: waiting for the network", ", ".join(self._asked()))
        while not await self._someone_answers():
            if loop.time() - began > self._outage_seconds:
                raise ConnectionError(
                    f"no host could be reached for {self._outage_seconds:g} s (fetch.outage_seconds), "
                    f"{', '.join(self._asked())} neither, which answered before; what is not committed is not lost: "
                    "run the same command again when the network is back"
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)
        log.warning("the network is back after %.0f s", loop.time() - began)
        self._streaks.clear()
        self._back_at = self._heard_at

    def _asked(self) -> list[str]:
        return list(self._witnesses)[-MIN_WITNESSES:]

    async def _someone_answers(self) -> bool:
        """Connect to hosts that answered before, and look their names up anew."""
        found = await asyncio.gather(*(self._probe(self._witnesses[host]) for host in self._asked()))
        if any(found):
            self._heard_at = asyncio.get_running_loop().time()
        return any(found)

    def check_anyone_answered(self) -> None:
        """Raise ConnectionError if many hosts were asked and none came back with anything at all."""
        if self._outage_seconds and self._heard_at == float("-inf") and len(self._silent) >= MIN_SILENT_HOSTS:
            raise ConnectionError(
                f"none of {len(self._silent)} hosts could be reached: is the network up? Nothing of this shard was "
                "committed; run the same command again, or set fetch.outage_seconds=0 to take this for an answer"
            )

"""May this URL be asked for? Judged by what its site says, which is read once for each site.

robots.txt by RFC 9309: what is not there (4xx, more than five redirects) allows everything; a site that cannot be
asked (5xx, 429, no answer) is left alone for now, and its rows fail with the class of that failure, which a retry tries
again. A missing or broken tdmrep.json says nothing.
"""

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from yarl import URL

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.signals.config import SignalsConfig
from headrace.curation.fetch.signals.headers import OWN_TOKEN
from headrace.curation.fetch.signals.robots import Robots, robots_agent
from headrace.curation.fetch.signals.store import Document, PermissionStore
from headrace.curation.fetch.signals.tdmrep import FILE as TDMREP
from headrace.curation.fetch.signals.tdmrep import Tdmrep

ROBOTS = "/robots.txt"
MAX_SITES = 20_000
"""Sites kept in memory; the others are read from the disk again."""
MAX_RULES = 500_000
"""Rules of all sites in memory, at 1.3 kB each: one file of 500 KiB may hold 28,000."""
MAX_QUICK_RULES = 300
"""A site with more is judged in a thread, one row at a time: 28,000 wildcards take 0.2 s for each URL, in which nothing
else would be read or answered in time."""
UNREACHABLE_SECONDS = 60.0
"""A site whose robots.txt could not be had is not asked again for so long."""

Read = Callable[[URL], Awaitable[bytes]]
"""Returns the first 500 KiB of a file of a site. Raises FetchError."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a site says about one URL."""

    refusal: str | None = None
    """The line that refuses, and where it stands; None: the URL may be asked for."""
    delay_seconds: float = 0.0
    """How long to wait from one request to the next."""


@dataclass(frozen=True, slots=True)
class _Site:
    robots: Robots | None
    tdmrep: Tdmrep | None
    failure: FetchError | None = None
    expires: float = float("inf")

    @property
    def num_rules(self) -> int:
        return sum(part.num_rules for part in (self.robots, self.tdmrep) if part is not None)


class Permission:
    """What is known of every site of one client. Use it inside a running loop."""

    def __init__(self, signals: SignalsConfig, read: Read, *, user_agent: str, folder: str | None) -> None:
        """`folder` keeps what was read for the whole job; None: it is forgotten with this object."""
        agent = robots_agent(user_agent)
        self._signals = signals
        self._read = read
        self._agents: Sequence[str] = (OWN_TOKEN,) if agent is None else (OWN_TOKEN, agent)
        self._store = PermissionStore(folder, max_age_seconds=3600.0 * signals.cache_hours)
        self._sites: OrderedDict[str, asyncio.Task[_Site]] = OrderedDict()
        self._num_rules = 0
        """Of the sites that are known."""
        self._judging = asyncio.Lock()
        self._turns: dict[str, float] = {}
        """Host -> when its next turn may be; who had a turn last stands last."""

    async def ask(self, url: URL) -> Verdict:
        """Return the verdict on one URL. Raises FetchError of the site's robots.txt if that cannot be had now."""
        if not (self._signals.reads_robots or self._signals.tdm_file):
            return Verdict()
        site = await self._site(f"{url.scheme}://{url.host_port_subcomponent}")
        if site.failure is not None:
            raise copy.copy(site.failure)
        if site.num_rules <= MAX_QUICK_RULES:
            return Verdict(self._refusal(site, url), self._delay(site))
        async with self._judging:
            return Verdict(await asyncio.to_thread(self._refusal, site, url), self._delay(site))

    async def take_turn(self, url: URL, delay_seconds: float) -> None:
        """Wait until `delay_seconds` have passed since the last one to this host took its turn."""
        if delay_seconds <= 0.0:
            return
        host, now = url.raw_host or "", asyncio.get_running_loop().time()
        turn = max(now, self._turns.pop(host, 0.0))
        self._turns[host] = turn + delay_seconds
        while len(self._turns) > MAX_SITES and self._turns[oldest := next(iter(self._turns))] <= now:
            del self._turns[oldest]
        await asyncio.sleep(turn - now)

    def close(self) -> None:
        """Let go of what is being read."""
        for task in self._sites.values():
            task.cancel()

    def _refusal(self, site: _Site, url: URL) -> str | None:
        signals, robots = self._signals, site.robots
        found = None
        if robots is not None:
            found = robots.disallows(url) if signals.robots_txt else None
            if found is None and signals.content_usage:
                found = robots.reserves(url, "content-usage")
            if found is None and signals.content_signal:
                found = robots.reserves(url, "content-signal")
        if found is None and site.tdmrep is not None and signals.tdm_file:
            found = site.tdmrep.reserves(url)
        return found

    def _delay(self, site: _Site) -> float:
        return 0.0 if site.robots is None else min(site.robots.crawl_delay_seconds, self._signals.crawl_delay_seconds)

    async def _site(self, origin: str) -> _Site:
        task = self._sites.get(origin)
        if task is None or (task.done() and _is_over(task)):
            while len(self._sites) >= MAX_SITES or self._num_rules > MAX_RULES:
                self._num_rules -= _num_rules(self._sites.popitem(last=False)[1])
            task = asyncio.create_task(self._learn(origin))
            task.add_done_callback(partial(self._count, origin))
            self._sites[origin] = task
        # One who gives up must not cancel it for the others.
        return await asyncio.shield(task)

    def _count(self, origin: str, task: asyncio.Task[_Site]) -> None:
        if self._sites.get(origin) is task:  # it may be forgotten already
            self._num_rules += _num_rules(task)

    async def _learn(self, origin: str) -> _Site:
        wanted = [ROBOTS] if self._signals.reads_robots else []
        wanted += [TDMREP] if self._signals.tdm_file else []
        known = await asyncio.to_thread(self._store.load, origin)
        if not known.keys() >= set(wanted):
            try:
                read = {path: await self._document(origin, path) for path in wanted if path not in known}
            except FetchError as error:
                message = f"robots.txt: {error.message}; the site is not asked for now"
                failure = FetchError(error.error_class, message)
                failure.stands_for, failure.not_asked = error.stands_for, error.not_asked
                return _Site(None, None, failure, asyncio.get_running_loop().time() + UNREACHABLE_SECONDS)
            known = await asyncio.to_thread(self._store.keep, origin, known | read)
        return await asyncio.to_thread(self._parse, known)

    def _parse(self, documents: dict[str, Document]) -> _Site:
        robots, tdmrep = documents.get(ROBOTS), documents.get(TDMREP)
        return _Site(
            Robots(robots.text, self._agents, self._signals.obey_agents) if robots and robots.text else None,
            Tdmrep(tdmrep.text) if tdmrep and tdmrep.text else None,
        )

    async def _document(self, origin: str, path: str) -> Document:
        """Read one file of a site. Raises FetchError if robots.txt is there, or may be, but cannot be had."""
        url = URL(origin + path, encoded=True)
        try:
            text, answer = (await self._read(url)).decode("utf-8-sig", "replace"), "read"
        except FetchError as error:
            if path == ROBOTS and error.error_class not in ("http-4xx", "redirects", "empty"):
                raise
            text, answer = None, error.message
        return Document(str(url), answer, self._store.now(), text)


def _num_rules(task: asyncio.Task[_Site]) -> int:
    if not task.done() or task.cancelled() or task.exception() is not None:
        return 0
    return task.result().num_rules


def _is_over(task: asyncio.Task[_Site]) -> bool:
    return task.cancelled() or task.exception() is not None or task.result().expires < asyncio.get_running_loop().time()

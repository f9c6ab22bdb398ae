"""How many requests are under way: to one host, and in all; both give way to trouble and come back.

A waiting request stands in the queue of its host. Hosts that may be asked take turns, so a slow or busy host keeps no
other waiting. A host that answers 429 or 503, or lets requests time out, gets half as many at a time, and none before
its Retry-After; each good answer gives a part of one back (additive increase, multiplicative decrease, as TCP does).
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

MAX_KEPT_HOSTS = 100_000
CUT_SECONDS = 1.0
"""At most one cut of a host in this time: requests that fail together are one sign."""


@dataclass(slots=True)
class _Host:
    limit: float
    in_flight: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    closed_until: float = float("-inf")
    cut_at: float = float("-inf")

    def is_free(self, now: float) -> bool:
        return self.in_flight < max(1, int(self.limit)) and now >= self.closed_until


class Slots:
    """Places for requests. Use it inside a running loop."""

    def __init__(self, *, limit: int, per_host: int) -> None:
        self.limit = limit
        """Requests under way in all; whoever owns this may move it."""
        self.in_flight = 0
        self._per_host = per_host
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._ready: OrderedDict[str, None] = OrderedDict()
        """Hosts with a request that waits for nothing but a place."""

    @property
    def is_hungry(self) -> bool:
        """True if more requests could be made than wait for a place."""
        return self.in_flight + len(self._ready) < self.limit

    def closed_seconds(self, host: str) -> float:
        """Return how long a host still asked to be left alone."""
        known = self._hosts.get(host)
        return 0.0 if known is None else max(0.0, known.closed_until - asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[None]:
        """Hold one place; one of the host and one of all."""
        known = self._host(host)
        await self._enter(host, known)
        try:
            yield
        finally:
            known.in_flight -= 1
            self.in_flight -= 1
            self._offer(host, known)
            self.wake()

    async def _enter(self, host: str, known: _Host) -> None:
        loop = asyncio.get_running_loop()
        if not self._ready and not known.waiting and self.in_flight < self.limit and known.is_free(loop.time()):
            self._count(known)
            return
        turn = loop.create_future()
        known.waiting.append(turn)
        self._offer(host, known)
        self.wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had its turn, and will not use it
                known.in_flight -= 1
                self.in_flight -= 1
            else:
                known.waiting.remove(turn)
            self._offer(host, known)
            self.wake()
            raise

    def _count(self, known: _Host) -> None:
        known.in_flight += 1
        self.in_flight += 1

    def _host(self, host: str) -> _Host:
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host(float(self._per_host))
            if len(self._hosts) > MAX_KEPT_HOSTS:
                self._forget_one()
        return known

    def _forget_one(self) -> None:
        for _ in range(len(self._hosts)):
            name, known = next(iter(self._hosts.items()))
            if not known.in_flight and not known.waiting:
                del self._hosts[name]
                return
            self._hosts.move_to_end(name)

    def _offer(self, host: str, known: _Host) -> None:
        """Let a host have its turn, if it has a request that may be made now."""
        if not known.waiting:
            self._ready.pop(host, None)
            return
        loop = asyncio.get_running_loop()
        if known.is_free(loop.time()):
            self._ready.setdefault(host)
        elif known.closed_until > loop.time() and not known.in_flight:
            loop.call_at(known.closed_until + 0.001, self._open, host, known)

    def _open(self, host: str, known: _Host) -> None:
        self._offer(host, known)
        self.wake()

    def wake(self) -> None:
        """Give away the places that are free."""
        now = asyncio.get_running_loop().time()
        while self._ready and self.in_flight < self.limit:
            host, _ = self._ready.popitem(last=False)
            known = self._hosts.get(host)
            if known is None or not known.waiting or not known.is_free(now):
                continue
            self._count(known)
            known.waiting.popleft().set_result(None)
            self._offer(host, known)

    def troubled(self, host: str, *, wait_seconds: float = 0.0) -> None:
        """Ask a host less: it had too much, or time ran out. None is made for `wait_seconds`."""
        known, now = self._host(host), asyncio.get_running_loop().time()
        known.closed_until = max(known.closed_until, now + wait_seconds)
        if now - known.cut_at >= CUT_SECONDS:
            known.cut_at = now
            known.limit = max(1.0, known.limit / 2)
        if known.waiting and wait_seconds:
            self._ready.pop(host, None)
            asyncio.get_running_loop().call_at(known.closed_until + 0.001, self._open, host, known)

    def pleased(self, host: str) -> None:
        """Note a good answer: a host that was asked less is asked a little more."""
        known = self._hosts.get(host)
        if known is not None and known.limit < self._per_host:
            known.limit = min(float(self._per_host), known.limit + 1 / known.limit)

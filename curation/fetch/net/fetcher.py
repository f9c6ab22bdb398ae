"""One URL to its bytes: redirects, retries, deadlines, and how many at a time.

A slot is held for one hop, not across a redirect or a pause, so hosts cannot wait for each other. The deadline counts
the time a URL is being worked on and its pauses, not the time it waits for a free slot; or a long list of one host
would time out by itself.
"""

import asyncio
import contextlib
import copy
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from yarl import URL

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import check_parts, parse_url
from headrace.curation.fetch.net.health import UNREACHED, Health
from headrace.curation.fetch.net.http import HttpClient, Reply
from headrace.curation.fetch.net.resolve import Lookup, lookup_host
from headrace.curation.fetch.net.spelling import resolve, trimmed
from headrace.shards.heartbeat import waiting
from headrace.shards.permutation import make_key

T = TypeVar("T")


class Fetcher:
    """Fetch URLs, many at a time, under one config. Use it in `async with`, inside a running loop."""

    def __init__(
        self, config: FetchConfig, *, lookup: Lookup = lookup_host, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._config = config
        self._client = HttpClient(config, lookup=lookup, ssl_context=ssl_context, on_answer=self._hear)
        self.health = Health(
            self._client.probe, outage_seconds=config.outage_seconds, attempt_seconds=config.attempt_seconds
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    async def __aenter__(self) -> "Fetcher":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)

    def _hear(self, url: URL, answered: bool) -> None:
        self.health.heard(url, witness=answered)

    async def fetch(self, text: str | None, check: Callable[[bytes], T]) -> tuple[bytes, T]:
        """Return the body at the URL `text` and what `check` says of it. Raises FetchError of the last attempt.

        A body that `check` calls truncated is asked for again where it ended with the connection: it may have been cut
        on its way. One that is as long as the server said is so at its source.
        """
        url = parse_url(text)
        deadline = _Clock(self._config.deadline_seconds)
        for attempt in range(self._config.retries + 1):
            began = asyncio.get_running_loop().time()
            try:
                reply = await self._attempt(url, deadline)
                return reply.body, _checked(reply, check)
            except FetchError as error:
                pause = self._pause_seconds(url, attempt, error)
                if not error.retryable or attempt == self._config.retries or pause >= deadline.left:
                    # A host that is not asked any more failed before: then too it may have been the network.
                    began = began if error.stands_for is None else error.stands_for
                    unreached = error.error_class in UNREACHED and (error.retryable or error.stands_for is not None)
                    if unreached and await self.health.was_outage(url.raw_host or "", began):
                        return await self.fetch(text, check)
                    raise
            await asyncio.sleep(pause)
            deadline.left -= pause
        raise AssertionError("the loop returns or raises")

    def _pause_seconds(self, url: URL, attempt: int, error: FetchError) -> float:
        jitter = make_key("backoff", str(url), attempt) / (1 << 64)
        pause = self._config.backoff_seconds * (1 << attempt) * (0.5 + 0.5 * jitter)
        return max(pause, error.wait_seconds or 0.0)

    async def _attempt(self, url: URL, deadline: "_Clock") -> Reply:
        left = _Clock(min(self._config.attempt_seconds, deadline.left))
        for hop in range(self._config.max_redirects + 1):
            with _in_redirect(hop):
                reply = await self._hop(url, left, deadline)
            if reply.location is None:
                return reply
            with _in_redirect(hop + 1):
                url = redirect_target(url, reply.location)
        raise FetchError("redirects", f"more than {self._config.max_redirects} redirects")

    async def _hop(self, url: URL, *clocks: "_Clock") -> Reply:
        loop = asyncio.get_running_loop()
        host = url.raw_host or ""
        async with self._slot(host):
            self.health.check_host(host)
            started = loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(clock.left for clock in clocks))):
                    reply = await self._client.get(url)
                self.health.succeeded(host)
                return reply
            except TimeoutError as error:
                self.health.failed(host, "timeout")
                raise FetchError("timeout", "no complete answer in time", retryable=True) from error
            except FetchError as error:
                if error.error_class in UNREACHED and error.retryable:
                    self.health.failed(host, error.error_class)
                else:
                    self.health.succeeded(host)
                raise
            finally:
                for clock in clocks:
                    clock.left -= loop.time() - started

    @contextlib.asynccontextmanager
    async def _slot(self, host: str) -> AsyncIterator[None]:
        """Hold one of the host's slots, then one of all; in this order a slow host keeps no one else waiting."""
        semaphore, users = self._hosts.get(host, (asyncio.Semaphore(self._config.per_host), 0))
        self._hosts[host] = (semaphore, users + 1)
        try:
            async with semaphore, self._slots:
                with waiting(host):
                    yield
        finally:
            semaphore, users = self._hosts[host]
            if users == 1:
                del self._hosts[host]
            else:
                self._hosts[host] = (semaphore, users - 1)


def _checked(reply: Reply, check: Callable[[bytes], T]) -> T:
    try:
        return check(reply.body)
    except FetchError as error:
        error.retryable = error.retryable or (error.error_class == "truncated" and not reply.declared)
        raise


class _Clock:
    """Seconds that are left."""

    def __init__(self, left: float) -> None:
        self.left = left


@contextlib.contextmanager
def _in_redirect(number: int) -> Iterator[None]:
    """Say in an error which redirect led there."""
    try:
        yield
    except FetchError as error:
        if number:
            error = copy.copy(error)
            error.message = f"redirect {number}: {error.message}"
        raise error from error.__cause__


def redirect_target(url: URL, location: str) -> URL:
    """Return where a Location leads, if it is a URL that we fetch. Raises FetchError.

    A plain http target of an https page is followed: nothing secret is sent, and the same checks hold.
    """
    raw = location.encode("utf-8", "surrogateescape")
    try:
        raw.decode()
    except UnicodeDecodeError:
        location = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)
    try:
        return check_parts(resolve(url, trimmed(location)))
    except (ValueError, TypeError) as error:
        raise FetchError("redirects", "the Location is not a URL") from error
    except FetchError as error:
        if error.error_class != "bad-url":
            raise
        raise FetchError("redirects", error.message) from error

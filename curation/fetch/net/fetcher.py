"""One URL to its bytes: redirects, retries, deadlines, and how many at a time.

A slot is held for one hop, not across a redirect or a pause, so hosts cannot wait for each other. The deadline counts
the time a URL is being worked on and its pauses, not the time it waits for a free slot; or a long list of one host
would time out by itself.
"""

import asyncio
import contextlib
import copy
import ssl
from collections.abc import Callable, Iterator
from typing import TypeVar

from yarl import URL

from headrace.curation.blocklist import load_blocklist
from headrace.curation.fetch.check import check_not_forgotten, check_not_listed
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import check_parts, parse_url
from headrace.curation.fetch.net.board import HostBoard
from headrace.curation.fetch.net.health import UNREACHED, Health
from headrace.curation.fetch.net.http import HttpClient, Reply, Wanted
from headrace.curation.fetch.net.resolve import Lookup, lookup_host
from headrace.curation.fetch.net.slots import Slots
from headrace.curation.fetch.net.spelling import resolve, trimmed
from headrace.curation.fetch.net.throttle import FIRST_LIMIT, Throttle
from headrace.curation.fetch.signals.permission import Permission
from headrace.curation.fetch.signals.robots import MAX_BYTES
from headrace.curation.forgotten import NO_TOMBSTONES, read_tombstones
from headrace.shards.heartbeat import waiting
from headrace.shards.permutation import make_key

T = TypeVar("T")

LOOK_SECONDS = 0.5

SITE_FILE_REDIRECTS = 5
"""Of a robots.txt, whatever is allowed to an image (RFC 9309, section 2.3.1.2)."""


class Fetcher:
    """Fetch URLs, many at a time, under one config. Use it in `async with`, inside a running loop."""

    def __init__(
        self,
        config: FetchConfig,
        *,
        permissions: str | None = None,
        job_url: str = "",
        board: HostBoard | None = None,
        lookup: Lookup = lookup_host,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`permissions` is the folder where what the sites allow is kept; None: it is forgotten with the fetcher.

        `job_url` is the job whose take-downs are honoured. `board` is where this process and those beside it tell each
        other of hosts that do not answer.
        """
        self._config = config
        self.blocklist = load_blocklist(config.blocklist)
        self.forgotten = read_tombstones(job_url) if job_url else NO_TOMBSTONES
        self._permission = Permission(
            config.obeyed, self._read_document, user_agent=config.user_agent, folder=permissions
        )
        self._client = HttpClient(config, lookup=lookup, ssl_context=ssl_context, on_answer=self._hear)
        self._board = board
        self.health = Health(
            self._client.probe,
            outage_seconds=config.outage_seconds,
            attempt_seconds=config.attempt_seconds,
            on_dead=(lambda _host, _error_class: None) if board is None else board.tell,
        )
        self.slots = Slots(limit=min(config.concurrency, FIRST_LIMIT), per_host=config.per_host)
        self._throttle = Throttle(config.concurrency, self._move)

    async def __aenter__(self) -> "Fetcher":
        await self._client.__aenter__()
        self._look_out = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._permission.close()
        self._look_out.cancel()
        await self._client.__aexit__(*error)

    def _hear(self, url: URL, answered: bool) -> None:
        self.health.heard(url, witness=answered)

    def _move(self, limit: int) -> None:
        self.slots.limit = limit
        self.slots.wake()

    async def _look(self) -> None:
        """Now and then: move the limit, and hear what other processes say of hosts."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._throttle.look(asyncio.get_running_loop().time(), held_back=not self.slots.is_hungry)
            for host, error_class, seconds_ago in () if self._board is None else self._board.news():
                self.health.told(host, error_class, seconds_ago)

    async def fetch(self, text: str | None, check: Callable[[bytes], T]) -> tuple[bytes, T]:
        """Return the body at the URL `text` and what `check` says of it. Raises FetchError of the last attempt.

        A body that `check` calls truncated is asked for again where it ended with the connection: it may have been cut
        on its way. One that is as long as the server said is so at its source.
        """
        return await self._fetch(parse_url(text), check, Wanted(self._config.max_bytes))

    async def _read_document(self, url: URL) -> bytes:
        """Return the beginning of a file by which a site speaks to crawlers."""
        return (await self._fetch(url, lambda _body: None, Wanted(MAX_BYTES, image=False)))[0]

    async def _fetch(self, url: URL, check: Callable[[bytes], T], wanted: Wanted) -> tuple[bytes, T]:
        deadline = _Clock(self._config.deadline_seconds)
        for attempt in range(self._config.retries + 1):
            began = asyncio.get_running_loop().time()
            try:
                reply = await self._attempt(url, deadline, wanted)
                return reply.body, _checked(reply, check)
            except FetchError as error:
                pause = self._pause_seconds(url, attempt, error)
                again = error.retryable and attempt < self._config.retries and pause < deadline.left
                if not again or self.health.is_dead(url.raw_host or ""):
                    # What stands for a longer silence of the host may be one of the network too.
                    began = began if error.stands_for is None else error.stands_for
                    unreached = error.error_class in UNREACHED and (error.retryable or error.stands_for is not None)
                    if unreached and await self.health.was_outage(url.raw_host or "", began):
                        return await self._fetch(url, check, wanted)
                    raise
            await asyncio.sleep(pause)
            deadline.left -= pause
        raise AssertionError("the loop returns or raises")

    def _pause_seconds(self, url: URL, attempt: int, error: FetchError) -> float:
        jitter = make_key("backoff", str(url), attempt) / (1 << 64)
        pause = self._config.backoff_seconds * (1 << attempt) * (0.5 + 0.5 * jitter)
        return max(pause, error.wait_seconds or 0.0)

    async def _attempt(self, url: URL, deadline: "_Clock", wanted: Wanted) -> Reply:
        left = _Clock(min(self._config.attempt_seconds, deadline.left))
        max_redirects = self._config.max_redirects if wanted.image else SITE_FILE_REDIRECTS
        for hop in range(max_redirects + 1):
            with _in_redirect(hop):
                if wanted.image:
                    await self._ask(url)
                reply = await self._hop(url, wanted, left, deadline)
            if reply.location is None:
                return reply
            with _in_redirect(hop + 1):
                url = redirect_target(url, reply.location)
        raise FetchError("redirects", f"more than {max_redirects} redirects")

    async def _ask(self, url: URL) -> None:
        """Return when `url` may be asked for. Raises FetchError `opted-out`, or why its site cannot say now."""
        check_not_listed(self.blocklist.has_url(str(url)), "the URL or its host")
        check_not_forgotten(self.forgotten.has_row(str(url), None))
        verdict = await self._permission.ask(url)
        if verdict.refusal is not None:
            raise FetchError("opted-out", verdict.refusal)
        await self._permission.take_turn(url, verdict.delay_seconds)

    async def _hop(self, url: URL, wanted: Wanted, *clocks: "_Clock") -> Reply:
        loop = asyncio.get_running_loop()
        host = url.raw_host or ""
        self._check_closed(host)
        async with self.slots.slot(host):
            self.health.check_host(host)
            started, begun = loop.time(), asyncio.Event()
            try:
                with waiting(host):
                    async with asyncio.timeout(max(0.0, min(clock.left for clock in clocks))):
                        reply = await self._client.get(url, wanted, begun)
                self._heard_from(host, None)
                return reply
            except TimeoutError as error:
                late = FetchError("timeout", "no complete answer in time", retryable=not begun.is_set())
                if begun.is_set():  # as slow the next time
                    late.is_slow, late.stands_for = True, started
                self._heard_from(host, late)
                raise late from error
            except FetchError as error:
                self._heard_from(host, error)
                raise
            finally:
                for clock in clocks:
                    clock.left -= loop.time() - started

    def _check_closed(self, host: str) -> None:
        """Raise FetchError for a host that asked for a pause longer than a row can wait."""
        seconds = self.slots.closed_seconds(host)
        if seconds > self._config.deadline_seconds:
            error = FetchError("http-429", "the host asked for a pause after other rows (Retry-After); not asked again")
            error.not_asked = True
            raise error

    def _heard_from(self, host: str, error: FetchError | None) -> None:
        """Note how an attempt ended: for the host, and for how much is asked at a time."""
        unreached = error is not None and error.error_class in UNREACHED and (error.retryable or error.is_slow)
        if error is not None and unreached:
            self.health.failed(host, error.error_class, slow=error.is_slow)
        else:
            self.health.succeeded(host)
        self._throttle.answered(host, troubled=error is not None and unreached and error.error_class != "connect")
        if error is None:
            self.slots.pleased(host)
        elif error.error_class == "timeout":
            # What is given up in one look counts together, before the next request is made in its place.
            self.slots.troubled(host, wait_seconds=LOOK_SECONDS if error.is_slow else 0.0)
        elif error.is_refusal:
            self.slots.troubled(host, wait_seconds=error.wait_seconds or self._config.backoff_seconds)


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

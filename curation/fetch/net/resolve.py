"""Names to addresses, each checked before anything connects to it; and the last gate at the socket.

The addresses a name gave are the addresses that are connected to, so a second answer of the name server (DNS
rebinding) cannot change the target. An address written out in a URL is never looked up; the gate in `open_socket` sees
those too.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import Address, AllowedPairs, check_address

CACHE_SECONDS = 300.0
MAX_CACHED_NAMES = 100_000

Lookup = Callable[[str], Sequence[str]]
"""Returns the addresses of a name; blocking; raises socket.gaierror."""


def lookup_host(host: str) -> list[str]:
    """Ask the system's resolver."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class RefusedSocketError(OSError):
    """A connection to an address that is not public was about to be opened."""


class CheckedResolver:
    """Resolve names in threads, check every address, remember the answers for a while, also that a name has none."""

    def __init__(self, allowed: AllowedPairs, *, lookup: Lookup = lookup_host, threads: int = 32) -> None:
        self._allowed = allowed
        self._lookup = lookup
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="dns")
        self._cache: dict[str, tuple[float, asyncio.Task[list[Address]]]] = {}

    async def resolve(self, host: str, port: int, *, anew: bool = False) -> Sequence[Address]:
        """Return the checked addresses of `host`. Raises FetchError `dns` or `refused-address`.

        `anew` asks the name server whatever it said before.
        """
        if anew:
            return check_all(await self._ask(host), port, self._allowed)
        return check_all(await self._addresses(host), port, self._allowed)

    async def close(self) -> None:
        """Let go of the threads; one that hangs in the system's resolver is not waited for."""
        for _, task in self._cache.values():
            task.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _addresses(self, host: str) -> list[Address]:
        now = asyncio.get_running_loop().time()
        expires, task = self._cache.get(host, (0.0, None))
        if task is None or expires < now or (task.done() and _is_temporary(task)):
            while len(self._cache) >= MAX_CACHED_NAMES:
                del self._cache[next(iter(self._cache))]
            task = asyncio.create_task(self._ask_again(host, task))
            task.add_done_callback(_is_temporary)  # marks the exception as seen if every waiter has given up
            self._cache[host] = (now + CACHE_SECONDS, task)
        # A waiter that runs out of time must not cancel the look-up of the others.
        return await asyncio.shield(task)

    async def _ask_again(self, host: str, before: asyncio.Task[list[Address]] | None) -> list[Address]:
        """Ask; while the name server gives no answer, what it said before holds (RFC 8767)."""
        try:
            return await self._ask(host)
        except FetchError as error:
            known = before is not None and before.done() and not before.cancelled() and before.exception() is None
            if before is None or not known or not error.retryable:
                raise
            return before.result()

    async def _ask(self, host: str) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._executor, self._lookup, host)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise FetchError("dns", "the name server gave no answer", retryable=True) from error
            raise FetchError("dns", "the name does not resolve") from error
        except UnicodeError as error:
            raise FetchError("dns", "the name cannot be looked up") from error
        if not found:
            raise FetchError("dns", "the name has no address")
        return [_address(text) for text in found]


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError as error:
        raise FetchError("dns", "the name server's answer is not an address") from error


def _is_temporary(task: asyncio.Task[list[Address]]) -> bool:
    if task.cancelled():
        return True
    error = task.exception()
    return isinstance(error, FetchError) and error.retryable


def check_all(addresses: Sequence[Address], port: int, allowed: AllowedPairs) -> Sequence[Address]:
    """Return the addresses to connect to: the explicitly allowed ones, or all if every one is public.

    A name with one private address among public ones is refused whole: it has no honest use in a list of images.
    """
    explicit = [address for address in addresses if (address, port) in allowed]
    if explicit:
        return explicit
    for address in addresses:
        check_address(address, port, allowed)
    return addresses


def open_socket(addr_info: tuple[Any, ...], allowed: AllowedPairs) -> socket.socket:
    """Make the socket for one address, if it may be connected to. Every connection of the client comes through here."""
    family, kind, protocol, _, target = addr_info
    try:
        check_address(ipaddress.ip_address(str(target[0]).partition("%")[0]), int(target[1]), allowed)
    except (FetchError, ValueError) as error:
        raise RefusedSocketError(str(error)) from error
    return socket.socket(family, kind, protocol)

"""Names: one look-up for all who wait; answers are kept a while, also that there is none, longer in an outage."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net import resolve as module
from headrace.curation.fetch.net.resolve import CheckedResolver


class Server:
    """A name server that knows every name but `none.*`, and can be out."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.out = False

    def __call__(self, host: str) -> list[str]:
        self.asked[host] += 1
        if self.out:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host.startswith("none."):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ["93.184.216.34"]


def run(visit: Callable[[CheckedResolver, Server], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        server = Server()
        resolver = CheckedResolver(frozenset(), lookup=server)
        try:
            return await visit(resolver, server)
        finally:
            await resolver.close()

    return asyncio.run(main())


@pytest.mark.parametrize(("host", "found"), [("a.example", 1), ("none.example", 0)])
def test_many_waiters_are_one_look_up_and_so_is_the_next_minute(host: str, found: int) -> None:
    async def visit(resolver: CheckedResolver, server: Server) -> list[Any]:
        results = await asyncio.gather(*(resolver.resolve(host, 80) for _ in range(50)), return_exceptions=True)
        results += await asyncio.gather(resolver.resolve(host, 80), return_exceptions=True)
        assert server.asked == {host: 1}
        return results

    results = run(visit)
    assert [isinstance(result, FetchError) for result in results] == [not found] * 51


def test_a_name_is_asked_for_again_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SECONDS", -1.0)

    async def visit(resolver: CheckedResolver, server: Server) -> None:
        for _ in range(3):
            await resolver.resolve("a.example", 80)
        assert server.asked["a.example"] == 3
        server.out = True
        for _ in range(3):  # what it said before holds while it says nothing
            assert [str(address) for address in await resolver.resolve("a.example", 80)] == ["93.184.216.34"]
        assert server.asked["a.example"] == 6
        with pytest.raises(FetchError) as caught:
            await resolver.resolve("b.example", 80)
        assert caught.value.retryable
        server.out = False
        assert await resolver.resolve("b.example", 80)

    run(visit)

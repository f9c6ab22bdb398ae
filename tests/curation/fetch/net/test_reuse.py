"""A connection is used again only where nobody can doubt where the next answer begins."""

import asyncio
import contextlib
import gc
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from yarl import URL

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net import pool
from headrace.curation.fetch.net.http import HttpClient


class Speaker:
    """Answers request after request on one connection with what `says` returns; None closes the connection."""

    def __init__(self, says: Callable[[int, int], bytes | None]) -> None:
        self._says = says
        self.asked: list[tuple[int, str]] = []
        """(connection, path) of every request."""
        self.num_connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        connection, number = self.num_connections, 0
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                self.asked.append((connection, request.split(b" ")[1].decode()))
                answer = self._says(connection, number)
                number += 1
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()


def run(web: Any, says: Callable[[int, int], bytes | None], visit: Callable[..., Any], **config: Any) -> Speaker:
    """Let `visit(get, speaker)` talk to a Speaker."""

    async def session() -> Speaker:
        speaker = Speaker(says)
        server = await asyncio.start_server(speaker.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        settings = web.config_for(type("Server", (), {"pair": f"{host}:{port}"})(), **config)
        async with server, HttpClient(settings) as client:
            await visit(lambda path: client.get(URL(f"http://{host}:{port}{path}")), speaker)
        return speaker

    return asyncio.run(session())


def answer(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


async def three(get: Callable[[str], Any], _: Speaker) -> None:
    for number in range(3):
        await get(f"/{number}")


def test_clean_answers_share_a_connection(web) -> None:
    image = web.jpeg()
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
    assert run(web, lambda *_: answer(image), three).num_connections == 1
    assert run(web, lambda *_: chunked, three).num_connections == 1
    assert run(web, lambda *_: answer(b"", "Location: /a", status="302 Found"), three).num_connections == 1


@pytest.mark.parametrize(
    "odd",
    [
        lambda body: answer(body, "Connection: close"),
        lambda body: answer(body, f"Content-Length: {len(body)}"),
        lambda body: answer(body, "Transfer-Encoding: identity"),
        lambda body: answer(body, "X : 1"),
        lambda body: answer(body, "X: 1", " folded"),
        lambda body: answer(body).replace(b"\r\n", b"\n", 1),
        lambda body: answer(body).replace(b"\r\n\r\n", b"\r\n\n", 1),
        lambda body: answer(body).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        lambda body: answer(body) + b"\r\n",
        lambda body: answer(body) + answer(b"another's"),
        lambda body: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n"
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        ),
        lambda body: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\n\n" % (len(body), body),
    ],
)
def test_after_an_odd_answer_the_connection_is_closed(web, odd: Callable[[bytes], bytes]) -> None:
    speaker = run(web, lambda *_: odd(web.jpeg()), three)
    assert speaker.num_connections == 3


def test_a_connection_that_died_idle_costs_no_attempt(web) -> None:
    async def visit(get: Callable[[str], Any], _: Speaker) -> None:
        for number in range(4):
            assert (await get(f"/{number}")).body == web.jpeg(), number

    speaker = run(web, lambda _, number: answer(web.jpeg()) if number == 0 else None, visit)
    assert [path for _, path in speaker.asked] == ["/0", "/1", "/1", "/2", "/2", "/3", "/3"][: len(speaker.asked)]
    assert speaker.num_connections == 4


@pytest.mark.parametrize("late", [b"<!-- cached -->\r\n\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n"])
def test_what_comes_late_is_not_the_next_answer(web, late: bytes) -> None:
    """The server speaks before it is asked, or answers the second request on a connection with rubbish."""

    def says(connection: int, number: int) -> bytes:
        return answer(web.jpeg(connection)) if number == 0 else late + answer(b"not this one")

    async def visit(get: Callable[[str], Any], _: Speaker) -> None:
        assert (await get("/0")).body == web.jpeg(1)
        assert (await get("/1")).body == web.jpeg(2)

    run(web, says, visit)


def test_bytes_that_arrive_while_a_connection_waits_end_it(web) -> None:
    writers: list[asyncio.StreamWriter] = []

    class Late(Speaker):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await super().serve(reader, writer)

    async def session() -> int:
        speaker = Late(lambda connection, _: answer(web.jpeg(connection)))
        server = await asyncio.start_server(speaker.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        settings = web.config_for(type("Server", (), {"pair": f"{host}:{port}"})())
        async with server, HttpClient(settings) as client:
            await client.get(URL(f"http://{host}:{port}/0"))
            writers[0].write(answer(b"nobody asked for this"))
            await asyncio.sleep(0.1)
            assert (await client.get(URL(f"http://{host}:{port}/1"))).body == web.jpeg(2)
        return speaker.num_connections

    assert asyncio.run(session()) == 2


def test_broken_chunks_on_a_used_connection_are_tried_again(web) -> None:
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    seen: list[FetchError] = []

    async def visit(get: Callable[[str], Any], _: Speaker) -> None:
        await get("/0")
        for path in ("/1", "/2"):
            with pytest.raises(FetchError) as caught:
                await get(path)
            seen.append(caught.value)

    run(web, lambda connection, number: broken if connection > 1 or number else answer(web.jpeg()), visit)
    assert [(error.error_class, error.retryable) for error in seen] == [("protocol", True), ("protocol", False)]


def test_an_idle_connection_ends_after_a_while(web, monkeypatch) -> None:
    monkeypatch.setattr(pool, "KEEPALIVE_SECONDS", 0.05)

    async def visit(get: Callable[[str], Any], _: Speaker) -> None:
        await get("/0")
        await asyncio.sleep(0.3)
        await get("/1")

    assert run(web, lambda *_: answer(web.jpeg()), visit).num_connections == 2


def test_only_so_many_connections_wait(web, monkeypatch) -> None:
    monkeypatch.setattr(pool, "MAX_IDLE", 2)

    async def visit(get: Callable[[str], Any], speaker: Speaker) -> None:
        await asyncio.gather(*(get(f"/{number}") for number in range(5)))
        assert speaker.num_connections == 5
        await asyncio.gather(*(get(f"/{number}") for number in range(5)))
        assert speaker.num_connections == 8

    run(web, lambda *_: answer(web.jpeg()), visit)


@contextlib.asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, int]]:
    """A server that accepts and never speaks, so that no TLS handshake ends."""
    done = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]
        done.set()


def test_a_handshake_that_never_ends_is_a_timeout_and_leaves_no_socket(web) -> None:
    async def session() -> FetchError:
        async with silent_server() as (host, port):
            settings = web.config_for(type("Server", (), {"pair": f"{host}:{port}"})(), connect_seconds=0.1)
            context = ssl.create_default_context()
            async with HttpClient(settings, ssl_context=context) as client:
                with pytest.raises(FetchError) as caught:
                    await client.get(URL(f"https://{host}:{port}/"))
        return caught.value

    gc.collect()  # what other tests left is not looked for
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(5):
            assert asyncio.run(session()).error_class == "timeout"
        gc.collect()
    assert [str(item.message) for item in seen if "unclosed" in str(item.message)] == []


@pytest.mark.parametrize("path", ["/a b", "/a\r\nHost:", "/caf\xe9", "/\x7f"])
def test_a_path_that_cannot_stand_in_a_request_is_never_sent(web, path: str) -> None:
    async def session() -> None:
        settings = web.config_for(type("Server", (), {"pair": "127.0.0.1:9"})())
        async with HttpClient(settings) as client:
            url = URL.build(scheme="http", host="127.0.0.1", port=9, path=path, encoded=True)
            with pytest.raises(FetchError, match="cannot stand in a request"):
                await client.get(url)

    asyncio.run(session())

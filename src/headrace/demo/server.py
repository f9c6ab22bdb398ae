"""Serve the small web on loopback: two listeners that may be asked, one that must not, and a port where nobody answers.

Runs on its own thread with its own event loop. The one thing a reader would get wrong: the private listener accepts
connections on purpose; it exists to count them, and the count must stay 0.
"""

import asyncio
import socket
import threading
from collections import Counter
from types import TracebackType

from aiohttp import web

from headrace.demo.web import Entry, Reply, Site, filled

SERVER_ADDRESS, PRIVATE_ADDRESS = "127.0.0.1", "127.0.0.2"
CLAIMED_BYTES = 1 << 40
BLOCK_BYTES = 1 << 16
NUM_DRIPS = 20


class SmallWeb:
    """The running servers of one site; a context manager."""

    def __init__(self, site: Site, *, secret_path: str) -> None:
        self.num_private_connections = 0
        self.requests: Counter[str] = Counter()
        """Requests by path."""
        self.addresses: dict[str, str] = {"secret": secret_path}
        """What the names in `Entry.url` stand for; filled on entering."""
        self._replies = {_path(entry): entry.reply for entry in site.entries if entry.reply is not None}
        self._sockets: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="small-web", daemon=True)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> "SmallWeb":
        sockets = {name: _bound(SERVER_ADDRESS) for name in ("server", "slow", "closed")}
        sockets["private"] = _bound(PRIVATE_ADDRESS)
        self._sockets = list(sockets.values())
        for name, item in sockets.items():
            host, port = item.getsockname()
            self.addresses[name] = f"{host}:{port}"
        self.addresses["private_port"] = self.addresses["private"].rsplit(":", 1)[1]
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(sockets), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        for item in self._sockets:
            item.close()

    @property
    def allowed(self) -> tuple[str, ...]:
        """The addresses a recipe must allow: all but the private one."""
        return tuple(self.addresses[name] for name in ("server", "slow", "closed"))

    async def _serve(self, sockets: dict[str, socket.socket]) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        for name in ("server", "slow"):
            await web.SockSite(self._runner, sockets[name], backlog=512).start()
        await asyncio.start_server(self._count_private, sock=sockets["private"])

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _count_private(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_private_connections += 1
        writer.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.split("?", 1)[0]
        self.requests[path] += 1
        reply = self._replies.get(path)
        if reply is None:
            return web.Response(status=404, text="no such page")
        if self.requests[path] <= reply.failures:
            return web.Response(status=503, text="try again")
        headers = {name: filled(value, self.addresses) for name, value in reply.headers}
        if reply.manner == "plain":
            return web.Response(status=reply.status, body=reply.body, headers=headers)
        return await self._stream(request, reply, headers)

    async def _stream(self, request: web.Request, reply: Reply, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=headers)
        lengths = {"claimed": CLAIMED_BYTES, "empty": 0, "chunked": None, "endless": None}
        response.content_length = lengths.get(reply.manner, len(reply.body))
        if response.content_length is None:
            response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await _send(request, response, reply)
        except ConnectionError:
            return response  # the client has had enough: for these pages that is the point
        return response


async def _send(request: web.Request, response: web.StreamResponse, reply: Reply) -> None:
    """Write the body in the way the page is known for."""
    if reply.manner == "empty":
        await response.write_eof()
    elif reply.manner in ("cut", "claimed"):
        await response.write(reply.body[: len(reply.body) // 2])
        if request.transport is not None:
            request.transport.close()
    elif reply.manner == "endless":
        await response.write(reply.body)
        while True:
            await response.write(bytes(BLOCK_BYTES))
    else:
        num_parts = NUM_DRIPS if reply.manner == "drip" else 3
        size = -(-len(reply.body) // num_parts)
        for start in range(0, len(reply.body), size):
            await response.write(reply.body[start : start + size])
            await asyncio.sleep(reply.seconds / num_parts)
        await response.write_eof()


def _path(entry: Entry) -> str:
    return entry.path.split("?", 1)[0]


def _bound(address: str) -> socket.socket:
    """Return a socket on a free port of `address`. Nobody listens yet, and nobody else can take the port."""
    item = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        item.bind((address, 0))
    except OSError as error:
        item.close()
        raise OSError(f"cannot listen on {address}: {error}; the demo needs two loopback addresses") from error
    item.setblocking(False)
    return item

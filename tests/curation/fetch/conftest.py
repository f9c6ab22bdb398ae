"""A web server that says exactly the bytes a test wants, and short ways to fetch from it."""

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.fetch.row import Record, fetch_row
from headrace.curation.fetch.signals.config import SignalsConfig
from headrace.curation.raw.write import Outcome
from headrace.shards.units import EngineConfig

HEADERS_ONLY = SignalsConfig(
    robots_txt=False, tdm_file=False, content_usage=False, content_signal=False, crawl_delay_seconds=0.0
)

Answer = bytes | Callable[["WebServer", asyncio.StreamWriter], Awaitable[None]]


def jpeg(seed: int = 0, size: int = 32) -> bytes:
    """A small JPEG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def reply(
    body: bytes = b"", *, status: str = "200 OK", headers: tuple[str, ...] = (), length: int | None = -1
) -> bytes:
    """The bytes of an HTTP answer; `length` other than -1 lies about the body, None leaves it out."""
    # The server closes after each answer; unsaid, a client may send its next request into the closing connection.
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(target: str, status: str = "302 Found") -> bytes:
    """A redirect to `target`."""
    return reply(status=status, headers=(f"Location: {target}",))


class WebServer:
    """Answers by path from `answers`; counts connections; one answer a connection."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, ssl: Any = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.num_connections = 0
        self.open_connections = 0
        self.most_open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, address, port, ssl=ssl))
        self.address = address
        self.port = self._server.sockets[0].getsockname()[1]

    def _call(self, task: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(60)

    def url(self, path: str = "/") -> str:
        return f"http://{self.address}:{self.port}{path}"

    @property
    def pair(self) -> str:
        return f"{self.address}:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.open_connections += 1
        self.most_open = max(self.most_open, self.open_connections)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            self.requests.append((path, dict(line.lower().split(": ", 1) for line in head[1:] if line)))
            answer = self.answers.get(path, reply(status="404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(self, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            await asyncio.sleep(0.01)  # a task that is cancelled before it began would not close what was accepted
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A server on 127.0.0.1."""
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def forbidden(server: WebServer) -> Iterator[WebServer]:
    """A second server, on another loopback address and the same port, that nothing may ever connect to."""
    other = WebServer("127.0.0.2", server.port)
    other.answers["/image.jpg"] = reply(jpeg())
    yield other
    other.close()


def config_for(server: WebServer, **settings: Any) -> FetchConfig:
    """A config that may fetch from `server`, without retries; the server is not asked what it allows."""
    defaults: dict[str, Any] = {
        "signals": HEADERS_ONLY,
        "retries": 0,
        "backoff_seconds": 0.01,
        # A busy machine may stall for a long while; tests of deadlines say their own.
        "connect_seconds": 60.0,
        "attempt_seconds": 120.0,
        "deadline_seconds": 240.0,
        "slow_seconds": 60.0,
        "allow_private": (server.pair,),
    }
    return FetchConfig(**(defaults | settings))


def fetch(url: str | None, config: FetchConfig, *, expected_sha256: str | None = None, **parts: Any) -> Outcome:
    """Fetch one row as a unit of work does."""

    async def run() -> Outcome:
        record = Record(url, expected_sha256=expected_sha256)
        async with Fetcher(config, **parts) as fetcher:
            return await outcome_of(fetcher, record, config)

    return asyncio.run(run())


async def outcome_of(fetcher: Fetcher, record: Record, config: FetchConfig) -> Outcome:
    """What becomes of a row that cannot be put off."""
    try:
        return (await fetch_row(fetcher, record, config))[0]
    except FetchError as error:
        return Outcome(error.error_class, error.message)


def recipe_for(job: Any, urls: Any, config: FetchConfig, **settings: Any) -> Any:
    """What the stage reads of a recipe."""
    return SimpleNamespace(
        job=str(job),
        seed=settings.pop("seed", 0),
        fetch=config,
        engine=EngineConfig(executor=settings.pop("executor", "inline"), workers=2),
        input=InputConfig(urls=(str(urls),), **settings) if urls else InputConfig(**settings),
    )


@pytest.fixture
def web() -> SimpleNamespace:
    """The functions above, for test files (a conftest cannot be imported)."""
    return SimpleNamespace(
        jpeg=jpeg,
        reply=reply,
        redirect=redirect,
        config_for=config_for,
        fetch=fetch,
        outcome_of=outcome_of,
        recipe_for=recipe_for,
        WebServer=WebServer,
    )

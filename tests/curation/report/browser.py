"""A headless Chromium driven through its DevTools protocol: no package but aiohttp."""

import asyncio
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 60


class Browser:
    """One tab: commands go out, events are collected."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def wait_for(self, event: str) -> None:
        while not any(message["method"] == event for message in self.events):
            self.events.append(await self._socket.receive_json(timeout=60))

    async def evaluate(self, expression: str) -> Any:
        answer = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def of(self, *methods: str) -> list[dict[str, Any]]:
        return [message["params"] for message in self.events if message["method"] in methods]


@contextlib.asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[Browser]:
    """Start Chromium with a fresh profile in `folder`, without a network; end it afterwards."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    # Never a skip: a page that nobody opened is not tested.
    assert binary, f"none of {', '.join(NAMES)} is installed"
    arguments = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *("--disable-dev-shm-usage", "--disable-component-update", "--remote-debugging-port=0"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}", "about:blank"),
    ]
    process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(folder / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tab = next(item for item in await response.json() if item["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                yield Browser(socket)
    finally:
        process.kill()
        process.wait()


async def _port(file: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise AssertionError(f"Chromium did not start within {START_SECONDS} s")


def dumps(text: str) -> str:
    """Return a JavaScript string literal."""
    return json.dumps(text)

"""The least speed of an answer: one that drips holds a place that hundreds of others could have.

Counted from the first byte of an answer, so a server may think before it answers. One look serves all answers under
way. Where this process itself was late, or nothing moves from several hosts at once, it is this machine or its network:
nobody is judged.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.connection import Connection

LOOK_SECONDS = 0.25
LATE_SECONDS = 1.0
"""A look that comes so late says that this process stood still."""
MIN_HOSTS = 3
"""Where answers of so many hosts stand still and nothing else moves, it is the network."""


@dataclass(slots=True, eq=False)
class _Flow:
    """One answer under way."""

    host: str
    connection: Connection
    before: int
    """Bytes that had come on the connection before this request."""
    marks: deque[int] = field(default_factory=deque)
    """Bytes that had come at each look of the window."""


class Meter:
    """Watches the answers of one client; 0 bytes a second switch it off."""

    def __init__(self, *, min_bytes_per_second: int, seconds: float) -> None:
        self._least_bytes = min_bytes_per_second * seconds
        self._num_looks = max(1, round(seconds / LOOK_SECONDS))
        self._said = f"under {min_bytes_per_second} bytes a second for {seconds:g} s"
        self._flows: set[_Flow] = set()

    @contextlib.contextmanager
    def watching(self, host: str, connection: Connection) -> Iterator[None]:
        """Watch one answer: if it drips, whoever reads the connection gets a FetchError `timeout`."""
        flow = _Flow(host, connection, connection.num_received)
        self._flows.add(flow)
        try:
            yield
        finally:
            self._flows.discard(flow)

    async def watch(self) -> None:
        """Look at all answers, again and again."""
        loop = asyncio.get_running_loop()
        while self._least_bytes:
            before = loop.time()
            await asyncio.sleep(LOOK_SECONDS)
            self.look(late=loop.time() - before > LOOK_SECONDS + LATE_SECONDS)

    def look(self, *, late: bool = False) -> None:
        """Judge every answer that was looked at for the whole window."""
        slow: list[_Flow] = []
        num_moved = 0
        for flow in self._flows:
            received = flow.connection.num_received
            if received == flow.before:
                continue
            if late:
                flow.marks.clear()
            flow.marks.append(received)
            num_moved += received - flow.marks[0]
            if len(flow.marks) > self._num_looks and received - flow.marks.popleft() < self._least_bytes:
                slow.append(flow)
        if not num_moved and len({flow.host for flow in slow}) >= MIN_HOSTS:
            return
        for flow in slow:
            flow.connection.fail(self._error())

    def _error(self) -> FetchError:
        error = FetchError("timeout", self._said)
        error.stands_for = asyncio.get_running_loop().time() - self._num_looks * LOOK_SECONDS
        error.is_slow = True
        return error

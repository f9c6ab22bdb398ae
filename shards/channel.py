"""A pipe from worker processes to their driver: heartbeats and log lines, one line of JSON each.

Messages of up to PIPE_BUF bytes are written whole or not at all, so many workers share one pipe without a lock that a
killed worker could hold. A heartbeat that finds the pipe full is dropped; a log line waits a moment first.
"""

import contextlib
import json
import os
import select
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

READ_BYTES = 1 << 16
LOG_WAIT_SECONDS = 1.0


class Channel:
    """The driver's end; `writer` is given to workers when they are started."""

    def __init__(self) -> None:
        self._reader, self.writer = Pipe(duplex=False)
        os.set_blocking(self._reader.fileno(), False)
        self._rest = b""

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self.writer.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have come."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader.fileno(), READ_BYTES):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)


class Sender:
    """A worker's end. It never raises: a driver that is gone, or too slow, is no fault of the unit."""

    def __init__(self, writer: Connection) -> None:
        self._writer = writer  # keeps the descriptor open
        os.set_blocking(writer.fileno(), False)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message, unless it is too long for one write."""
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if len(data) > select.PIPE_BUF:
            return
        with contextlib.suppress(OSError):
            if "log" in message:
                select.select([], [self._writer.fileno()], [], LOG_WAIT_SECONDS)
            os.write(self._writer.fileno(), data)

"""What the processes of one run tell each other of hosts that do not answer: lines in one file that all append to.

Each reads what the others have added since. It is advice and no more: it may be lost, and it ages by the clock of the
machine. A run that goes on after a kill reads it too, so that it does not wait for the same dead hosts again.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

MAX_AGE_SECONDS = 30.0
MAX_LINE_BYTES = 1024
MAX_FILE_BYTES = 16 << 20


class HostBoard:
    """One process's view of the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def tell(self, host: str, error_class: str) -> None:
        """Tell the others that a host does not answer."""
        line = json.dumps([host, error_class, time.time(), os.getpid()]).encode() + b"\n"
        with contextlib.suppress(OSError):  # a full disk will be told by who must write
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if len(line) <= MAX_LINE_BYTES and os.fstat(handle).st_size < MAX_FILE_BYTES:
                    os.write(handle, line)
            finally:
                os.close(handle)

    def news(self) -> Iterator[tuple[str, str, float]]:
        """Yield (host, error class, seconds ago) of what others have told since the last time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read(MAX_FILE_BYTES)
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].splitlines():
            with contextlib.suppress(ValueError, TypeError):
                host, error_class, at, process = json.loads(line)
                ago = max(0.0, time.time() - at)
                if process != os.getpid() and ago < MAX_AGE_SECONDS:
                    yield str(host), str(error_class), ago

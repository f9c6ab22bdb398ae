"""The process that reads C2PA manifests, and how it is asked. Run as a program, this file is that process.

It may use so much memory and processor time, write no file and open next to none. One that dies or takes too long is
replaced; the image it had is an error of that row. The program imports nothing of headrace.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import weakref
from typing import Any

MAX_ANSWER_BYTES = 4 << 20
READ_SECONDS = 20.0
MEMORY_BYTES = 2 << 30
"""Of address space: the library alone maps some hundred MB."""
IMAGES_PER_PROCESS = 1000
"""Then it is replaced, so that what it leaks ends."""

# Nothing is fetched, and nothing but the parsed manifest is asked for.
SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_reading": False}}


class ReaderProcess:
    """A process that reads one manifest after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._num_read = 0

    def read(self, data: bytes) -> dict[str, Any]:
        """Return the manifests of an image as c2pa's JSON, or `{"error": why}`."""
        if self._process is None or self._num_read >= IMAGES_PER_PROCESS:
            self.close()
            self._start()
        self._num_read += 1
        line = b""
        with contextlib.suppress(OSError):
            self._write(data)
            line = self._answer()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        self.close()
        return {"error": "the manifest could not be read: its reader took too long, died, or answered too much"}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._end()
        self._process = None

    def _start(self) -> None:
        # -P: or the folder of this file, which holds a c2pa.py, would come before the library.
        command = [sys.executable, "-P", "-B", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._end = weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._num_read = 0

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        rest = memoryview(len(data).to_bytes(8, "big") + data)
        while rest:
            _, ready, _ = select.select([], [self._process.stdin], [], READ_SECONDS)
            if not ready:
                raise TimeoutError
            rest = rest[os.write(self._process.stdin.fileno(), rest[:65536]) :]

    def _answer(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n") and len(line) <= MAX_ANSWER_BYTES:
            ready, _, _ = select.select([self._process.stdout], [], [], READ_SECONDS)
            piece = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                return b""
            line += piece
        return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _serve() -> None:
    import io

    import c2pa

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    context = c2pa.Context(c2pa.Settings.from_dict(SETTINGS))
    source = sys.stdin.buffer
    while size := source.read(8):
        data = source.read(int.from_bytes(size, "big"))
        try:
            reader = c2pa.Reader.try_create(None, io.BytesIO(data), context=context)
            found = {} if reader is None else {"manifests": json.loads(reader.json()).get("manifests")}
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes do to the library is an answer
            found = {"error": str(error)[:500] or type(error).__name__}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()

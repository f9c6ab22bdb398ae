"""Log lines of a run: from workers to the driver's stderr, and into files of bounded size.

A driver that wants files adds a `RunLog` to the logger `headrace` (a job of curation does, in its `logs/`). Then each
unit that logs something has a file of its own beside it. Logging never stops a run: a handler that cannot write stops
writing.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.text import one_line

PACKAGE = "headrace"
FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_UNIT_BYTES = 1 << 20
MAX_RUN_BYTES = 16 << 20
MAX_SENT_LETTERS = 700
"""Of one log line on its way to the driver: it must fit into one atomic write to a pipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLogs:
    """What a worker does with its log lines."""

    shown: int
    """Level from which lines go to the driver."""
    folder: str | None
    """Where each unit has a file; None: nowhere."""


class BoundedFile(logging.Handler):
    """Append lines to a file that is opened with the first of them, up to `max_bytes`."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        super().__init__(logging.INFO)
        self.path = path
        self._max_bytes = max_bytes
        self._file: Any = None
        self._full = False
        self.setFormatter(OneLine(FILE_FORMAT, "%Y-%m-%dT%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self._full:
            return
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
            line = self.format(record) + "\n"
            if self._file.tell() + len(line) > self._max_bytes:
                self._full = True
                line = f"... no more lines: this file is full at {self._max_bytes} bytes\n"
            self._file.write(line)
            self._file.flush()
        except (OSError, ValueError):
            self._full = True  # a full disk must not end the run from here

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        super().close()


class RunLog(BoundedFile):
    """The file of a driver's run; `units` is the folder of the files of its units."""

    def __init__(self, path: Path, *, units: Path) -> None:
        super().__init__(path, max_bytes=MAX_RUN_BYTES)
        self.units = units
        # A unit's own lines are in the unit's file; what looks like a fault is in both.
        self.addFilter(lambda record: record.levelno >= logging.WARNING or not hasattr(record, "unit"))


class OneLine(logging.Formatter):
    """A record on one line, without control characters or secrets of URLs it quotes. A traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def worker_logs() -> WorkerLogs:
    """Return what workers of this driver do with their lines."""
    package, root = logging.getLogger(PACKAGE), logging.getLogger()
    folder = next((str(handler.units) for handler in package.handlers if isinstance(handler, RunLog)), None)
    levels = [handler.level for handler in (*package.handlers, *root.handlers) if not isinstance(handler, RunLog)]
    shown = max(package.getEffectiveLevel(), min(levels, default=logging.WARNING))
    return WorkerLogs(shown=shown, folder=folder)


@contextlib.contextmanager
def logging_to(send: Callable[[Mapping[str, Any]], None], logs: WorkerLogs) -> Iterator[None]:
    """In a worker: send the lines inside to the driver."""
    package = logging.getLogger(PACKAGE)
    handler, level = _Sender(send, logs.shown), package.level
    package.addHandler(handler)
    package.setLevel(min(logs.shown, logging.INFO) if logs.folder is not None else logs.shown)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


_NAMED: ContextVar[int | None] = ContextVar("headrace.unit", default=None)


def named_lines(unit: int) -> None:
    """Say that what is logged in this context is of a unit; for a process that has several under way."""
    _NAMED.set(unit)


def named_unit() -> int | None:
    """Return the unit that this context is of."""
    return _NAMED.get()


@contextlib.contextmanager
def unit_log(name: str, folder: str | None, *, unit: int | None = None) -> Iterator[None]:
    """Write the lines inside to the file of the unit, too; of several under way only those of `unit`'s context."""
    if folder is None:
        yield
        return
    package = logging.getLogger(PACKAGE)
    handler = BoundedFile(Path(folder) / f"{re.sub('[^A-Za-z0-9._-]+', '-', name)}.log", max_bytes=MAX_UNIT_BYTES)
    if unit is not None:
        handler.addFilter(lambda _: _NAMED.get() == unit)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


class _Sender(logging.Handler):
    def __init__(self, send: Callable[[Mapping[str, Any]], None], level: int) -> None:
        super().__init__(level)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._send({"log": record.levelno, "logger": record.name, "text": one_line(text)[:MAX_SENT_LETTERS]})


def relay(message: Mapping[str, Any], unit: str) -> None:
    """In the driver: log the line that a worker sent."""
    logger = logging.getLogger(message["logger"])
    record = logger.makeRecord(
        message["logger"], message["log"], "", 0, "%s: %s", (unit, message["text"]), None, extra={"unit": unit}
    )
    logger.handle(record)

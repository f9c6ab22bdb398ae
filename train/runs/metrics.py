"""`metrics.jsonl`: what each step cost and gave, one JSON object a line.

Each step stands there once, however often the run was killed: on resume, lines behind the checkpoint are cut, as those
steps are done again. `loss` is that of one step's global batch, not a mean since the last line. A number that is not
finite is written as null: JSON has no word for it.
"""

import contextlib
import json
import logging
import math
from pathlib import Path
from typing import Any

from headrace.appended import AppendedFile
from headrace.atomic import write_atomic
from headrace.train.runs.event_file import EventFile

Metrics = dict[str, Any]

MAX_STEP = 1 << 63

log = logging.getLogger(__name__)


class MetricsFile:
    """Appends lines; opened at the step the run continues from.

    Without a path it holds nothing: ranks other than 0 use that. With `tensorboard` an event file says the same.
    """

    def __init__(self, path: Path | None, *, step: int, patient: bool = False, tensorboard: bool = False) -> None:
        self.lines: list[Metrics] = []
        self._file: AppendedFile | None = None
        self._events: EventFile | None = None
        if path is not None:
            self.lines = [line for line in read_metrics(path) if _stands(line, step)]
            write_atomic(str(path), "".join(map(_json_line, self.lines)).encode())
            self._file = AppendedFile(path, patient=patient)
            self._events = EventFile(path.parent, self.lines, patient=patient) if tensorboard else None

    def write(self, line: Metrics) -> None:
        """Append one line, visible to readers at once."""
        if self._file is not None:
            self.lines.append(line)
            self._file.append(_json_line(line))
        if self._events is not None:
            self._events.write(line)

    def retry(self) -> None:
        """Write what a full disk kept from being written."""
        if self._file is not None:
            self._file.append("")
        if self._events is not None:
            self._events.retry()

    def has(self, event: str, step: int) -> bool:
        """True if the line of this event and step is already there."""
        return any(line["event"] == event and line["step"] == step for line in self.lines)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _stands(line: Metrics, step: int) -> bool:
    """True if a line is still true where the run goes on behind `step`: a change just there may be another by now."""
    return bool(line["step"] < step or (line["step"] == step and line["event"] != "change"))


def _json_line(line: Metrics) -> str:
    numbers = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(numbers, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[Metrics]:
    """Return the lines of a metrics file; what a killed process or a bad disk left of a line is warned of."""
    lines, broken = [], []
    with contextlib.suppress(FileNotFoundError):
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
            if (line := _line_of(text)) is not None:
                lines.append(line)
            elif text.strip():
                broken.append(number)
    if broken:
        log.warning("%s: %d lines are not whole and are left out; the first is line %d", path, len(broken), broken[0])
    return lines


def _line_of(text: str) -> Metrics | None:
    with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(text)
        if isinstance(line, dict) and _is_step(line.get("step")) and isinstance(line.get("event"), str):
            return line
    return None


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_STEP

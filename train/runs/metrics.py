"""`metrics.jsonl`: what each step cost and gave, one JSON object a line.

Each step stands there once, however often the run was killed: on resume, lines behind the checkpoint are cut, as those
steps are done again. `loss` is that of one step's global batch, not a mean since the last line. A number that is not
finite is written as null: JSON has no word for it.
"""

import contextlib
import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.appended import AppendedFile
from headrace.files import write_atomic
from headrace.pipeline import Batch
from headrace.shards.permutation import make_key
from headrace.train.parallel.ranks import Ranks

Metrics = dict[str, Any]


class MetricsFile:
    """Appends lines; opened at the step the run continues from.

    Without a path it holds nothing: ranks other than 0 use that.
    """

    def __init__(self, path: Path | None, *, step: int, patient: bool = False) -> None:
        self.lines: list[Metrics] = []
        self._file: AppendedFile | None = None
        if path is not None:
            self.lines = [line for line in read_metrics(path) if line["step"] <= step]
            write_atomic(str(path), "".join(map(_json_line, self.lines)).encode())
            self._file = AppendedFile(path, patient=patient)

    def write(self, line: Metrics) -> None:
        """Append one line, visible to readers at once."""
        if self._file is not None:
            self.lines.append(line)
            self._file.append(_json_line(line))

    def retry(self) -> None:
        """Write what a full disk kept from being written."""
        if self._file is not None:
            self._file.append("")

    def has(self, event: str, step: int) -> bool:
        """True if the line of this event and step is already there."""
        return any(line["event"] == event and line["step"] == step for line in self.lines)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _json_line(line: Metrics) -> str:
    numbers = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(numbers, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[Metrics]:
    """Return the lines of a metrics file; a line that a killed process left unfinished is not one."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int) and "event" in line:
                    lines.append(line)
    return lines


@dataclass(slots=True)
class Meter:
    """Time and images since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    since: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited: float = 0.0

    def add(self, *, images: int, waited: float) -> None:
        """Count one step."""
        self.images += images
        self.waited += waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent in this context out of the rates: validation and saving are no training."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def read(self, flops_per_image: float, ranks: Ranks) -> Metrics:
        """Return rates since the last reading and start anew; waiting is the mean over ranks."""
        now, waited = time.perf_counter(), ranks.sum([self.waited])[0] / ranks.size
        seconds = max(now - self.since, 1e-9)
        line = {
            "images_per_second": round(self.images / seconds, 2),
            "tflops": round(self.images / seconds * flops_per_image / 1e12, 4),
            "wall_seconds": round(now - self.started, 3),
            "data_wait_seconds": round(waited, 4),
            "data_wait_percent": round(100 * waited / seconds, 2),
        }
        self.since, self.images, self.waited = now, 0, 0.0
        return line


def memory_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: the device's, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def batch_digest(batch: Batch) -> int:
    """Return 32 bits whose sum over ranks names the set of (position, source, sample) in a global batch."""
    rows = zip(batch.position.tolist(), batch.source.tolist(), batch.key, strict=True)
    return int(
        np.sum([make_key(position, source, str(key)) & 0xFFFFFFFF for position, source, key in rows], dtype=np.int64)
    )

"""What steps cost, over all ranks: time, waiting for data, memory, and the share of the device's peak.

A process keeps its own counts, and they meet in one reduction a line of metrics: nothing is added to a step. MFU is
images/s x needed operations an image / (bf16 peak of a device x devices). Needed are those that the loss of the line's
own batch cannot be had without (`Objective.needed_flops`), so padding, recomputing, and outputs that nobody reads never
raise it.
"""

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headrace.pipeline import Batch
from headrace.shards.permutation import make_key
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.ranks import Ranks
from headrace.train.peak import peak_flops

BY_RANK = ("step_seconds", "data_wait_seconds", "memory_allocated_bytes", "memory_reserved_bytes")
"""Given as the mean over ranks, and as NAME_worst and NAME_worst_rank."""


@dataclass(slots=True)
class Meter:
    """Time and images since the last line of metrics."""

    started: float = field(default_factory=time.perf_counter)
    since: float = field(default_factory=time.perf_counter)
    steps: int = 0
    images: int = 0
    waited: float = 0.0

    def add(self, *, images: int, waited: float) -> None:
        """Count one step."""
        self.steps += 1
        self.images += images
        self.waited += waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent in this context out of the rates: validation and saving are no training."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def read(self, objective: Objective, batch: Batch, ranks: Ranks) -> dict[str, Any]:
        """Return rates since the last reading and start anew; `batch` is this rank's share of the latest step."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        allocated, reserved = peak_memory(ranks.device)
        own = [seconds / max(1, self.steps), self.waited, allocated, reserved or 0.0]
        shares = [objective.needed_flops(batch), batch_digest(batch), peak_flops(ranks.device) or 0.0]
        of_ranks = np.array(ranks.each([*own, len(batch.position), *shares]))
        images, needed, digest, peak = of_ranks[:, len(own) :].sum(axis=0).tolist()
        by_rank = dict(zip(BY_RANK, of_ranks.T, strict=False))
        rate = self.images / seconds
        waited = float(by_rank["data_wait_seconds"].mean())
        line = {
            "images_per_second": round(rate, 2),
            "tflops": round(rate * objective.train_flops_per_image / 1e12, 4),
            "needed_tflops": round(rate * needed / images / 1e12, 4),
            "mfu_percent": round(100 * rate * needed / images / peak, 2) if all(of_ranks[:, -1]) else None,
            "unix_seconds": round(time.time(), 3),
            "wall_seconds": round(now - self.started, 3),
            "data_wait_percent": round(100 * waited / seconds, 2),
            "memory_bytes": int(allocated),
            "batch_digest": int(digest),
        }
        for name, values in by_rank.items():
            line |= _mean_and_worst(name, values)
        if reserved is None:
            line |= dict.fromkeys((name for name in line if name.startswith("memory_reserved_bytes")), None)
        self.since, self.steps, self.images, self.waited = now, 0, 0, 0.0
        return line


def _mean_and_worst(name: str, values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    rank = int(values.argmax())
    numbers = {name: float(values.mean()), f"{name}_worst": float(values[rank])}
    digits = 0 if name.endswith("_bytes") else 4
    rounded = {key: round(number, digits) if digits else int(number) for key, number in numbers.items()}
    return {**rounded, f"{name}_worst_rank": rank}


def peak_memory(device: torch.device) -> tuple[float, float | None]:
    """Return the most bytes so far: in tensors, and held for them. On a CPU the resident set, and None."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)), float(torch.cuda.max_memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0, None


def batch_digest(batch: Batch) -> int:
    """Return 32 bits whose sum over ranks names the set of (position, source, sample) in a global batch."""
    rows = zip(batch.position.tolist(), batch.source.tolist(), batch.key, strict=True)
    return int(
        np.sum([make_key(position, source, str(key)) & 0xFFFFFFFF for position, source, key in rows], dtype=np.int64)
    )

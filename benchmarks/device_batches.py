"""Copies to a GPU beside computing: what a step loses to them, by the plain way and by DeviceBatches.

    python benchmarks/device_batches.py [--budget-seconds 15] [--json FILE]

A step is 50 ms of matrix products and one look at a batch of 1,024 uint8 pictures of 224 pixels that lies ready in the
host's memory, so what a step takes longer than with a batch that stays on the device is the copy's fault alone.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.pipeline import Batch
from headrace.pipeline.stats import BatchTimes, Delivered
from headrace.torch import DeviceBatches

IMAGES, SIZE, STEP_SECONDS, NUM_BATCHES = 1024, 224, 0.05, 2
START_SECONDS = 6.0  # until the first step
GIGABYTES = IMAGES * SIZE * SIZE * 3 / 1e9


class Ready:
    """As much of a `Stream` as DeviceBatches asks for; its batches lie in memory."""

    rank, world_size, global_batch = 0, 1, IMAGES
    device, changes_left, counts_here = "cpu", (), True

    def __init__(self, *, pinned: bool) -> None:
        self.views = [(view.pin_memory() if pinned else view).numpy() for view in map(pictures, range(NUM_BATCHES))]
        self.position, self.given = 0, Delivered()
        self.times = BatchTimes(IMAGES, 0.0, 0.0, 0.0)

    def __next__(self) -> Batch:
        number, self.position = self.position // IMAGES, self.position + IMAGES
        self.times = BatchTimes(IMAGES, 0.0, 0.0, time.perf_counter())
        return Batch(
            images=self.views[number % NUM_BATCHES],
            columns={},
            position=np.arange(self.position - IMAGES, self.position),
            source=np.zeros(IMAGES, np.int32),
            key=[""] * IMAGES,
            valid=np.ones(IMAGES, np.bool_),
        )

    def hand_on(self, *_: Any, **__: Any) -> Delivered:
        return self.given

    def count_transfer(self, _: float) -> None:
        """Nobody asks."""

    pause = close = lambda _: None


def pictures(number: int) -> torch.Tensor:
    """Return a batch, at no cost of random numbers."""
    return torch.full((IMAGES, SIZE, SIZE, 3), number, dtype=torch.uint8)


def main() -> None:
    """Print one line a measurement, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("device_batches: no CUDA device here; nothing was run, nothing is claimed")
        return
    rows = []
    for row in itertools.chain(rates(), steps(arguments.budget_seconds)):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n")


def rates() -> Iterator[dict[str, Any]]:
    """Yield how fast one batch comes to the device."""
    pageable = pictures(0)
    pinned = pageable.pin_memory()
    ways: dict[str, Callable[[], Any]] = {
        "pageable": lambda: pageable.to("cuda"),
        "pinned": lambda: pinned.to("cuda", non_blocking=True),
        "to pinned memory": pageable.pin_memory,
    }
    for name, copy in ways.items():
        seconds = statistics.median([timed(copy) for _ in range(6)][1:])
        yield {"copy": name, "gigabytes_per_second": round(GIGABYTES / seconds, 1)}


def steps(budget_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of a step by each way, and the share of it that is not computing."""
    compute = computing()
    resident = pictures(0).to("cuda")
    count = max(8, int((budget_seconds - START_SECONDS) / 6 / STEP_SECONDS))
    alone = step_seconds(itertools.repeat(resident), compute, count)
    yield {"way": "the batch stays on the device", "step_ms": round(1e3 * alone, 2)}
    for name, pinned, ahead in (
        ("pageable, copied in the loop", False, False),
        ("pinned, copied in the loop", True, False),
        ("pageable, DeviceBatches", False, True),
        ("pinned, DeviceBatches", True, True),
    ):
        stream: Any = Ready(pinned=pinned)
        if ahead:
            with DeviceBatches(stream, "cuda") as batches:
                seconds = step_seconds((batch.images for batch in batches), compute, count)
        else:
            seconds = step_seconds((next(stream).images for _ in itertools.count()), compute, count)
        row = {"way": name, "step_ms": round(1e3 * seconds, 2)}
        yield row | {"lost_percent": round(100 * max(0.0, seconds - alone) / seconds, 2)}


def step_seconds(batches: Iterator[Any], compute: Callable[[], Any], count: int) -> float:
    """Return the mean seconds of a step that reads its loss."""

    def step() -> None:
        images = torch.as_tensor(next(batches)).to("cuda", non_blocking=True)
        loss = images.float().mean()
        compute()
        loss.item()

    for _ in range(3):
        step()
    return timed(lambda: [step() for _ in range(count)]) / count


def computing() -> Callable[[], Any]:
    """Return a function that keeps the device busy for about `STEP_SECONDS`."""
    weights = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def products(count: int) -> torch.Tensor:
        product = weights
        for _ in range(count):
            product = (product @ weights) * 0.01
        return product

    products(10)
    count = max(1, round(STEP_SECONDS / (timed(lambda: products(40)) / 40)))
    return lambda: products(count)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call, until the device has done it."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

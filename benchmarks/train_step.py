"""One AIM step on this machine: time, images/s, TFLOP/s, MFU and peak memory, each means to be fast on and off.

    python benchmarks/train_step.py [--device cpu|cuda] [--models tiny 0.6B 1B] [--budget-seconds N] [--json OUT]
    python benchmarks/train_step.py --data [--photos TAR]     fed by a stream: how long the device waits for data

A step is forward, backward, clipping, the loss read on the host, AdamW; batches of noise lie on the device. FLOPs are
those that the loss needs: 6 x parameters of the trunk x tokens, 6 x parameters of the head x predicted patches, 12 x
depth x width x pairs of patches that see each other. What is padded, computed again, or computed and thrown away is
not counted, so leaving work out never raises MFU. MFU is over 989.5 TFLOP/s, the dense bf16 peak of an H100 and H200.

`plain` is `train_peer.py`: the same loss (checked first) written without any of it, eager and with compiled blocks.
A cell that the time does not allow is said to be unmeasured.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from train_data import measure_data, stepping
from train_peer import PlainAim, check_peer

from headrace.pipeline import Batch
from headrace.train.execution import Execution, choose_execution
from headrace.train.objectives import aim
from headrace.train.objectives.build import build_objective
from headrace.train.parallel.precision import uses_bf16
from headrace.train.peak import peak_flops

BATCHES = {"tiny": 64, "0.6B": 128, "1B": 96}
SIDES = {"tiny": (32, 4)}
# Distinct batches that the steps go round: prefixes must differ, as in a run.
NUM_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One row: a model, and how its step is computed."""

    model: str
    name: str
    execution: Execution | None
    """None = the plain one."""
    compiled: bool = False
    """The plain one's blocks are compiled."""
    everywhere: bool = False
    """The head runs on every token."""
    batch: int = 0
    """Images a step; 0 = the model's."""
    seconds: float = 12.0
    """What it is expected to take on a GPU, compilation included."""


@dataclass(slots=True)
class Row:
    """What was measured."""

    model: str
    cell: str
    batch: int
    note: str = ""
    """Why there is no number."""
    step_ms: float = 0.0
    images_per_second: float = 0.0
    tflops: float = 0.0
    mfu_percent: float | None = None
    peak_gb: float = 0.0
    first_step_seconds: float = 0.0
    """With what is compiled."""


def cells(model: str, device: torch.device) -> list[Cell]:
    """Return what is measured of one model, what matters most first."""
    fast = choose_execution(device, bf16=uses_bf16("auto", device))
    if device.type == "cpu":
        return [
            Cell(model, "ours", fast),
            Cell(model, "plain", None),
            Cell(model, "head on every token", fast, everywhere=True),
            Cell(model, "checkpointing selective", replace(fast, recompute="selective")),
            Cell(model, "checkpointing full", replace(fast, recompute="full")),
        ]
    found = [
        Cell(model, "plain, eager", None, seconds=6),
        Cell(model, "ours", fast, seconds=22),
        Cell(model, "plain, blocks compiled", None, compiled=True, seconds=18),
    ]
    if model != "0.6B":
        return [*found, Cell(model, "checkpointing full", replace(fast, recompute="full"), seconds=18)]
    if torch.cuda.get_device_properties(device).total_memory > 120e9:
        found.insert(2, Cell(model, "ours, twice the batch", fast, batch=2 * BATCHES[model], seconds=14))
    return [
        *found,
        Cell(model, "not compiled", replace(fast, compiled=False), seconds=10),
        Cell(model, "head on every token", fast, everywhere=True, seconds=8),
        Cell(model, "attention sdpa", replace(fast, flex=False), seconds=14),
        Cell(model, "residual stream fp32", replace(fast, residual=None), seconds=16),
        Cell(model, "checkpointing selective", replace(fast, recompute="selective"), seconds=16),
        Cell(model, "checkpointing full", replace(fast, recompute="full"), seconds=16),
    ]


def main() -> None:
    """Measure cell after cell while there is time; print and write each at once."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    until = time.monotonic() + arguments.budget_seconds - process_age()
    if arguments.data:
        show_data(arguments, device, until)
        return
    if device.type == "cpu":
        torch.set_num_threads(1)
    show_same_loss()
    models = arguments.models or (["0.6B", "1B"] if device.type == "cuda" else ["tiny"])
    rows: list[Row] = []
    # Ours and the plain one of every model come before the means one by one.
    found = [cell for model in models for cell in cells(model, device)]
    for cell in sorted(found, key=lambda one: not one.name.startswith(("ours", "plain"))):
        left = until - time.monotonic()
        batch = cell.batch or arguments.batch or BATCHES[cell.model]
        if left < cell.seconds or (arguments.cells and cell.name not in arguments.cells):
            reason = "not asked for" if left >= cell.seconds else f"unmeasured: {max(0.0, left):.0f} s were left"
            rows.append(Row(cell.model, cell.name, batch, note=reason))
        else:
            rows.append(measure_cell(cell, device, batch, arguments.cell_seconds))
        print(line_of(rows[-1], rows), flush=True)
        write(arguments.json, device, rows)


def process_age() -> float:
    """Return how long this process lives: imports count too, 13 s of them where nothing is in the file cache."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    age = float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return min(max(age, 0.0), 60.0)


def measure_cell(cell: Cell, device: torch.device, batch: int, seconds: float) -> Row:
    """Return the row of one cell; where the memory is too small, of half the batch, and so on."""
    torch._dynamo.reset()
    row = Row(cell.model, cell.name, batch)
    try:
        step, flops = build_step(cell, device, batch)
        begun = time.perf_counter()
        step()
        row.first_step_seconds = round(time.perf_counter() - begun, 2)
        reset_peak(device)
        row.step_ms = 1e3 * typical_seconds(step, time.perf_counter() + seconds, device)
    except torch.OutOfMemoryError:
        step = None  # lets go of the model
    except Exception as error:  # noqa: BLE001  one cell's fault is that cell's alone
        return replace(row, note=f"failed: {type(error).__name__}: {str(error)[:200]}")
    if step is None:
        empty_cache(device)
        return measure_cell(cell, device, batch // 2, seconds) if batch > 1 else replace(row, note="out of memory")
    row.images_per_second = 1e3 * batch / row.step_ms
    row.tflops = flops / row.step_ms / 1e9
    row.mfu_percent = mfu(row.tflops, device)
    row.peak_gb = peak_gb(device)
    del step
    empty_cache(device)
    return row


def build_step(cell: Cell, device: torch.device, images: int) -> tuple[Callable[[], None], float]:
    """Return a function that does one optimizer step, and the FLOPs that its loss needs."""
    side, patch = SIDES.get(cell.model, (224, 14))
    config = aim.AimConfig(kind="aim", model=cell.model, patch=patch)
    with device:
        ours = build_objective(config, image_size=side, seed=0)
    assert isinstance(ours, aim.Aim)
    batches = [noise(images, side, number * images, device) for number in range(NUM_BATCHES)]
    flops = sum(ours.needed_flops(batch) for batch in batches) / NUM_BATCHES
    module, loss_of = plain(cell, config, side, device, ours) if cell.execution is None else fast(cell, ours)
    del ours
    step = stepping(
        module, loss_of, device, None if cell.execution else torch.optim.AdamW(module.parameters(), lr=1e-3)
    )
    turns = cycle(batches)
    return lambda: step(next(turns)), flops


def fast(cell: Cell, ours: aim.Aim) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """Return our objective as the cell wants it, and its mean loss."""
    assert cell.execution is not None
    ours.run_as(cell.execution)
    if cell.everywhere:
        ours._head_rows = everywhere_of(ours)  # type: ignore[method-assign]
    return ours, lambda batch: ours(batch)[0] / ours.num_terms(batch)


def everywhere_of(ours: aim.Aim) -> Callable[[Any, int], tuple[Any, int]]:
    """Rows that count first, then all others: the cost of a head that does not choose."""

    def head_rows(rows: Any, images: int) -> tuple[Any, int]:
        others = np.ones(images * ours.num_patches, np.bool_)
        others[rows] = False
        return np.concatenate([rows, np.flatnonzero(others)]), len(rows)

    return head_rows


def plain(
    cell: Cell, config: aim.AimConfig, side: int, device: torch.device, ours: aim.Aim
) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """Return the plain model, and its mean loss; prefixes are ours, drawn on the host."""
    with device:
        peer = PlainAim(config, side)
    if cell.compiled:
        for block in (*peer.blocks, *peer.decoder_blocks):
            block.compile()
    seed, patches = ours.seed, ours.num_patches

    def loss_of(batch: Batch) -> Tensor:
        prefix = aim.prefix_lengths(batch.position, patches, seed)
        loss: Tensor = peer(torch.as_tensor(batch.images), torch.from_numpy(prefix).to(device))
        return loss

    return peer, loss_of


def show_same_loss() -> None:
    """Check that the plain step and ours compute the same."""
    config = aim.AimConfig(kind="aim", model="tiny", patch=4, width=32, depth=2, heads=2, head_width=32, head_depth=2)
    ours = build_objective(config, image_size=32, seed=0)
    assert isinstance(ours, aim.Aim)
    batch = noise(8, 32, 0, torch.device("cpu"))
    with torch.no_grad():
        loss = float(ours(batch)[0]) / ours.num_terms(batch)
    check_peer(ours, torch.as_tensor(batch.images), torch.from_numpy(ours.prefixes(batch)), loss)


def noise(images: int, side: int, first: int, device: torch.device) -> Batch:
    """Return a batch of noise on the device."""
    generator = torch.Generator().manual_seed(first)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator).to(device)
    return Batch(
        images=pixels,  # type: ignore[arg-type]
        columns={},
        position=np.arange(first, first + images),
        source=np.zeros(images, np.int32),
        key=[""] * images,
        valid=np.ones(images, np.bool_),
    )


def typical_seconds(step: Callable[[], None], until: float, device: torch.device) -> float:
    """Return the median time of three to twenty steps, after one that is not counted; on a CPU the least CPU time.

    One thread computes there, and others may share the machine.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    step()
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() < until):
        begun = clock()
        step()
        times.append(clock() - begun)
    return float(np.median(times) if device.type == "cuda" else min(times))


def mfu(tflops: float, device: torch.device) -> float | None:
    """Return percent of the device's dense bf16 peak; None where that is not known."""
    peak = peak_flops(device)
    return None if peak is None else 100 * tflops * 1e12 / peak


def reset_peak(device: torch.device) -> None:
    """Forget what compilation took."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """Return the most memory of tensors at a time; 0 on a CPU, where the process has seen other cells."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def empty_cache(device: torch.device) -> None:
    """Give the next cell all of the memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def line_of(row: Row, rows: list[Row]) -> str:
    """Return the row for people, with the speed over the plain one."""
    head = f"{row.model:5} {row.cell:26} batch {row.batch:4}: "
    if row.note:
        return head + row.note
    plain_rows = [one for one in rows if one.model == row.model and one.cell.startswith("plain") and not one.note]
    best = max((one.images_per_second for one in plain_rows), default=0.0)
    ratio = f", {row.images_per_second / best:.2f} x plain" if best and not row.cell.startswith("plain") else ""
    share = "" if row.mfu_percent is None else f", MFU {row.mfu_percent:.1f} %"
    memory = f", {row.peak_gb:.1f} GB" if row.peak_gb else ""
    return (
        f"{head}{row.step_ms:8.1f} ms, {row.images_per_second:8.1f} images/s, {row.tflops:7.3f} TFLOP/s{share}{memory}"
        f"{ratio}, first step {row.first_step_seconds:.0f} s"
    )


def write(path: str | None, device: torch.device, rows: list[Row]) -> None:
    """Write all rows so far."""
    if path:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        facts = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
        Path(path).write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def show_data(arguments: argparse.Namespace, device: torch.device, until: float) -> None:
    """Measure how long steps wait for a stream."""
    rows: list[dict[str, Any]] = []
    for row in measure_data(device, arguments.photos, until=until, batch=arguments.batch):
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="*", choices=[*BATCHES], help="0.6B and 1B on CUDA, tiny on a CPU")
    parser.add_argument("--batch", type=int, default=0, help="images a step; 0 = what fits 80 GB")
    parser.add_argument("--cells", nargs="*", help="names of cells; all by default")
    parser.add_argument("--cell-seconds", type=float, default=3.0, help="that one cell is measured, at most")
    parser.add_argument("--budget-seconds", type=float, default=600.0, help="for all cells")
    parser.add_argument("--data", action="store_true", help="fed by a stream instead of batches of noise")
    parser.add_argument("--photos", help="tar of JPEGs for --data; without it pictures are made")
    parser.add_argument("--json", metavar="OUT", help="write all rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""What a checkpoint costs a run: step times with and without saving, waiting for it or not; bytes read at a load.

    python benchmarks/checkpoint.py --model 300M --every 60 --json FILE     both, in eight minutes on a CPU
    python benchmarks/checkpoint.py [--model tiny|300M|0.6B|1B] [--every S] [--turns N] [--device cpu|cuda]
    python benchmarks/checkpoint.py --only load [--ranks N]     what each of N processes reads, DDP and FSDP

Steps are those of AIM on noise of the shape of images. A turn of a mode that saves (waiting, beside) lasts `--every`
seconds and has one save in its middle; one without saving half as long. Modes take turns, and `--turns` of each are
measured, as far as `--limit` seconds in all allow. `the call` is the time that a save takes of a step's thread;
`overhead` compares the seconds of all steps and saves with as many median steps without saving. Bytes are counted by
the reader, and by the kernel: rchar of `/proc/self/io`, all that the process asked for while it loaded.
"""

import argparse
import gc
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from train_data import stepping

from headrace.pipeline import Batch
from headrace.train.config import RunConfig, load_run
from headrace.train.model import first_weights, place_model
from headrace.train.parallel.layout import ALL_OF_IT
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.runs.background import BackgroundSaver
from headrace.train.runs.checkpoint import list_checkpoints, load_checkpoint, remove_old, restore, save_checkpoint
from headrace.train.runs.optimizer_state import make_state
from headrace.train.runs.state_file import Progress

# Overrides of `tiny`, side of the images, images a step on a CPU and on a GPU.
MODELS: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "tiny": ({"model": "tiny"}, 56, 16, 64),
    "300M": ({"model": "tiny", "width": 1024, "depth": 24, "heads": 8}, 56, 4, 64),
    "0.6B": ({"model": "0.6B"}, 224, 1, 96),
    "1B": ({"model": "1B"}, 224, 1, 64),
}
MODES = ("none", "waiting", "beside")
# What a turn may take behind its time: a step, and the rest of a save.
LAST_SAVE_SECONDS = 20.0
BEGAN = time.perf_counter()


@dataclass(slots=True)
class Times:
    """What the steps of one mode took, in seconds."""

    steps: list[float] = field(default_factory=list)
    saving: list[float] = field(default_factory=list)


def run_config(folder: Path, arguments: argparse.Namespace, **changes: Any) -> RunConfig:
    """Return a run of the model; its source is never opened."""
    objective, side, *_ = MODELS[arguments.model]
    data = {
        "out": str(folder / "run"),
        "seed": 0,
        "steps": 1000,
        "global_batch": 1,
        "mixture": {"seed": 0, "image_size": side, "sources": [{"name": "noise", "url": str(folder)}]},
        "objective": {"kind": "aim", **objective},
        "device": arguments.device,
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_run(path)


def noise(size: int, side: int, device: torch.device) -> Batch:
    """Return a batch of random pixels on the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
    return Batch(
        images=torch.from_numpy(pixels).to(device),  # type: ignore[arg-type]
        columns={},
        position=np.arange(size),
        source=np.zeros(size, np.int32),
        key=[""] * size,
        valid=np.ones(size, np.bool_),
    )


def measure_steps(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Step in each mode, and return what steps and saves took."""
    device = torch.device(arguments.device)
    ranks = Ranks(rank=0, size=1, device=device)
    config = run_config(folder, arguments)
    objective, _ = place_model(config, ranks)
    optimizer = config.optimizer.build(objective)
    _, side, on_cpu, on_gpu = MODELS[arguments.model]
    batch = noise(on_gpu if device.type == "cuda" else on_cpu, side, device)

    train = stepping(objective, lambda batch: objective(batch)[0], device, optimizer)

    def step() -> float:
        began = time.perf_counter()
        train(batch)
        return time.perf_counter() - began

    checkpoints = folder / "checkpoints"
    saver = BackgroundSaver(checkpoints, objective, optimizer, ranks=ranks, layout=ALL_OF_IT)
    number = 0

    def save(mode: str) -> None:
        nonlocal number
        number += 1
        progress = Progress(step=number, stream={})
        if mode == "beside":
            saver.save(
                progress=progress, config=config, then=lambda: remove_old(checkpoints, keep=1, step=progress.step)
            )
        else:
            save_checkpoint(checkpoints, objective, optimizer, progress=progress, config=config)
            remove_old(checkpoints, keep=1, step=number)

    for _ in range(2):
        step()
    save("beside")  # takes its memory once, as the first save of a run does
    saver.finish()
    times = {mode: Times() for mode in MODES}
    for turn in range(arguments.turns):
        for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
            if time.perf_counter() + arguments.every + LAST_SAVE_SECONDS > BEGAN + arguments.limit:
                continue  # the table says how many steps and saves there were
            one_turn(times[mode], arguments.every, step, partial(save, mode) if mode != "none" else None, saver)
    saver.close()
    size = sum(path.stat().st_size for path in list_checkpoints(checkpoints)[-1].iterdir())
    return {
        "model": arguments.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in objective.parameters()),
        "images_per_step": len(batch.position),
        "checkpoint_bytes": size,
        "save_every_seconds": arguments.every,
        "modes": {mode: told(times[mode], times["none"]) for mode in MODES if times[mode].steps},
    }


def one_turn(
    times: Times, every: float, step: Callable[[], float], save: Callable[[], None] | None, saver: BackgroundSaver
) -> None:
    """Step for a turn of this mode; what is still written at its end counts for nothing."""
    began, saved = time.perf_counter(), save is None
    while (now := time.perf_counter()) < began + (every if save else every / 2):
        saving = 0.0
        if save is not None and not saved and now >= began + every / 2:
            save()
            saved, saving = True, time.perf_counter() - now
            times.saving.append(saving)
        times.steps.append(step() + saving)
        saver.poll()
    saver.finish()


def told(times: Times, none: Times) -> dict[str, Any]:
    """Return the numbers of one mode."""
    steps, base = sorted(times.steps), statistics.median(none.steps or times.steps)
    return {
        "steps": len(steps),
        "saves": len(times.saving),
        "mean_seconds": statistics.fmean(steps),
        "median_seconds": statistics.median(steps),
        "p99_seconds": steps[min(len(steps) - 1, int(0.99 * len(steps)))],
        "worst_seconds": steps[-1],
        "saving_seconds": statistics.fmean(times.saving) if times.saving else 0.0,
        "overhead_percent": 100 * (sum(steps) / (len(steps) * base) - 1),
    }


def measure_load(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a checkpoint as one process does, and let several load it; then what they write in parts."""
    config = run_config(folder, arguments, parallel={"strategy": "ddp"})
    ranks = Ranks(rank=0, size=1, device=torch.device(arguments.device))
    objective, _ = place_model(config, ranks)
    optimizer = config.optimizer.build(objective)
    make_state(optimizer)
    path = save_checkpoint(folder / "c", objective, optimizer, progress=Progress(step=1, stream={}), config=config)
    del objective, optimizer
    size = sum(file.stat().st_size for file in path.iterdir())
    rows = []
    for strategy in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            config = run_config(folder, arguments, parallel={"strategy": strategy})
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={arguments.ranks}", __file__, "--worker", str(folder), str(path), out]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            told_by = [json.loads(file.read_text()) for file in sorted(Path(out).iterdir())]
        rows.append({"strategy": strategy, "ranks": arguments.ranks, "by_rank": told_by})
    return {"model": arguments.model, "checkpoint_bytes": size, "loads": rows}


def load_as_worker(folder: str, path: str, out: str) -> None:
    """Load the checkpoint as one of several processes, and write how many bytes were read."""
    config = load_run(Path(folder) / "run.yaml")
    with join_ranks(config.device) as ranks:
        objective, layout = place_model(config, ranks)
        optimizer = config.optimizer.build(objective)
        first_weights(config, objective, ranks)
        ranks.wait()
        began, before = time.perf_counter(), bytes_asked_for()
        size = restore(load_checkpoint(Path(path)), objective, optimizer, ranks=ranks, layout=layout)
        seconds, asked = time.perf_counter() - began, bytes_asked_for() - before
        found = {"bytes_read": size, "rchar": asked, "seconds": round(seconds, 3)}
        (Path(out) / f"{ranks.rank:05d}").write_text(json.dumps(found))
        ranks.wait()


def bytes_asked_for() -> int:
    """Return the bytes that this process has read so far, from files and whatever else, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def table(steps: dict[str, Any]) -> str:
    """Return the rows of the page of benchmarks."""
    rows = [
        "| saving | steps | saves | mean step, s | p99, s | worst, s | the call, s | overhead |",
        "| --- " * 8 + "|",
    ]
    for mode, name in (("none", "none"), ("waiting", "waiting for it"), ("beside", "beside the steps")):
        if mode not in steps["modes"]:
            rows.append(f"| {name} | not measured |" + " |" * 6)
            continue
        one = steps["modes"][mode]
        numbers = [one[f"{key}_seconds"] for key in ("mean", "p99", "worst", "saving")]
        cells = [name, one["steps"], one["saves"], *(f"{number:.2f}" for number in numbers)]
        rows.append("| " + " | ".join(map(str, cells)) + f" | {one['overhead_percent']:.1f} % |")
    return "\n".join(rows)


def table_of_loads(loads: dict[str, Any]) -> str:
    """Return the rows of what was read."""
    rows = ["| strategy | rank | read of the checkpoint, GB | all bytes read (rchar), GB | s |", "| --- " * 5 + "|"]
    for load in loads["loads"]:
        for rank, one in enumerate(load["by_rank"]):
            read = f"{one['bytes_read'] / 1e9:.2f} | {one['rchar'] / 1e9:.2f} | {one['seconds']:.1f}"
            rows.append(f"| {load['strategy']} | {rank} of {load['ranks']} | {read} |")
    return "\n".join(rows)


def parsed() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two saves")
    parser.add_argument("--turns", type=int, default=2, help="of each mode")
    parser.add_argument("--limit", type=float, default=470.0, help="seconds in all; no turn begins that passes it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: the temporary folder")
    parser.add_argument("--only", choices=("steps", "load"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it, and write it as JSON."""
    arguments = parsed()
    if arguments.worker:
        load_as_worker(*arguments.worker)
        return
    logging.basicConfig(level=logging.WARNING)
    found: dict[str, Any] = {}
    for name, measure in (("load", measure_load), ("steps", measure_steps)):
        if arguments.only in (None, name):
            folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=arguments.folder))
            try:
                found[name] = measure(folder, arguments)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            gc.collect()
    print(json.dumps(found, indent=1))
    if "steps" in found:
        print(table(found["steps"]))
    if "load" in found:
        print(table_of_loads(found["load"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

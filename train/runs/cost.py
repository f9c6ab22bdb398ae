"""What a run will take: memory, room on the disk, days of a GPU; and what of it cannot be had here."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from headrace.train.config import RunConfig
from headrace.train.objectives.objective import Objective
from headrace.train.peak import PEAK_FLOPS as PEAKS
from headrace.train.runs.tensors import num_bytes
from headrace.train.steady.changes import keeps_average
from headrace.train.steady.start import bytes_of_average, bytes_of_checkpoint, bytes_of_moments

PEAK_FLOPS = PEAKS["H100"]
STATED_MFU = 0.4
SHARED_BY = 8


class PlanError(ValueError):
    """A run that cannot be started here; `lines` say what it would take all the same."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = list(lines)


def cost_lines(config: RunConfig, objective: Objective) -> list[str]:
    """Return what a run takes, one fact a line. Raises PlanError, naming the number to change, for what cannot fit.

    `objective` may be on the meta device.
    """
    days = objective.train_flops_per_image * config.total_steps * config.global_batch / PEAK_FLOPS / STATED_MFU / 86400
    memory, no_memory = _memory_line(config, objective)
    disk, no_disk = _disk_line(config, objective)
    time = f"time: {days:,.3g} GPU-days of an H100 at {STATED_MFU:.0%} MFU ({PEAK_FLOPS / 1e12:g} TFLOP/s in bf16)"
    if no_memory or no_disk:
        raise PlanError(no_memory or no_disk, [memory, disk, time])
    return [memory, disk, time]


class StaticMemory(NamedTuple):
    """Bytes that a process holds however many images it runs at once."""

    weights: int
    gradients: int
    moments: int
    average: int
    """Of the weights; 0 where the run has none."""

    @property
    def together(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.average


def static_memory(config: RunConfig, objective: Objective) -> StaticMemory:
    """Return what a process holds that has all of the model."""
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    average = bytes_of_average(objective) if keeps_average(config) else 0
    return StaticMemory(num_bytes(objective.state_dict()), trained, bytes_of_moments(config, objective), average)


def _memory_line(config: RunConfig, objective: Objective) -> tuple[str, str]:
    """Return what is said of memory, and why it is too little, if it is."""
    static = static_memory(config, objective)
    limit, whose = memory_here(config)
    refusal = ""
    if static.together > limit and config.parallel.strategy != "fsdp":
        parts = "weights, gradients, moments and ema" if static.average else "weights, gradients and moments"
        refusal = (
            f"{parts} take {gigabytes(static.together)} a process, {whose} has {gigabytes(limit)}; take a smaller "
            "objective, or several GPUs with parallel.strategy=fsdp"
        )
    average = f"ema {gigabytes(static.average)}, " if static.average else ""
    line = (
        f"memory: weights {gigabytes(static.weights)}, gradients {gigabytes(static.gradients)}, moments "
        f"{gigabytes(static.moments)}, {average}together {gigabytes(static.together)} a process (fsdp over "
        f"{SHARED_BY}: {gigabytes(static.together / SHARED_BY)}); activations come on top"
    )
    return line, refusal


def memory_here(config: RunConfig) -> tuple[float, str]:
    """Return the memory that a process here has; without end where it is planned for another machine."""
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    if config.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    return float("inf"), ""


def _disk_line(config: RunConfig, objective: Objective) -> tuple[str, str]:
    """Return what is said of the disk, and why it is too full, if it is."""
    averaged, every = keeps_average(config), config.checkpoint.every
    size = bytes_of_checkpoint(config, objective)
    weights = num_bytes(objective.state_dict()) * (1 + averaged)
    kept = config.checkpoint.keep + 1  # the oldest goes when the newest is whole
    if config.checkpoint.keep_every:
        kept += config.total_steps // config.checkpoint.keep_every
    out = Path(config.out).absolute()
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    refusal = ""
    if size > free and config.checkpoint.on_full_disk == "stop":
        refusal = f"a checkpoint takes {gigabytes(size)}, {gigabytes(free)} are free at {out}; choose another `out`"
    at_most = kept * size + weights
    lack = "" if at_most <= free else ": too few, lower checkpoint.keep or choose another `out`"
    line = (
        f"checkpoint: every {every:,} steps, {config.checkpoint.keep} kept, in {config.out}/checkpoints; "
        f"{gigabytes(size)} each, {gigabytes(at_most)} at most with the exported weights; {gigabytes(free)} are free"
        f"{lack}"
    )
    return line, refusal


def gigabytes(size: float) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"

"""What a run will take: memory, room on the disk, days of a GPU; and what of it cannot be had here."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from headrace.train.config import RunConfig
from headrace.train.objectives.objective import Objective
from headrace.train.peak import PEAK_FLOPS as PEAKS
from headrace.train.runs.tensors import num_bytes
from headrace.train.steady.changes import keeps_average
from headrace.train.steady.start import MOMENTS, bytes_of_average, bytes_of_checkpoint

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


def _memory_line(config: RunConfig, objective: Objective) -> tuple[str, str]:
    """Return what is said of memory, and why it is too little, if it is."""
    weights = num_bytes(objective.state_dict())
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    average = bytes_of_average(objective) if keeps_average(config) else 0
    static = weights + (1 + MOMENTS) * trained + average
    limit, whose = _memory_here(config)
    refusal = ""
    if static > limit and config.parallel.strategy != "fsdp":
        refusal = (
            f"weights, gradients and moments{' and ema' * bool(average)} take {_gb(static)} a process, {whose} has "
            f"{_gb(limit)}; take a smaller objective, or several GPUs with parallel.strategy=fsdp"
        )
    line = (
        f"memory: weights {_gb(weights)}, gradients {_gb(trained)}, moments {_gb(MOMENTS * trained)}, "
        f"{f'ema {_gb(average)}, ' if average else ''}together "
        f"{_gb(static)} a process (fsdp over {SHARED_BY}: {_gb(static / SHARED_BY)}); activations come on top, "
        "images_per_micro_batch and activation_checkpointing lower them"
    )
    return line, refusal


def _memory_here(config: RunConfig) -> tuple[float, str]:
    """Return the memory that a process here has; without end where it is planned for another machine."""
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    if config.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    return float("inf"), ""


def _disk_line(config: RunConfig, objective: Objective) -> tuple[str, str]:
    """Return what is said of the disk, and why it is too full, if it is."""
    averaged, every = keeps_average(config), config.checkpoint.every
    size = bytes_of_checkpoint(objective, averaged=averaged)
    weights = num_bytes(objective.state_dict()) * (1 + averaged)
    kept = config.checkpoint.keep + 1  # the oldest goes when the newest is whole
    if config.checkpoint.keep_every:
        kept += config.total_steps // config.checkpoint.keep_every
    out = Path(config.out).absolute()
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    refusal = ""
    if size > free and config.checkpoint.on_full_disk == "stop":
        refusal = f"a checkpoint takes {_gb(size)}, {_gb(free)} are free at {out}; choose another `out`"
    at_most = kept * size + weights
    lack = "" if at_most <= free else ": too few, lower checkpoint.keep or choose another `out`"
    line = (
        f"checkpoint: every {every:,} steps, {config.checkpoint.keep} kept, in {config.out}/checkpoints; {_gb(size)} "
        f"each, {_gb(at_most)} at most with the exported weights; {_gb(free)} are free{lack}"
    )
    return line, refusal


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"

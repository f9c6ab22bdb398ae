"""What a run will take: memory, room on the disk, days of a GPU; and what of it cannot be had here."""

import os
import shutil
from pathlib import Path

import torch

from headrace.train.config import RunConfig
from headrace.train.objectives.objective import Objective
from headrace.train.runs.tensors import num_bytes
from headrace.train.steady.start import MOMENTS, bytes_of_checkpoint

PEAK_FLOPS = 989.5e12
"""Dense bf16 of an H100 SXM or an H200, from the data sheet."""
STATED_MFU = 0.4
SHARED_BY = 8


def cost_lines(config: RunConfig, objective: Objective) -> list[str]:
    """Return what a run takes, one fact a line. Raises ValueError, naming the number to change, for what cannot fit.

    `objective` may be on the meta device.
    """
    days = objective.train_flops_per_image * config.total_steps * config.global_batch / PEAK_FLOPS / STATED_MFU / 86400
    return [
        _memory_line(config, objective),
        _disk_line(config, objective),
        f"time: {days:,.3g} GPU-days of an H100 at {STATED_MFU:.0%} MFU ({PEAK_FLOPS / 1e12:g} TFLOP/s in bf16)",
    ]


def _memory_line(config: RunConfig, objective: Objective) -> str:
    weights = num_bytes(objective.state_dict())
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    static = weights + (1 + MOMENTS) * trained
    limit, whose = _memory_here(config)
    if static > limit and config.parallel.strategy != "fsdp":
        raise ValueError(
            f"weights, gradients and moments take {_gb(static)} a process, {whose} has {_gb(limit)}; take a smaller "
            "objective, or several GPUs with parallel.strategy=fsdp"
        )
    return (
        f"memory: weights {_gb(weights)}, gradients {_gb(trained)}, moments {_gb(MOMENTS * trained)}, together "
        f"{_gb(static)} a process (fsdp over {SHARED_BY}: {_gb(static / SHARED_BY)}); activations come on top, "
        "images_per_micro_batch and activation_checkpointing lower them"
    )


def _memory_here(config: RunConfig) -> tuple[float, str]:
    """Return the memory that a process here has; without end where it is planned for another machine."""
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    if config.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    return float("inf"), ""


def _disk_line(config: RunConfig, objective: Objective) -> str:
    size, weights, every = bytes_of_checkpoint(objective), num_bytes(objective.state_dict()), config.checkpoint.every
    kept = config.checkpoint.keep + 1  # the oldest goes when the newest is whole
    if config.checkpoint.keep_every:
        kept += config.total_steps // config.checkpoint.keep_every
    out = Path(config.out).absolute()
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    if size > free and config.checkpoint.on_full_disk == "stop":
        raise ValueError(f"a checkpoint takes {_gb(size)}, {_gb(free)} are free at {out}; choose another `out`")
    at_most = kept * size + weights
    lack = "" if at_most <= free else ": too few, lower checkpoint.keep or choose another `out`"
    return (
        f"checkpoint: every {every:,} steps, {config.checkpoint.keep} kept, in {config.out}/checkpoints; {_gb(size)} "
        f"each, {_gb(at_most)} at most with the exported weights; {_gb(free)} are free{lack}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"

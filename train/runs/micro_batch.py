"""How many images a process can run at once: what a plan says of activations, and when it refuses."""

import math
from collections.abc import Mapping
from typing import NamedTuple, get_args

from headrace.train.config import RunConfig
from headrace.train.models.stage import Recompute
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.strategy import blocks_of
from headrace.train.runs.activations import Activations, count_activations
from headrace.train.runs.cost import SHARED_BY, PlanError, gigabytes, memory_here, static_memory

H100_BYTES = 85.0e9
"""What torch says that an H100 of 80 GB has."""
USABLE = 0.95
"""The rest is the device's own, and lost between blocks of memory."""
BYTES_OF_GATHERED = 8
"""Of each parameter of a block with fsdp: two blocks in bf16, and a gradient in fp32 that is being summed."""


class _Device(NamedTuple):
    """The memory that is planned for."""

    size: float
    name: str
    is_here: bool

    def room(self, taken: float) -> float:
        """Return the bytes that are left for activations."""
        return USABLE * self.size - taken


def activation_lines(config: RunConfig, objective: Objective) -> list[str]:
    """Return what a run takes for its backward pass, one fact a line. Raises PlanError, naming the number to change.

    `objective` may be on the meta device.
    """
    mode, on_cuda = config.activation_checkpointing, config.device != "cpu"
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_cuda)
    modes: list[Recompute] = [mode, *(other for other in get_args(Recompute) if other != mode)]
    try:
        found = count_activations(config, modes, bf16=bf16)
    except ValueError as error:
        return [f"activations: not counted: objective {config.objective.kind}: {error}"]
    size, whose = memory_here(config)
    device = _Device(size, whose, True) if math.isfinite(size) else _Device(H100_BYTES, "an H100", False)
    own, static = found[mode], static_memory(config, objective).together
    most = own.most_images(device.room(static))
    images = config.images_per_micro_batch or config.global_batch
    others = ", ".join(f"{name} {gigabytes(found[name].per_image)}" for name in found if name != mode)
    lines = [
        f"activations: {gigabytes(own.per_image)} an image in {'bf16' if bf16 else 'fp32'}, activation_checkpointing "
        f"{mode} ({others}), and {gigabytes(own.fixed)} however many; {images:,} at once: {gigabytes(own.at(images))}, "
        f"with weights, gradients and moments {gigabytes(static + own.at(images))}",
        f"micro-batch: at most {most:,} images at once fit {device.name} with {gigabytes(device.size)} (fsdp over "
        f"{SHARED_BY}: {_most_spread(objective, own, device.room(static / SHARED_BY)):,})",
    ]
    if not device.is_here or config.parallel.strategy == "fsdp" or most >= _fewest_at_once(config):
        return lines
    cuts = objective.splits or objective.caches
    raise PlanError(_refusal(config, found, most=most, room=device.room(static), cuts=cuts), lines)


def _fewest_at_once(config: RunConfig) -> int:
    """Return how many images a process runs at once where there are as many processes as the lanes allow."""
    return config.images_per_micro_batch or math.ceil(config.global_batch / config.mixture.lanes)


def _most_spread(objective: Objective, own: Activations, room: float) -> int:
    largest = max((sum(p.numel() for p in block.parameters()) for block in blocks_of(objective)), default=0)
    return Activations(fixed=BYTES_OF_GATHERED * largest, per_image=own.per_image).most_images(room)


def _refusal(config: RunConfig, found: Mapping[Recompute, Activations], *, most: int, room: float, cuts: bool) -> str:
    """Return why the run cannot be, and what to change; `cuts` says whether a batch may be computed in parts."""
    name = "images_per_micro_batch" if config.images_per_micro_batch else f"global_batch / {config.mixture.lanes} lanes"
    told = (
        f"{name} is {_fewest_at_once(config):,}, and at most {most:,} images at once fit beside weights, gradients and "
        "moments"
    )
    if most and cuts:
        return f"{told}; set images_per_micro_batch={most}"
    needed = 1 if cuts else _fewest_at_once(config)
    cures = [f"activation_checkpointing={mode}" for mode, one in found.items() if one.most_images(room) >= needed]
    if cures or cuts:
        return f"{told}; set {cures[0] if cures else 'parallel.strategy=fsdp, on several GPUs'}"
    return f"{told}; lower global_batch, or raise mixture.lanes and take as many processes"

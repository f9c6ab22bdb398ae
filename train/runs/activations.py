"""What a step keeps for its backward pass, in bytes, counted without computing it.

Forward and backward run on tensors that have shapes and no memory (torch's fake tensors). Every tensor is counted from
when an operation makes it until nobody holds it, so that what is computed again counts when it is. On a CPU it is what
a real step takes. A step on CUDA is counted as one on a CPU with the formats of CUDA. Of AIM-0.6B, with weights and
moments, that is 63.9 GB at 128 images and 112.5 at 256; on an H200, compiled, 64.5 and 113.5 were measured.
"""

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headrace.pipeline import Batch
from headrace.pipeline.augment.views import planned_views
from headrace.text import one_line
from headrace.train.config import RunConfig
from headrace.train.execution import Execution
from headrace.train.models.stage import Recompute
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective

SIZES = (64, 128)
"""Images of the two batches that the line goes through: prefixes of fewer would not be of mean length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes that one process needs beside weights, moments and gradients while it computes a gradient."""

    fixed: float
    """However many images: copies of the weights in bf16."""
    per_image: float

    def at(self, images: int) -> float:
        """Return the bytes for so many images at once."""
        return self.fixed + self.per_image * images

    def most_images(self, room: float) -> int:
        """Return how many images at once fit into so many bytes; 0 = not one."""
        return max(0, math.floor((room - self.fixed) / self.per_image))


def count_activations(
    config: RunConfig, recomputes: Sequence[Recompute], *, bf16: bool
) -> dict[Recompute, Activations]:
    """Return what a run of `config` would keep with each way of computing again.

    Raises ValueError for an objective whose step cannot be run without memory.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second of imports

    residual = torch.bfloat16 if bf16 and config.residual != "fp32" else None
    few, many = SIZES
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = _without_memory(config)

        def peak(recompute: Recompute, size: int) -> int:
            objective.run_as(Execution(recompute=recompute, residual=residual))
            return peak_of_step(objective, _batch(config, objective, size), bf16=bf16)

        peaks = {recompute: peak(recompute, many) for recompute in recomputes}
        # What does not grow with the batch are copies of the weights, which is the same for all.
        slope = (peaks[recomputes[0]] - peak(recomputes[0], few)) / (many - few)
        fixed = max(0.0, peaks[recomputes[0]] - slope * many)
    return {name: Activations(fixed=fixed, per_image=(bytes_ - fixed) / many) for name, bytes_ in peaks.items()}


def _without_memory(config: RunConfig) -> Objective:
    try:
        return build_objective(config.objective, image_size=config.mixture.image_size, seed=config.seed)
    except RuntimeError as error:  # trunc_normal_ looks at what it has drawn
        why = str(error).splitlines()[0][:150]
        raise ValueError(f"its weights cannot be drawn without memory: {why}") from error


def peak_of_step(objective: Objective, batch: Batch, *, bf16: bool) -> int:
    """Return the most bytes alive at once in forward and backward, without weights, buffers, images and gradients.

    Raises ValueError if the objective reads values on the way, which tensors without memory do not have.
    """
    live = _Live([*objective.parameters(), *objective.buffers()])
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), live, _passing_gradients(objective, live):
            loss, _ = objective(batch)
            loss.backward()
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"its step cannot be run without memory: {one_line(str(error) or repr(error))[:150]}"
        ) from error
    finally:
        objective.zero_grad(set_to_none=True)
    return live.peak


def _batch(config: RunConfig, objective: Objective, size: int) -> Batch:
    """Return a batch of blank pictures, each with a caption and of class 0."""
    views = planned_views(config.mixture)
    blank = [np.zeros((size, view.image_size, view.image_size, 3), np.uint8) for view in views]
    columns: dict[str, Any] = {
        # The texts of `clip` may be in a column of any name.
        name: ["a picture"] * size if config.objective.kind == "clip" or name == "caption" else np.zeros(size, np.int64)
        for name in objective.columns
    }
    return Batch(
        images=blank[0],
        other_views=tuple(blank[1:]),
        columns=columns | objective.blank_columns(size),
        position=np.arange(size, dtype=np.int64),
        source=np.zeros(size, np.int32),
        key=[str(number) for number in range(size)],
        valid=np.ones(size, np.bool_),
        waited_seconds=0.0,
    )


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what each operation returns, and counts the memory that is held of it."""

    def __init__(self, uncounted: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, Any] = {}
        for tensor in uncounted:
            self._hold(tensor, 0)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor, tensor.untyped_storage().nbytes())
        return out

    def release(self, tensor: Tensor) -> None:
        """Do not count this tensor any more."""
        key = tensor.untyped_storage()._cdata
        self.bytes -= self._sizes.get(key, 0)
        self._sizes[key] = 0

    def _hold(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return  # a view
        self._sizes[key] = size
        self._references[key] = weakref.ref(storage, lambda _: self._drop(key))
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def _drop(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
        del self._references[key]


@contextlib.contextmanager
def _passing_gradients(module: nn.Module, live: _Live) -> Iterator[None]:
    """Leave gradients out of the count as soon as they are whole: they are counted with the weights."""

    def release(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.release(parameter.grad)

    handles = [
        parameter.register_post_accumulate_grad_hook(release)  # type: ignore[no-untyped-call]
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

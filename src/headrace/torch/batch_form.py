"""What a training loop gets of a batch: pictures ready for a model, and a dict, a tuple or what a function makes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.torch.device_copy import as_tensor, with_views

Triple = tuple[float, float, float]
Form = Literal["dict", "tuple"]

OWN_NAMES = ("images", "data", "other_views", "position", "key", "valid")
"""Entries of a dict besides the columns."""


class BatchForm:
    """Makes of a `Batch` of tensors what `StreamLoader` gives: see there for the arguments."""

    def __init__(
        self,
        columns: Sequence[str],
        *,
        normalise: tuple[Triple, Triple] | None,
        memory_format: torch.memory_format,
        pin_memory: bool,
        form: Form | Callable[[Batch], Any],
        says_valid: bool,
    ) -> None:
        if form == "dict":
            _refuse_taken(columns)
        if normalise is not None:
            _check_constants(normalise)
        makers: dict[Any, Callable[[Batch], Any]] = {"dict": self._as_dict, "tuple": self._as_tuple}
        if not callable(form) and form not in makers:
            raise ValueError(f"form is 'dict' or 'tuple', got {form!r}")
        self._make = form if callable(form) else makers[form]
        self._says_valid = says_valid
        self._normalise, self._memory_format = normalise, memory_format
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, ...]] = {}

    def __call__(self, batch: Batch) -> Any:
        """Return the batch as it is given; called where the consumer's CUDA stream is the current one."""
        if batch.data:
            return self._make(batch)
        return self._make(with_views(batch, [self._pictures(as_tensor(view)) for view in batch.views]))

    def _pictures(self, view_BHWC: Tensor) -> Tensor:
        """Return [B, 3, S, S]: uint8, or float32 after (pixel / 255 - mean) / std."""
        images_BCHW = view_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=self._memory_format)
        if self._normalise is not None:
            images_BCHW = self._normalised(images_BCHW)
        return images_BCHW.pin_memory() if self._pin_memory and not images_BCHW.is_cuda else images_BCHW

    def _normalised(self, images_BCHW: Tensor) -> Tensor:
        # In rows of memory, each with its constants spread out: with three channels innermost PyTorch works through
        # a picture three numbers at a time, and 64 of them took 2 ms each on one core instead of 0.4.
        batch, channels, height, width = images_BCHW.shape
        if self._memory_format == torch.channels_last:
            floats = images_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width * channels).float()
        else:
            floats = images_BCHW.float()
        mean, std = self._constants_for(images_BCHW)
        floats.div_(255.0).sub_(mean).div_(std)
        if self._memory_format == torch.channels_last:
            return floats.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return floats

    def _constants_for(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        # Once: making a tensor on a GPU waits for everything that was begun there.
        width = images_BCHW.shape[3]
        known = (images_BCHW.device, width)
        if known not in self._constants:
            assert self._normalise is not None
            self._constants[known] = tuple(
                constant.repeat(width) if self._memory_format == torch.channels_last else constant[:, None, None]
                for constant in (torch.tensor(values, device=images_BCHW.device) for values in self._normalise)
            )
        return self._constants[known]

    def _as_dict(self, batch: Batch) -> dict[str, Any]:
        _refuse_taken(batch.columns)  # those of a map are known now only
        made: dict[str, Any] = {"data": batch.data} if batch.data else {"images": batch.images}
        if batch.other_views:
            made["other_views"] = list(batch.other_views)
        made |= {name: _column(batch, values) for name, values in batch.columns.items()}
        made |= {"position": torch.from_numpy(batch.position), "key": batch.key}
        return made | ({"valid": _column(batch, batch.valid)} if self._says_valid else {})

    def _as_tuple(self, batch: Batch) -> tuple[Any, ...]:
        columns = (_column(batch, values) for values in batch.columns.values())
        return *((batch.data,) if batch.data else batch.views), *columns


def _check_constants(normalise: tuple[Triple, Triple]) -> None:
    numbers = np.asarray(normalise, np.float64) if len(set(map(np.shape, normalise))) == 1 else np.empty(0)
    if numbers.shape != (2, 3) or not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
        raise ValueError(f"normalise is (mean, std), three numbers each, std over 0, got {normalise!r}")


def _refuse_taken(columns: Iterable[str]) -> None:
    taken = [name for name in columns if name in OWN_NAMES]
    if taken:
        raise ValueError(f"columns {', '.join(taken)}: a batch has its own entries of that name; use collate")


def _column(batch: Batch, values: Any) -> Any:
    """Return numbers as a tensor beside the pictures, all else as it is."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufb":
        return values
    return torch.from_numpy(values).to(as_tensor(batch.images).device, non_blocking=True)

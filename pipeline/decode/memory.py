"""The memory of batches: numpy arrays on the host, pinned or not, or torch tensors on a CUDA device.

A view of a batch is one or the other, and the pipeline only sets rows of it. The one file of the pipeline's decoding
that knows torch. Torch hands memory that a consumer dropped to the next who asks, while the consumer's kernels may
still read it. So device memory belongs to a stream of ours, and `hand_over` names the consumer's.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.decode.decoder import Images

Pixels = NDArray[np.uint8]
Rows = NDArray[np.intp]


def check_device(device: str) -> str:
    """Return `cpu`, or the CUDA device with its number. Raises ValueError for one that is not there."""
    if device == "cpu":
        return device
    if device.partition(":")[0] != "cuda":
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"device {device} needs torch ({error}); pip install 'headrace[train]'") from error
    if not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch {torch.__version__} sees no CUDA device here; use device cpu")
    try:
        # The current one where it is left open: ranks of a host have one each.
        number = torch.device(device).index
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from error
    number = torch.cuda.current_device() if number is None else number
    if number >= torch.cuda.device_count():
        raise ValueError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices here, from cuda:0 on")
    return f"cuda:{number}"


def host_memory(num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
    """Return arrays [num_items, size, size, 3], not set to anything."""
    return tuple(np.empty((num_items, size, size, 3), np.uint8) for size in sizes)


def pinned_memory(num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
    """Return arrays over pinned memory, which a device copies from by itself; each keeps its tensor alive."""
    import torch

    shapes = [(num_items, size, size, 3) for size in sizes]
    return tuple(torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy() for shape in shapes)


def blacken(view: Images, rows: Any) -> None:
    """Set rows (a number, or a mask of numpy) of a view to 0; done when it returns."""
    if isinstance(view, np.ndarray):
        view[rows] = 0
        return
    import torch

    rows = torch.from_numpy(rows).to(view.device) if isinstance(rows, np.ndarray) else rows
    with _on(stream := _new_stream(view.device)):
        view[rows] = 0
    _finish(stream)


def hand_over(views: Sequence[Images]) -> None:
    """Tell torch that the consumer's current stream uses these views: their memory is not given away before it has."""
    for view in views:
        if not isinstance(view, np.ndarray) and view.is_cuda:
            import torch

            view.record_stream(torch.cuda.current_stream(view.device))


class Memory(Protocol):
    """Where the batches of a decoder lie that computes many rows at once."""

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch: for each view its [num_items, size, size, 3], not set to anything."""

    def write(self, view: Images, rows: Rows, pixels: Any, transposed: NDArray[np.bool_] | None = None) -> None:
        """Begin to copy pixels [N, S, S, 3], an array or what has `__dlpack__`, into rows; some with swapped axes."""

    def finish(self) -> None:
        """Return when all that was written is there; until then the pixels must be kept."""


class HostMemory:
    """numpy arrays."""

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        return host_memory(num_items, sizes)

    def write(self, view: Images, rows: Rows, pixels: Any, transposed: NDArray[np.bool_] | None = None) -> None:
        """Copy pixels into rows."""
        view[_slice_of(rows)] = np.asarray(pixels)
        if transposed is not None and transposed.any():
            view[rows[transposed]] = np.asarray(pixels)[transposed].swapaxes(1, 2)

    def finish(self) -> None:
        """Nothing is under way."""


class DeviceMemory:
    """torch tensors; on a CUDA device by a stream of its own. On `cpu` the same lines, for tests."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._stream = _new_stream(self._device)

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        import torch

        with _on(self._stream):
            shapes = [(num_items, size, size, 3) for size in sizes]
            return tuple(torch.empty(shape, dtype=torch.uint8, device=self._device) for shape in shapes)

    def write(self, view: Images, rows: Rows, pixels: Any, transposed: NDArray[np.bool_] | None = None) -> None:
        """Begin to copy pixels into rows."""
        import torch

        with _on(self._stream):
            if isinstance(pixels, np.ndarray):
                pixels = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            else:
                pixels = torch.utils.dlpack.from_dlpack(pixels)
            view[self._index(rows)] = pixels
            if transposed is not None and transposed.any():
                view[self._index(rows[transposed])] = pixels[self._index(np.flatnonzero(transposed))].transpose(1, 2)

    def finish(self) -> None:
        """Wait for the stream."""
        _finish(self._stream)

    def _index(self, rows: Rows) -> Any:
        import torch

        part = _slice_of(rows)
        return part if isinstance(part, slice) else torch.from_numpy(part).to(self._device)


def _slice_of(rows: Rows) -> "slice | Rows":
    """Return rows that follow each other as a slice: nearly always, and copied at once."""
    first, count = int(rows[0]) if len(rows) else 0, len(rows)
    return slice(first, first + count) if (rows == np.arange(first, first + count)).all() else rows


def _new_stream(device: Any) -> Any:
    import torch

    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _on(stream: Any) -> AbstractContextManager[Any]:
    import torch

    return torch.cuda.stream(stream) if stream is not None else nullcontext()


def _finish(stream: Any) -> None:
    if stream is not None:
        stream.synchronize()

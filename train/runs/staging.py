"""Bytes of tensors in host memory, on their way to a file.

A synchronous save takes one tensor at a time. An asynchronous one copies all into an arena that is kept for the next
save, so that training goes on while a thread writes it. On a GPU the arena is pinned, for the full rate of the bus.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

# Large enough for the full rate of the bus, small enough that what rounds up to it is nothing. A power of two, as
# torch rounds pinned memory up to one.
CHUNK_BYTES = 64 << 20


def flat_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of `tensor`, on its device; shared with it where they lie one after the other."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def host_view(tensor: Tensor) -> memoryview:
    """Return the bytes of `tensor` in host memory; shared with it where they are there already."""
    return flat_bytes(tensor).cpu().numpy().data


def streamed(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of each tensor; no more than one of them is in host memory at once."""
    for tensor in tensors:
        yield host_view(tensor)


class Arena:
    """Host memory for a list of tensors, in chunks that are used again and again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[Tensor] = []

    def reserve(self, num_bytes: int) -> None:
        """Have room for so many bytes."""
        pinned = self._device.type == "cuda"
        while len(self._chunks) * CHUNK_BYTES < num_bytes:
            self._chunks.append(torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=pinned))

    def fill(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
        """Copy the tensors, in their order, and return where the bytes of each begin and end."""
        places, end = {}, 0
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.numel() * tensor.element_size()
            places[name] = (begin, end)
        self.reserve(end)
        for name, tensor in tensors.items():
            self._copy(tensor, places[name][0])
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return places

    def _copy(self, tensor: Tensor, begin: int) -> None:
        source, done = flat_bytes(tensor), 0
        while done < len(source):
            number, inside = divmod(begin + done, CHUNK_BYTES)
            size = min(CHUNK_BYTES - inside, len(source) - done)
            self._chunks[number][inside : inside + size].copy_(source[done : done + size], non_blocking=True)
            done += size

    def views(self, places: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        """Yield the bytes of `places`, one after the other."""
        for begin, end in places:
            while begin < end:
                number, inside = divmod(begin, CHUNK_BYTES)
                size = min(CHUNK_BYTES - inside, end - begin)
                yield self._chunks[number].numpy().data[inside : inside + size]
                begin += size

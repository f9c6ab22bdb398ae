"""The processes of one run: alone, or those that torchrun started.

Every rank leaves a reduction with the same numbers, so every rank takes the same branch. The sums here travel between
hosts' memories (gloo), also in a run on GPUs, so they never wait for a device.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Who this process is among how many, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum over ranks of each value, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            distributed.all_reduce(total)
        return [float(value) for value in total]

    def from_first(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        shared = torch.tensor([value], dtype=torch.int64)
        if self.size > 1:
            distributed.broadcast(shared, src=0)
        return int(shared[0])

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.sum([0.0])

    @contextlib.contextmanager
    def first_writes(self, what: str) -> Iterator[bool]:
        """Yield True where `what` is to be written, on rank 0; if that fails there, every rank raises OSError."""
        error: OSError | None = None
        try:
            yield self.is_first
        except OSError as caught:
            error = caught
        failed = self.from_first(error is not None)
        if error is not None:
            raise error
        if failed:
            raise OSError(f"rank {self.rank}: rank 0 could not write {what}")


ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
"""A process without others."""


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Yield this process's place; under torchrun, join the others for as long as the context lasts.

    `device` is auto, cpu or cuda. Raises ValueError for cuda where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but this machine has no usable CUDA device; use device=auto or device=cpu")
    cuda = torch.cuda.is_available() and device != "cpu"
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}"
        )
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(rank=0, size=1, device=place)
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Ranks(rank=distributed.get_rank(), size=size, device=place)
    finally:
        distributed.destroy_process_group()

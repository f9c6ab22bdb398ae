"""The processes of one run: alone, or those that torchrun started.

Every rank leaves a reduction with the same numbers, so every rank takes the same branch. The sums here travel between
hosts' memories (gloo), also in a run on GPUs, so they never wait for a device.
"""

import contextlib
import errno
import logging
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from headrace.atomic import is_full_disk
from headrace.train.parallel.presence import Phase, Presence
from headrace.train.parallel.signals import StopRequest

TIMEOUT_SECONDS = 1800.0
# While it waits, a rank looks once in so long for a signal: the wait itself is in C++, where no handler runs.
SLICE_SECONDS = 1.0
# First line of a rank that waits; the next after twice as long, and so on.
FIRST_WARNING_SECONDS = 30.0
# Schedulers and torchrun kill about 30 s after their SIGTERM: whoever waits for a lost rank leaves before.
GRACE_SECONDS = 20.0
# So long a rank that leaves by an error waits for the others to leave too.
PARTING_SECONDS = 5.0

log = logging.getLogger(__name__)


class RankError(OSError):
    """Another rank did not come to where this one waits, or is gone."""

    def __init__(self, message: str, *, signal_number: int = 0) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        """The signal that ended the wait; 0 = none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Who this process is among how many, and where it computes."""

    rank: int
    size: int
    device: torch.device
    timeout_seconds: float = TIMEOUT_SECONDS
    """A wait for the other ranks that takes so long fails."""
    stop: StopRequest = field(default_factory=StopRequest, compare=False)
    """Filled in by a signal."""
    presence: Presence | None = field(default=None, compare=False)
    """Knows which rank does not come; None for a process alone."""

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def sum(self, values: Sequence[float], where: str = "") -> list[float]:
        """Return the sum over ranks of each value, in float64. Raises RankError if one does not come `where` it is."""
        return self._sum(values, where, leaves=True)

    def _sum(self, values: Sequence[float], where: str, *, leaves: bool) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            self._finish(distributed.all_reduce(total, async_op=True), where, leaves=leaves)
        return [float(value) for value in total]

    def each(self, values: Sequence[float], where: str = "") -> list[list[float]]:
        """Return the values of each rank on every rank, by one reduction."""
        row = [0.0] * len(values)
        flat = self.sum([*row * self.rank, *values, *row * (self.size - self.rank - 1)], where)
        return [flat[start : start + len(row)] for start in range(0, len(flat), len(row))]

    def from_first(self, value: int, where: str = "") -> int:
        """Return rank 0's value on every rank. Raises RankError if a rank does not come `where` they share it."""
        return self._from_first(value, where, leaves=True)

    def _from_first(self, value: int, where: str, *, leaves: bool) -> int:
        shared = torch.tensor([value], dtype=torch.int64)
        if self.size > 1:
            self._finish(distributed.broadcast(shared, src=0, async_op=True), where, leaves=leaves)
        return int(shared[0])

    def gathered(self, text: str, where: str = "") -> list[str]:
        """Return the text of each rank on every rank. Raises RankError if one does not come `where` it is."""
        if self.size == 1:
            return [text]
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        sizes = self.sum([len(text.encode()) * (rank == self.rank) for rank in range(self.size)], where)
        padded = torch.zeros(max(1, int(max(sizes))), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._finish(distributed.all_gather(parts, padded, async_op=True), where)
        return [bytes(part[: int(size)].tolist()).decode() for part, size in zip(parts, sizes, strict=True)]

    def enters(self, phase: Phase, step: int | None = None) -> None:
        """Note what this rank is at from here on; `step` are the steps done when one begins."""
        if self.presence is not None:
            self.presence.enters(phase, step)

    def all_rows(self, tensor: Tensor, where: str = "") -> Tensor:
        """Return the rows of all ranks behind each other, on the CPU; each gives as many. Raises RankError."""
        own = tensor.cpu().contiguous()
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._finish(distributed.all_gather(parts, own, async_op=True), where)
        return torch.cat(parts)

    def wait(self, where: str = "") -> None:
        """Return when every rank has come here."""
        self.sum([0.0], where)

    def finish(self, work: Any, where: str) -> None:
        """Wait for an exchange of the host's that was begun. Raises RankError if a rank does not come `where` it is."""
        self._finish(work, where)

    def _finish(self, work: Any, where: str, *, leaves: bool = True) -> None:
        """Wait for `work` in slices, so that a rank that does not come is spoken of, and a signal `leaves` the wait."""
        if self.presence is not None:
            self.presence.comes(where)
        self._wait_for(work, where, leaves=leaves)
        if self.presence is not None:
            self.presence.leaves()

    def _wait_for(self, work: Any, where: str, *, leaves: bool) -> None:
        began, warn_at = time.monotonic(), FIRST_WARNING_SECONDS
        while not self._is_done(work):
            waited = time.monotonic() - began
            if self.presence is not None and self.presence.verdict:
                self.presence.leaving.set()
                raise RankError(self.presence.verdict)
            me = f"rank {self.rank} of {self.size} has waited {waited:.0f} s for the others{where and ' in ' + where}"
            hint = "a rank that says nothing like this is the one that hangs"
            if self.presence is not None and (names := self.presence.missing()):
                hint += f": {names} did not come"
            if waited >= self.timeout_seconds:
                raise RankError(f"{me}, timeout_seconds is {self.timeout_seconds:g}; {hint}")
            if leaves and self.stop and min(waited, time.monotonic() - self.stop.at) >= GRACE_SECONDS:
                asked = f"{signal.Signals(self.stop.number).name} asked it to stop: it leaves without saving"
                raise RankError(f"{me}, and {asked}; {hint}", signal_number=self.stop.number)
            if waited >= warn_at:
                log.warning("%s; %s", me, hint)
                warn_at *= 2

    def _is_done(self, work: Any) -> bool:
        try:
            work.wait(timedelta(seconds=SLICE_SECONDS))
        except RuntimeError as error:
            if not work.is_completed():
                return False  # the slice is over, not the work
            raise lost_ranks(self.rank, self.size, error) from error
        return True

    @contextlib.contextmanager
    def first_writes(self, what: str) -> Iterator[bool]:
        """Yield True where `what` is to be written, on rank 0; if that fails there, every rank raises OSError."""
        error: OSError | None = None
        try:
            yield self.is_first
        except OSError as caught:
            error = caught
        # Rank 0 may write for minutes after a signal: nobody leaves it alone with that.
        failed = self._from_first(0 if error is None else error.errno or -1, what, leaves=False)
        if error is not None:
            raise error
        if failed:
            theirs = OSError(f"rank {self.rank}: rank 0 could not write {what}")
            theirs.errno = failed if failed > 0 else None
            raise theirs

    @contextlib.contextmanager
    def all_write(self, what: str) -> Iterator[None]:
        """Let every rank write its part of `what` in this context; if that fails on one, every rank raises OSError."""
        error: OSError | None = None
        try:
            yield
        except OSError as caught:
            error = caught
        full = error is not None and is_full_disk(error)
        failed, others = self._sum([error is not None, error is not None and not full], what, leaves=False)
        if failed and error is None:
            error = OSError(f"rank {self.rank}: {failed:.0f} of {self.size} ranks could not write their part of {what}")
        if error is not None:
            # Whether it was the room that lacked must be the same for all, as a run may go on after that.
            error.errno = None if others and (full or error.errno is None) else error.errno or errno.ENOSPC
            raise error


ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"))
"""A process without others."""


def lost_ranks(rank: int, size: int, error: Exception, missing: str = "") -> RankError:
    """Return what to raise for a library's error about other processes: one line, without its source file.

    `missing` are the ranks that did not come, where that is known.
    """
    text = re.sub(r"^\[[^]]*\] ", "", str(error).split("\n")[0]).split(". ")[0] or type(error).__name__
    who = f"; {missing} did not come" if missing else ""
    return RankError(f"rank {rank} of {size} has lost the others: {text[:200]}{who}; the rank that failed says why")


def _meeting(rank: int, limit: timedelta) -> Any:
    """Return the store in which torchrun's processes meet, with other keys each time that they join.

    The library's keys are the same ones each time: who joins anew then may read where the others listened before, and
    waits for ever.
    """
    library = distributed.distributed_c10d
    store, _, _ = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    return library.PrefixStore(f"headrace/{store.add(f'headrace/joined/{rank}', 1)}", store)


def _presence(rank: int, size: int, timeout_seconds: float) -> Presence:
    # Told before the first warning, so that it can name who is missing.
    # A connection of its own: the main thread may hold the other one while it waits in it.
    library = distributed.distributed_c10d
    store = library.PrefixStore("headrace/presence", library._get_default_store().clone())
    tell_after = min(FIRST_WARNING_SECONDS / 2, timeout_seconds / 4)
    kept_by_first = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    presence = Presence(rank, size, store, tell_after_seconds=tell_after, kept_by_first=kept_by_first)
    presence.start()
    return presence


def _presence_alone() -> Presence:
    store = distributed.HashStore()  # type: ignore[attr-defined]
    presence = Presence(0, 1, store, tell_after_seconds=FIRST_WARNING_SECONDS / 2)
    presence.start()
    return presence


@contextlib.contextmanager
def join_ranks(
    device: str, *, timeout_seconds: float = TIMEOUT_SECONDS, alone_is_watched: bool = False
) -> Iterator[Ranks]:
    """Yield this process's place; under torchrun, join the others for as long as the context lasts.

    `device` is auto, cpu or cuda. A process `alone_is_watched` says where it is too, though to nobody but itself.
    Raises ValueError for cuda where there is none, RankError where the others are lost.
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
        presence = _presence_alone() if alone_is_watched else None
        try:
            yield Ranks(rank=0, size=1, device=place, presence=presence)
        finally:
            if presence is not None:
                presence.close()
        return
    rank, presence = int(os.environ.get("RANK", "0")), None
    try:
        # Gradients are reduced inside backward, where only the library's clock ends a wait: a little later than ours.
        limit = timedelta(seconds=timeout_seconds + 2 * SLICE_SECONDS)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=_meeting(rank, limit),
            rank=rank,
            world_size=size,
            timeout=limit,
        )
        presence = _presence(rank, size, timeout_seconds)
        try:
            yield Ranks(rank=rank, size=size, device=place, timeout_seconds=timeout_seconds, presence=presence)
        except RankError:
            raise
        except (ValueError, OSError):
            # Mostly an error that all share: who ends at once resets connections that the others still read from.
            presence.part(PARTING_SECONDS)
            raise
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise lost_ranks(rank, size, error, presence.missing() if presence is not None else "") from error
        raise
    finally:
        if presence is not None:
            presence.close()
    # Not after an error: it would wait for the ranks that are lost. The end of the process closes what is open.
    distributed.destroy_process_group()

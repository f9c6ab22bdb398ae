"""A stream's batches as tensors of a device, copied there while the device computes.

On the CPU a batch is what the stream gave, as tensors that share its memory. Elsewhere a thread takes batches and
copies them on a CUDA stream of its own, up to `prefetch` more than were asked for. The state is that of the batches
handed out, never of those that are copied ahead.

`__next__` may be broken off at any instruction by a signal handler that raises, as that of the stream itself: it
changes nothing but by its last assignments, so whoever goes on after an exception gets the same batch.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from headrace.pipeline import Batch, Stream, copies
from headrace.pipeline.decode.memory import check_device
from headrace.pipeline.stats import StreamStats
from headrace.pipeline.threads import close_at_exit
from headrace.torch.copy_ahead import CopyAhead
from headrace.torch.device_copy import DeviceCopy, as_tensor, with_views

log = logging.getLogger(__name__)

Device = torch.device | str | int


class DeviceBatches:
    """An iterator of `Batch` objects whose images and other views are uint8 tensors [B, S, S, 3] on `device`.

    From the first `next` on the stream is read here only: `close`, `state_dict` and `load_state_dict` are those of
    this object, and `close` closes the stream too. `prefetch` is how many batches lie on the device besides the one
    that was handed out last; on the CPU nothing is copied and it has no effect. `finish` makes of each batch what is
    handed out; a batch counts as handed out when that has returned.
    """

    _closed = True  # until the constructor has run: __del__ may be called without it

    def __init__(
        self, stream: Stream, device: Device, *, prefetch: int = 2, finish: Callable[[Batch], Any] = lambda batch: batch
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, got {prefetch}")
        self.stream = stream
        self.device = _with_index(torch.device(device))
        self._finish = finish
        if stream.device != "cpu" and torch.device(stream.device) != self.device:
            raise ValueError(f"the stream was opened for {stream.device}, its batches are asked for on {self.device}")
        self._copy = DeviceCopy(self.device, stream.changes_left)
        self._prefetch = prefetch
        self._position: int | None = None  # of the next batch; None = where the stream stands: nothing was taken yet
        self._number = 0  # of the next batch, as `_ahead` counts
        self._ahead: CopyAhead | None = None
        self._ended = False
        self._process = os.getpid()
        self._closed = False

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be copied: each copy would give the same batches; open it where it is read")

    def __iter__(self) -> "DeviceBatches":
        """Return these batches. They go on where they stand; a finite pass that has ended begins again."""
        if self._ended and not self._closed:
            self._stop_ahead()
            iter(self.stream)
            self._position, self._ended = None, False
        return self

    def __next__(self) -> Batch:
        """Return the next batch, which the current CUDA stream waits for. Raises what the stream raises there."""
        asked = time.perf_counter()
        if self._closed:
            raise ValueError("the stream is closed")
        if self._ended:
            raise StopIteration
        copies.refuse_copy(self._process, begun=self._ahead is not None)
        batch: Batch
        if not self._copy.copies:
            batch, self._position = self._take_here()
            return batch
        ahead = self._ahead
        if ahead is None or not ahead.is_running:
            ahead = self._start_ahead()
        number = self._number
        ready = ahead.num_ready(number)
        try:
            copied = ahead.take(number)
        except BaseException as error:
            if error is ahead.error:  # not an interrupt
                self._ended = isinstance(error, StopIteration)
                self._ahead = None  # its thread has ended; whoever goes on begins with this batch anew
            raise
        self._copy.hand_out(copied.batch, copied.copied)
        device_waited = self._copy.device_waited()
        if device_waited:
            self.stream.count_transfer(device_waited)
        batch = self._finish(copied.waited_for(asked, device_waited))
        given = self.stream.hand_on(copied.times, asked, ready=ready)
        # Without a call, so that no signal handler runs in between: here the batch is handed out, or not at all.
        self.stream.given = given
        self._position = copied.next_position
        self._number = number + 1
        del ahead.ready[number]
        return batch

    @property
    def position(self) -> int:
        """The global position of the next batch."""
        return self.stream.position if self._position is None else self._position

    def stats(self) -> StreamStats:
        """Return the stream's statistics: the waits are those for batches handed out here."""
        return self.stream.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches stand that were handed out: a stream's state, small, plain JSON."""
        return self.stream.state_at(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, a stream's too. Raises ValueError, naming the field, if that cannot be exact."""
        if state == self.state_dict() and not self._ended:
            return  # what is copied ahead is right
        self._stop_ahead()
        self.stream.load_state_dict(state)
        self._position, self._ended = None, False

    def close(self) -> None:
        """End the thread, and the stream."""
        self._closed = True
        if self._process == os.getpid():
            self._stop_ahead()
            self.stream.close()

    def _take_here(self) -> tuple[Any, int]:
        if self._position is None:
            self._position = self.stream.position
        if self.stream.position != self._position:
            self._return_to_own()
        try:
            batch = next(self.stream)
        except StopIteration:
            self._ended = True
            raise
        return self._finish(with_views(batch, [as_tensor(view) for view in batch.views])), self.stream.position

    def _start_ahead(self) -> CopyAhead:
        # The thread has none of the frames by which the stream itself would tell.
        copies.refuse_worker(self.stream.rank, self.stream.world_size)
        copies.refuse_dispatch(self.stream.world_size)
        self._stop_ahead()  # what an interrupt left half begun
        position = self.stream.position
        if self._position is None:
            self._position = position
        if position != self._position:
            self._return_to_own()
        self.stream.counts_here = False
        ahead = CopyAhead(self.stream, self._copy, prefetch=self._prefetch)
        close_at_exit().add(self)
        self._number = 0
        self._ahead = ahead
        ahead.start()
        return ahead

    def _return_to_own(self) -> None:
        """Bring the stream back to the batch that is to be handed out next, from where it was read ahead to."""
        assert self._position is not None
        stands = self.stream.position
        if not 0 < stands - self._position <= (self._prefetch + 1) * self.stream.global_batch:
            raise ValueError(
                f"the stream was moved to position {stands}, its DeviceBatches stand at {self._position}; "
                "load a state by the load_state_dict of the DeviceBatches"
            )
        log.info("the stream is read again from position %d", self._position)
        self.stream.load_state_dict(self.stream.state_at(self._position))

    def _stop_ahead(self) -> None:
        ahead = self._ahead
        if ahead is not None:
            ahead.stop()
        self._ahead = None


def _with_index(device: torch.device) -> torch.device:
    """Return a CUDA device by its number, as threads of others have no current one. Raises ValueError for none."""
    if device.type != "cuda":
        return device
    return torch.device(check_device(str(device)))

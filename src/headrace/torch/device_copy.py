"""How the pictures of one batch come to a device: pinned, on a CUDA stream of their own, augmented there.

Pageable memory is copied by the driver through a small pinned buffer, in the caller's time; pinned memory is copied by
the device alone. So what is not pinned yet is, once, by the thread that copies. The host's memory is kept until its
copy has ended: a decoder may write its next batch there.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.pipeline.augment.changes import ViewChanges
from headrace.pipeline.augment.colour_table import draw_table
from headrace.pipeline.augment.erasing_pixels import erase_batch
from headrace.pipeline.augment.pixels import recolour
from headrace.pipeline.augment.rand_pixels import rand_batch


class DeviceCopy:
    """Copies the batches of one stream to `device`. `start` is called in one thread, `hand_out` in another.

    `changes` are those of each view that the stream left to the device; empty: the pictures are finished.
    """

    def __init__(self, device: torch.device, changes: Sequence[ViewChanges | None] = ()) -> None:
        self.copies = device.type != "cpu"
        """False where a batch is only seen as tensors."""
        self._device = device
        self._changes = changes
        self._side: Any = None
        self._flying: deque[tuple[Any, Batch]] = deque()
        self._awaited: deque[tuple[Any, Any]] = deque()  # events: where the consumer stood, the end of the copy

    def start(self, batch: Batch) -> tuple[Batch, Any]:
        """Return the batch on the device, and the event of the end of its copy (None: it has ended)."""
        if self._device.type != "cuda":
            return self._changed(with_views(batch, [as_tensor(view).to(self._device) for view in batch.views])), None
        if self._side is None:
            torch.cuda.set_device(self._device)  # of this thread
            self._side = _cuda().Stream(self._device, priority=-1)  # little work that much other work waits for
        with torch.cuda.stream(self._side):
            moved = self._changed(with_views(batch, [self._to_cuda(view) for view in batch.views]))
            copied = _cuda().Event(enable_timing=True)
            copied.record(self._side)
        self._flying.append((copied, batch))
        while self._flying and self._flying[0][0].query():
            self._flying.popleft()
        return moved, copied

    def finish(self) -> None:
        """Wait for the copies under way and let go of the host's memory that they read. Called where `start` was."""
        while self._flying:
            self._flying.popleft()[0].synchronize()

    def hand_out(self, batch: Batch, copied: Any) -> None:
        """Make the current CUDA stream wait until the batch is whole, and keep its memory until that is through."""
        if copied is None:
            return
        consumer = torch.cuda.current_stream(self._device)
        if not copied.query() and not (self._awaited and self._awaited[-1][1] is copied):
            asked = _cuda().Event(enable_timing=True)
            asked.record(consumer)
            self._awaited.append((asked, copied))
        consumer.wait_event(copied)
        for view in batch.views:
            as_tensor(view).record_stream(consumer)

    def device_waited(self) -> float:
        """Return the seconds that the device stood still for copies: of those that it has come to since the last call.

        The host does not wait there, so no clock of the host tells.
        """
        seconds = 0.0
        while self._awaited and all(event.query() for event in self._awaited[0]):
            asked, copied = self._awaited.popleft()
            seconds += max(0.0, asked.elapsed_time(copied)) / 1000
        return seconds

    def _changed(self, batch: Batch) -> Batch:
        if not any(self._changes):
            return batch
        views = [
            change_batch(as_tensor(view), changes, batch) if changes else view
            for view, changes in zip(batch.views, self._changes, strict=True)
        ]
        return with_views(batch, views)

    def _to_cuda(self, view: Any) -> Tensor:
        host = as_tensor(view)
        if host.is_cuda:  # decoded there; it must outlive what this CUDA stream does with it
            host.record_stream(self._side)
        elif not host.is_pinned():
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)


def change_batch(images_BHWC: Tensor, changes: ViewChanges, batch: Batch) -> Tensor:
    """Return uint8 [B, S, S, 3], a view of `batch`, with what is drawn for each of its positions done."""
    position, valid = batch.position, batch.valid
    if changes.rand is not None:
        rand, config = changes.rand, changes.rand.config
        operations = rand.of_rows(position, valid)
        images_BHWC = rand_batch(images_BHWC, operations, interpolation=rand.interpolation, fill=config.fill)
    if changes.colour is not None:
        images_BHWC = recolour(images_BHWC, draw_table(changes.colour, position, valid))
    if changes.erasing is not None:
        images_BHWC = erase_batch(images_BHWC, changes.erasing.of_rows(position, valid), changes.erasing.config)
    return images_BHWC


def _cuda() -> Any:
    return torch.cuda  # its classes are not typed


def as_tensor(view: Any) -> Tensor:
    """Return a view of a batch as a tensor that shares its memory."""
    return view if isinstance(view, Tensor) else torch.from_numpy(np.ascontiguousarray(view))


def with_views(batch: Batch, views: Sequence[Any]) -> Batch:
    """Return the batch with other pictures in its views."""
    return dataclasses.replace(batch, images=views[0], other_views=tuple(views[1:]))

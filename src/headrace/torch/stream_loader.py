"""A mixture as a loader for training scripts: what a DataLoader gives, without its workers.

The order, the threads and the state are the stream's. The state is one position, so a loader that continues needs no
epoch, no sampler and no skipping of batches.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from headrace.pipeline import Batch, Mixture, Stream, open_stream
from headrace.pipeline.mapping import MapFunction
from headrace.pipeline.stats import StreamStats
from headrace.torch.batch_form import BatchForm, Form, Triple
from headrace.torch.device_batches import Device, DeviceBatches
from headrace.torch.place import rank_and_world_size, refuse_fetcher, refuse_other_place


class StreamLoader:
    """Batches of one rank for a PyTorch training loop, Lightning, accelerate or Hugging Face's Trainer.

    `for batch in loader` goes on where the last loop stopped. Without `once` and `steps_per_epoch` it never ends and
    has no length; with `steps_per_epoch` each loop ends after so many steps, counted from position 0. With `once` each
    loop is one pass over every sample, as a DataLoader's; after `load_state_dict` it is the rest of one. There is no
    `set_epoch`: every epoch has its own order already.

    A batch is a dict of `images` ([B, 3, S, S], uint8 or normalised float32; with `decoder: none` `data`, the bytes),
    `other_views` where the mixture has some, each of `columns` and of what `map` returns (numbers as tensors, all else
    as lists), `position` and `key`, in a finite pass `valid` too; as a tuple it is the views and then the columns.
    `collate` makes something else of a `Batch` whose views are ready for the model. `map` is that of `open_stream`.
    Numbers of samples are `batch_size` a rank or `global_batch` over all ranks.

    The mixture is opened at the first use: by then the process group is there, which says the rank.
    """

    def __init__(
        self,
        mixture: Mixture | str | Path,
        *,
        batch_size: int | None = None,
        global_batch: int | None = None,
        columns: Sequence[str] = (),
        map: MapFunction | None = None,
        once: bool = False,
        steps_per_epoch: int | None = None,
        device: Device = "cpu",
        prefetch: int = 2,
        pin_memory: bool = False,
        normalise: tuple[Triple, Triple] | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        form: Form = "dict",
        collate: Callable[[Batch], Any] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        _check(
            once=once,
            batch_size=batch_size,
            global_batch=global_batch,
            steps_per_epoch=steps_per_epoch,
            prefetch=prefetch,
        )
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size belong together: pass both or none")
        self.columns = tuple(columns)
        self.once, self.steps_per_epoch = once, steps_per_epoch
        self.device, self.prefetch = device, prefetch
        self.sampler = self.batch_sampler = None  # looked for by frameworks that would put in theirs
        self.num_workers = 0
        self._mixture, self._map = mixture, map
        self._batch_size, self._global_batch = batch_size, global_batch
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self._form = BatchForm(
            columns,
            normalise=normalise,
            memory_format=memory_format,
            pin_memory=pin_memory,
            form=collate or form,
            says_valid=once,
        )
        self._opened: DeviceBatches | None = None
        self._continues = True  # a finite pass, from a state that was loaded
        self._warned = False

    def __enter__(self) -> "StreamLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a StreamLoader cannot be copied to another process: each copy would give the same batches; "
            "it has its own threads: use it instead of a DataLoader, not inside one"
        )

    def __getitem__(self, _: object) -> NoReturn:
        raise TypeError("a StreamLoader is no dataset: use it instead of a DataLoader, not inside one")

    def __bool__(self) -> bool:
        return True  # else it would be asked for its length

    def __len__(self) -> int:
        """Return how many batches one loop gives. Raises TypeError where it never ends."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        num_batches = self.stream.plan.num_batches
        if num_batches is None:
            raise TypeError(
                "an endless StreamLoader has no length: pass steps_per_epoch; if a DataLoader asks, use this loader "
                "instead of it, not inside one"
            )
        return num_batches

    def __iter__(self) -> Iterator[Any]:
        """Return the batches up to the end of this epoch or pass, from where the loader stands."""
        batches, stream = self._batches, self.stream
        if self._place is None:
            self._warned = refuse_other_place(stream.rank, stream.world_size, warned=self._warned)
        if not self.once and self.steps_per_epoch is None:
            refuse_fetcher()
            return cast(Iterator[Any], batches)
        step = batches.position // stream.global_batch
        if self.once and (step >= len(self) or not self._continues):
            batches.load_state_dict(stream.state_at(0))
            step = 0
        self._continues = False
        # In C, so that no signal handler runs between the batch and whoever asked for it.
        return islice(batches, len(self) - step % len(self))

    @property
    def stream(self) -> Stream:
        """The stream behind this loader; only to be looked at."""
        return self._batches.stream

    @property
    def dataset(self) -> NoReturn:
        """There is none; frameworks that look for one to skip batches in it are told what to do instead."""
        raise AttributeError(
            "a StreamLoader has no dataset, and nothing needs to be skipped: load its state "
            "(with Hugging Face's Trainer set ignore_data_skip=True and keep the state in a callback)"
        )

    @property
    def batch_size(self) -> int:
        """Samples of one rank and batch."""
        return self._batch_size or self.stream.global_batch // self.stream.world_size

    @property
    def position(self) -> int:
        """The global position of the next batch."""
        return self._batches.position

    def stats(self) -> StreamStats:
        """Return what was done so far, and what holds it up: see `headrace.pipeline.Stream.stats`."""
        return self._batches.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, behind the last batch it gave: small, plain JSON, the same on every rank."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, at any world size. Raises ValueError, naming the field, if that cannot be exact."""
        self._batches.load_state_dict(state)
        self._continues = True

    def close(self) -> None:
        """End every thread."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _batches(self) -> DeviceBatches:
        if self._opened is None:
            rank, world_size = self._place or rank_and_world_size()
            global_batch = self._global_batch or (self._batch_size or 0) * world_size
            device = torch.device(self.device)
            stream = open_stream(
                self._mixture,
                global_batch=global_batch,
                rank=rank,
                world_size=world_size,
                columns=self.columns,
                map=self._map,
                once=self.once,
                device=str(device) if device.type == "cuda" else "cpu",
            )
            self._opened = DeviceBatches(stream, self.device, prefetch=self.prefetch, finish=self._form)
        return self._opened


def _check(*, once: bool, **sizes: int | None) -> None:
    """Raise ValueError for sizes that are missing, doubled or less than one."""
    if (sizes["batch_size"] is None) == (sizes["global_batch"] is None):
        raise ValueError("pass one of batch_size (samples of one rank) and global_batch (of all ranks)")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if once and sizes["steps_per_epoch"] is not None:
        raise ValueError("a finite pass has its own length: leave out once or steps_per_epoch")

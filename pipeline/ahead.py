"""What is read when: whole chunks as the order comes to them, and at the beginning first what the next batches need.

At the beginning no window is open. 256 images lie in some 190 chunks, which together are 1.4 GB: whoever reads whole
chunks waits for all of it before the first batch. So the first batch reads its own samples only; batch k after it may
read k times its samples beyond them, which is filled with whole chunks; from batch `EASED_BATCHES` on every chunk that
the order comes to is read whole. No sample is read twice: a long run reads the same bytes, at first in more requests.

Called by the planning thread alone.
"""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.order.plan import BatchPlan, StreamPlan

EASED_BATCHES = 16

Read = Future[dict[int, Payload]]
Name = tuple[int, int, int]
"""Source, epoch and sample."""


@dataclass(slots=True)
class Chunk:
    """Samples that lie together, and those of them that are still to be given."""

    source: int
    unread: NDArray[np.int64]
    """Ascending; no read was begun that holds them."""
    reads: dict[int, Read] = field(default_factory=dict)
    """By sample: those that were begun, until they are given."""


class ReadAhead:
    """The chunks under way from batch `first` on."""

    def __init__(self, plan: StreamPlan, reader: ChunkReader, *, first: int) -> None:
        self._plan = plan
        self._reader = reader
        self.first = first
        self._chunks: dict[Name, Chunk] = {}
        self._begun = [0] * len(reader.sources)

    def reads_of(self, number: int, plan: BatchPlan) -> list[Read | None]:
        """Begin the reads that batch `number` needs, and more; return the read of each item, None for padding."""
        columns = (plan.placed.source, plan.placed.epoch, plan.placed.sample)
        names: list[Name] = list(zip(*(column.tolist() for column in columns), strict=True))
        chunks: list[Chunk | None] = []
        needed: dict[int, tuple[Chunk, list[int]]] = {}
        for item, name in enumerate(names):
            if not plan.valid[item]:
                chunks.append(None)
                continue
            if name not in self._chunks:
                self._open_window(plan, item)
            chunk = self._chunks.pop(name)
            chunks.append(chunk)
            if name[2] not in chunk.reads:
                needed.setdefault(id(chunk), (chunk, []))[1].append(name[2])
        self._begin(needed.values(), more=self._more(number, len(names)))
        return [chunk.reads.pop(name[2]) if chunk else None for chunk, name in zip(chunks, names, strict=True)]

    def is_easing(self, number: int) -> bool:
        """True if batch `number` is one of the first, whose chunks are not all read whole."""
        return number - self.first < EASED_BATCHES

    def forget(self, sources: set[int]) -> list[int]:
        """Drop what was read ahead of some sources; return how many samples of each source that was."""
        dropped = [0] * len(self._begun)
        for name in [name for name in self._chunks if name[0] in sources]:
            dropped[name[0]] += self._chunks.pop(name).reads.pop(name[2], None) is not None
        return dropped

    def take_begun(self) -> list[int]:
        """Return how many samples of each source were begun to be read since this was last asked."""
        begun, self._begun = self._begun, [0] * len(self._begun)
        return begun

    def _more(self, number: int, num_items: int) -> int | None:
        """Return how many samples beyond its own a batch may read; None = any number."""
        return (number - self.first) * num_items if self.is_easing(number) else None

    def _open_window(self, plan: BatchPlan, item: int) -> None:
        """Name the chunks of a lane's window; each is read when the order first comes to it."""
        source, epoch = int(plan.placed.source[item]), int(plan.placed.epoch[item])
        for samples in self._plan.together(plan, item):
            chunk = Chunk(source, np.sort(samples))
            self._chunks.update(dict.fromkeys([(source, epoch, sample) for sample in samples.tolist()], chunk))

    def _begin(self, needed: Iterable[tuple[Chunk, list[int]]], *, more: int | None) -> None:
        """Read whole chunks while what they hold beyond the samples needed fits into `more`, else those samples."""
        for chunk, samples in needed:
            beyond = len(chunk.unread) - len(samples)
            whole = more is None or beyond <= more
            part = chunk.unread if whole else np.sort(np.array(samples, np.int64))
            chunk.unread = np.zeros(0, np.int64) if whole else chunk.unread[~np.isin(chunk.unread, part)]
            if whole and more is not None:
                more -= beyond
            read = self._reader.submit(chunk.source, part)
            chunk.reads.update(dict.fromkeys(part.tolist(), read))
            self._begun[chunk.source] += len(part)

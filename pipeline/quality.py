"""How well a mixture is shuffled: what one batch holds of each source's index, against a perfect shuffle.

A class-sorted dataset is the hard case: there the place in the index is the class. So the index is cut into 1,000 equal
parts, and the parts (and shards) that a batch touches are counted, in arithmetic: no index and no picture is read.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.order.line import Line
from headrace.pipeline.order.order import Order, Track
from headrace.pipeline.order.plan import EndlessPlan

IntArray = NDArray[np.int64]

PARTS = 1000
PART_SAMPLES = 10
"""A part has at least so many: parts of one sample would be as many as the samples, however they are mixed."""
MIN_PARTS = 10
MEASURED_SAMPLES = 1 << 15
MAX_BATCHES = 8
GOOD = 0.9
"""A batch that touches this share of what a perfect shuffle would is well shuffled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How many of some groups one batch touches, as a mean over batches."""

    distinct: float
    ideal: float
    """With a perfect shuffle."""
    dispersion: float
    """Variance of the groups' counts over that of a perfect shuffle: 1 is ideal, more is clumped."""

    @property
    def is_good(self) -> bool:
        """True if there is nothing to change."""
        return self.distinct >= GOOD * self.ideal


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A setting that mixes better."""

    setting: str
    """As one would write it."""
    parts: Spread
    window_bytes: int
    """Memory of the source's windows, over all ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How well one source is shuffled in a batch."""

    samples: float
    """Of the source, in a batch."""
    parts: Spread
    """Equal parts of its index."""
    num_parts: int
    shards: Spread
    num_shards: int
    window_bytes: int
    changes: tuple[Change, ...]
    """What would help, cheapest first; empty = nothing need be done."""


def measure(plan: EndlessPlan, sources: Sequence[OpenedSource]) -> dict[str, Quality]:
    """Return how well each source of the first segment is shuffled, but for those too small to tell."""
    order = plan.timeline.parts[0].order
    if order is None:  # the sources end before the first batch is full
        return {}
    # Whole epochs are looked at, so what ends (`repeat`) is taken as if it went on.
    order = dataclasses.replace(
        order, tracks=tuple(dataclasses.replace(track, drain=None, drained=0) for track in order.tracks)
    )
    return {
        sources[track.source].config.name: _quality(order, which, sources[track.source], plan.global_batch)
        for which, track in enumerate(order.tracks)
        if _num_parts(int(sources[track.source].starts[-1])) >= MIN_PARTS
    }


def spread(groups: Sequence[IntArray], sizes: IntArray) -> Spread:
    """Return how evenly batches, each given as the group of each of its samples, touch groups of these sizes."""
    share = sizes / sizes.sum()
    distinct, ideal, off, expected = 0.0, 0.0, 0.0, 0.0
    for batch in groups:
        counts = np.bincount(batch, minlength=len(sizes))
        distinct += int(np.count_nonzero(counts))
        # A batch is drawn without replacement; from an index many times its size that makes no difference.
        ideal += float((1 - (1 - share) ** len(batch)).sum())
        off += float(((counts - len(batch) * share) ** 2).sum())
        expected += float((len(batch) * share * (1 - share)).sum())
    return Spread(
        distinct=distinct / len(groups), ideal=ideal / len(groups), dispersion=off / expected if expected else 1.0
    )


def _quality(order: Order, which: int, source: OpenedSource, global_batch: int) -> Quality:
    size = int(source.starts[-1])
    batches = _batches(order, which, global_batch)
    parts = _parts(batches, size)
    shards = spread([source.locate(batch)[0] for batch in batches], np.diff(source.starts))
    changes = () if parts.is_good else tuple(_changes(order, which, source, global_batch, now=parts.distinct))
    return Quality(
        samples=float(np.mean([len(batch) for batch in batches])),
        parts=parts,
        num_parts=_num_parts(size),
        shards=shards,
        num_shards=int(np.count_nonzero(np.diff(source.starts))),
        window_bytes=_window_bytes(order.tracks[which], source),
        changes=changes,
    )


def _batches(order: Order, which: int, global_batch: int) -> list[IntArray]:
    """Return the samples of a source in some batches of its first epoch."""
    number = max(1, min(MAX_BATCHES, MEASURED_SAMPLES // global_batch))
    track = order.tracks[which]
    steps = track.order.num_samples * sum(order.parts) / order.parts[which] / global_batch
    found = []
    for batch in range(number):
        step = int(steps * (batch + 0.5) / number)
        position = order.start + step * global_batch + np.arange(global_batch, dtype=np.int64)
        mine = order.lanes.picks[(position - order.start) % len(order.lanes.picks)] == which
        found.append(order.sample_at(position[mine]).sample)
    return [batch for batch in found if batch.size] or [np.zeros(1, np.int64)]


def _parts(batches: Sequence[IntArray], size: int) -> Spread:
    parts = _num_parts(size)
    return spread([batch * parts // size for batch in batches], np.full(parts, size / parts))


def _num_parts(size: int) -> int:
    return max(1, min(PARTS, size // PART_SAMPLES))


def _changes(order: Order, which: int, source: OpenedSource, global_batch: int, *, now: float) -> Iterator[Change]:
    """Yield settings that are better, of each kind up to the first that is good enough.

    Lanes are none of them: only where `shuffle_window` is under lanes x chunk_samples do they change the mixing.
    """
    for kind in _kinds(order, which):
        best = now
        for setting, changed in kind:
            parts = _parts(_batches(changed, which, global_batch), int(source.starts[-1]))
            if parts.distinct <= best:
                continue
            best = parts.distinct
            yield Change(setting=setting, parts=parts, window_bytes=_window_bytes(changed.tracks[which], source))
            if parts.is_good:
                break


def _kinds(order: Order, which: int) -> Iterator[Iterator[tuple[str, Order]]]:
    now = order.tracks[which].order
    # The window as it is: a lane has one chunk at least.
    window = max(now.shuffle_window, now.num_lanes * now.chunk_samples)
    kept = "" if window == now.shuffle_window else f", shuffle_window: {window}"
    chunks = [chunk for chunk in (16, 4, 1) if chunk < now.chunk_samples]
    yield ((f"chunk_samples: {chunk}{kept}", _with(order, which, chunk, window)) for chunk in chunks)
    windows = [window * times for times in (4, 16, 64) if window * times < 4 * now.num_samples]
    yield ((f"shuffle_window: {window}", _with(order, which, now.chunk_samples, window)) for window in windows)


def _with(order: Order, which: int, chunk: int, window: int) -> Order:
    tracks = list(order.tracks)
    source = dataclasses.replace(tracks[which].order, chunk_samples=chunk, shuffle_window=window)
    tracks[which] = dataclasses.replace(tracks[which], line=Line(source))
    return dataclasses.replace(order, tracks=tuple(tracks))


def _window_bytes(track: Track, source: OpenedSource) -> int:
    return track.order.num_lanes * track.order.window_samples * source.mean_bytes

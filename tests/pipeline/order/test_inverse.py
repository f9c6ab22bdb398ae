"""From a sample back to its positions: exactly what a brute-force replay of the order finds."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.inverse import occurrences, times_given
from headrace.pipeline.order.layout import lay_out
from headrace.pipeline.order.plan import EndlessPlan
from headrace.pipeline.order.segments import Segment
from headrace.pipeline.order.subset import Subset
from headrace.shards.permutation import make_key, mix_keys, permute, unpermute

BATCH = 24
LANES = [1, 2, 3, 4, 6, 8, 12, 24]


@dataclass(frozen=True)
class Changing:
    """A mixture that changes, and how far it is looked at."""

    sizes: list[int]
    plan: EndlessPlan
    steps: int


@st.composite
def changing(draw: st.DrawFn) -> Changing:
    """Small sources, parts of some, ends of some, up to four segments of other weights and lanes."""
    num_sources, segments, start = draw(st.integers(1, 3)), [], 0
    for _ in range(draw(st.integers(1, 4))):
        weights = [draw(st.integers(1, 5)), *(draw(st.integers(0, 5)) for _ in range(num_sources - 1))]
        lanes = draw(st.sampled_from(LANES))
        segments.append(Segment(start=start, num_lanes=lanes, weights=tuple(map(float, weights))))
        start += BATCH * draw(st.integers(1, 12))
    sizes = [draw(st.integers(60, 140)) for _ in range(num_sources)]
    sources = []
    for number, size in enumerate(sizes):
        fraction = draw(st.sampled_from([1.0, 1.0, 0.5]))
        subset = None if fraction == 1 else Subset(size, fraction)
        order = SourceOrder(
            name=f"s{number}",
            num_samples=subset.size if subset else size,
            chunk_samples=draw(st.integers(1, 20)),
            shuffle_window=draw(st.integers(0, 200)),
            num_lanes=1,
            seed=draw(st.integers(0, 3)),
            subset=subset,
        )
        sources.append(order)
    repeats = [0] + [draw(st.integers(0, 3)) for _ in range(num_sources - 1)]
    plan = EndlessPlan(
        timeline=lay_out(sources, repeats, segments, global_batch=BATCH),
        chunks=[source.chunk_samples for source in sources],
        global_batch=BATCH,
        rank=0,
        world_size=1,
    )
    return Changing(sizes, plan, draw(st.integers(1, 60)))


def replay(plan: EndlessPlan, steps: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return for each (source, sample) the (position, epoch) where a walk over all steps meets it."""
    found = defaultdict(list)
    step = 0
    while step < steps:
        batches = plan.batches(step, min(5, steps - step))
        step += len(batches)
        for batch in batches:
            placed = batch.placed
            columns = (placed.source, placed.sample, batch.position, placed.epoch)
            for source, sample, position, epoch in zip(*(column.tolist() for column in columns), strict=True):
                found[source, sample].append((position, epoch))
    return found


@settings(max_examples=60)
@given(changing())
def test_the_positions_of_every_sample_are_those_of_a_replay(mixture: Changing) -> None:
    timeline, end = mixture.plan.timeline, mixture.steps * BATCH
    expected = replay(mixture.plan, mixture.steps)
    for source, size in enumerate(mixture.sizes):
        sample = np.arange(size, dtype=np.int64)
        found = occurrences(timeline, source, sample, end=end)
        rows = zip(found.which.tolist(), found.position.tolist(), found.epoch.tolist(), strict=True)
        mine = defaultdict(list)
        for which, position, epoch in rows:
            mine[source, which].append((position, epoch))
        assert dict(mine) == {key: places for key, places in expected.items() if key[0] == source}
        assert np.all(np.diff(found.position) > 0)
        times = times_given(timeline, source, sample, end=end)
        assert times.tolist() == [len(expected.get((source, one), ())) for one in range(size)]


@given(st.integers(1, 3000), st.integers(0, 50))
def test_a_permutation_is_undone(size: int, seed: int) -> None:
    index, key = np.arange(size, dtype=np.int64), make_key("test", seed)
    assert np.array_equal(unpermute(permute(index, size, key), size, key), index)
    sizes = 1 + index % 7
    inside, keys = index % sizes, mix_keys(key, index)
    assert np.array_equal(unpermute(permute(inside, sizes, keys), sizes, keys), inside)
    with pytest.raises(ValueError, match="out of range"):
        unpermute(np.array([size]), size, key)


@given(st.integers(1, 40_000), st.floats(0.01, 1))
def test_a_part_of_a_dataset_is_undone(size: int, fraction: float) -> None:
    subset = Subset(size, fraction)
    ordinal = np.arange(subset.size, dtype=np.int64)
    assert np.array_equal(subset.ordinals(subset.samples(ordinal)), ordinal)
    every = subset.ordinals(np.arange(size, dtype=np.int64))
    assert Counter(every[every >= 0].tolist()) == Counter(ordinal.tolist())


def test_two_billion_samples_cost_no_more_than_a_thousand() -> None:
    """No table, no scan: the positions of one sample of a source of two billion, checked forwards."""
    order = SourceOrder(
        name="laion", num_samples=2_000_000_003, chunk_samples=64, shuffle_window=1 << 20, num_lanes=1, seed=1
    )
    timeline = lay_out([order], [0], [Segment(start=0, num_lanes=64, weights=(1.0,))], global_batch=4096)
    sample = np.array([0, 1, 1_234_567_890, 2_000_000_002], np.int64)
    found = occurrences(timeline, 0, sample, end=4096 * 1_500_000)
    assert Counter(found.which.tolist())[2] in (2, 3, 4)
    part = timeline.parts[0]
    assert part.order is not None
    placed = part.order.sample_at(found.position)
    assert np.array_equal(placed.sample, sample[found.which])
    assert np.array_equal(placed.epoch, found.epoch)

"""A mixture that changes in mid-run: against a slow reference, and as properties of every step range."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.layout import lay_out
from headrace.pipeline.order.order import build_order
from headrace.pipeline.order.plan import BatchPlan, EndlessPlan
from headrace.pipeline.order.segments import Segment
from headrace.pipeline.order.subset import Subset

BATCH = 24
LANES = [1, 2, 3, 4, 6, 8, 12, 24]


@dataclass(frozen=True)
class Changing:
    """A mixture that changes."""

    sources: list[SourceOrder]
    repeats: list[int]
    segments: list[Segment]

    def plan(self, rank: int = 0, world_size: int = 1) -> EndlessPlan:
        return EndlessPlan(
            timeline=lay_out(self.sources, self.repeats, self.segments, global_batch=BATCH),
            chunks=[source.chunk_samples for source in self.sources],
            global_batch=BATCH,
            rank=rank,
            world_size=world_size,
        )

    def cut(self, count: int) -> "Changing":
        return dataclasses.replace(self, segments=self.segments[:count])


@st.composite
def changing(draw: st.DrawFn, *, endless: bool = False) -> Changing:
    """Small sources, up to four segments of few steps, weights and lanes that change; the first source never ends."""
    num_sources = draw(st.integers(1, 4))
    segments, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        weights = [draw(st.integers(1, 5)), *(draw(st.integers(0, 5)) for _ in range(num_sources - 1))]
        lanes = draw(st.sampled_from(LANES))
        segments.append(Segment(start=start, num_lanes=lanes, weights=tuple(map(float, weights))))
        start += BATCH * draw(st.integers(1, 12))
    sources = []
    for number in range(num_sources):
        size, fraction = draw(st.integers(60, 140)), draw(st.sampled_from([1.0, 1.0, 0.5]))
        subset = None if fraction == 1 else Subset(size, fraction)
        sources.append(
            SourceOrder(
                name=f"s{number}",
                num_samples=subset.size if subset else size,
                chunk_samples=draw(st.integers(1, 20)),
                shuffle_window=draw(st.integers(0, 200)),
                num_lanes=segments[0].num_lanes,
                seed=draw(st.integers(0, 3)),
                subset=subset,
            )
        )
    repeats = [0] + [0 if endless else draw(st.integers(0, 3)) for _ in range(num_sources - 1)]
    return Changing(sources, repeats, segments)


def stream(plan: EndlessPlan, steps: int) -> list[BatchPlan]:
    """Return the batches of the first steps, planned several at a time."""
    result: list[BatchPlan] = []
    while len(result) < steps:
        result += plan.batches(len(result), min(5, steps - len(result)))
    return result


def rows(batches: Sequence[BatchPlan]) -> list[tuple[int, ...]]:
    """Return (position, source, epoch, sample) of everything in batches."""
    columns = ((b.position, b.placed.source, b.placed.epoch, b.placed.sample) for b in batches)
    return [row for batch in columns for row in zip(*(column.tolist() for column in batch), strict=True)]


@settings(deadline=None, max_examples=25)
@given(changing())
def test_each_epoch_gives_each_sample_once_across_segments_and_changes_of_lanes(mixture: Changing) -> None:
    seen = rows(stream(mixture.plan(), 70))
    assert [row[0] for row in seen] == list(range(70 * BATCH))
    count = Counter(row[1:] for row in seen)
    assert max(count.values()) == 1
    for number, source in enumerate(mixture.sources):
        used = source.index(np.arange(source.num_samples)).tolist()
        epochs = {epoch for which, epoch, _ in count if which == number}
        given = sum(1 for row in seen if row[1] == number)
        for epoch in epochs:
            assert {sample for which, one, sample in count if (which, one) == (number, epoch)} <= set(used)
        # No lane is so far ahead that an epoch stays open for long: with few lanes behind, what is given twice as
        # often as it could have been is nothing.
        if mixture.repeats[number]:
            assert given <= mixture.repeats[number] * source.num_samples
            assert not epochs or max(epochs) < mixture.repeats[number]


@settings(deadline=None, max_examples=25)
@given(changing())
def test_a_source_with_an_end_gives_exactly_its_epochs_and_the_others_go_on(mixture: Changing) -> None:
    plan = mixture.plan()
    last = plan.timeline.parts[-1]
    assert last.end is None
    steps = last.start // BATCH + 3
    if steps > 400:
        return
    count = Counter(row[1:] for row in rows(stream(plan, steps)))
    assert last.order is not None
    for number, (source, repeat) in enumerate(zip(mixture.sources, mixture.repeats, strict=True)):
        weight = mixture.segments[-1].weights[number]
        if not repeat or not weight:
            continue
        # In an endless last segment every source that has an end and a weight comes to it.
        assert number not in {track.source for track in last.order.tracks}
        used = source.index(np.arange(source.num_samples)).tolist()
        assert {row for row in count if row[0] == number} == {
            (number, epoch, sample) for epoch in range(repeat) for sample in used
        }


@settings(deadline=None, max_examples=25)
@given(changing(endless=True))
def test_every_prefix_is_exact_within_its_segment(mixture: Changing) -> None:
    plan = mixture.plan()
    sources = np.concatenate([batch.placed.source for batch in stream(plan, 60)])
    ends = [*(segment.start for segment in mixture.segments[1:]), 60 * BATCH]
    for part, (segment, end) in zip(plan.timeline.parts, zip(mixture.segments, ends, strict=True), strict=True):
        assert part.start == segment.start
        assert part.order is not None
        met = np.zeros(len(mixture.sources))
        met[[track.source for track in part.order.tracks]] = part.order.parts
        met /= met.sum()
        here = sources[segment.start : end]
        counts = np.cumsum(here[:, None] == np.arange(len(met)), axis=0)
        assert np.abs(counts - np.arange(1, len(here) + 1)[:, None] * met).max(initial=0) < 1
    for position in (0, BATCH, 7 * BATCH, 31 * BATCH):
        assert plan.given(position) == np.bincount(sources[:position], minlength=len(mixture.sources)).tolist()


@settings(deadline=None, max_examples=20)
@given(changing(), st.data())
def test_the_ranks_together_give_any_step_range_at_any_world_size(mixture: Changing, data: st.DataObject) -> None:
    first, steps = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 8))
    alone = mixture.plan()
    for step in range(first, first + steps):
        whole = rows([alone.batch(step)])
        lanes = alone.timeline.parts[alone.timeline.part_at(step * BATCH)].num_lanes
        world_size = data.draw(st.sampled_from([size for size in LANES if lanes % size == 0]))
        parts = [mixture.plan(rank, world_size).batch(step) for rank in range(world_size)]
        assert len({len(part.position) for part in parts}) == 1
        assert sorted(rows(parts)) == whole


@settings(deadline=None, max_examples=20)
@given(changing(), st.integers(1, 4))
def test_a_later_segment_changes_nothing_before_it(mixture: Changing, count: int) -> None:
    if count >= len(mixture.segments):
        return
    steps = mixture.segments[count].start // BATCH
    assert rows(stream(mixture.plan(), steps)) == rows(stream(mixture.cut(count).plan(), steps))


@settings(deadline=None, max_examples=20)
@given(changing())
def test_what_is_read_together_holds_the_next_of_the_lane_and_is_given_once(mixture: Changing) -> None:
    """The reader's rule: a window that is opened is used up, or its source is stale at the next part."""
    plan = mixture.plan()
    waiting: set[tuple[int, int, int]] = set()
    part = 0
    for batch in stream(plan, 50):
        if batch.part != part:
            stale = plan.stale(part, batch.part)
            waiting = {name for name in waiting if name[0] not in stale}
            part = batch.part
        for item, (_, source, epoch, sample) in enumerate(rows([batch])):
            if (source, epoch, sample) not in waiting:
                opened = [one for chunk in plan.together(batch, item) for one in chunk.tolist()]
                assert len(set(opened)) == len(opened)
                names = {(source, epoch, one) for one in opened}
                assert not names & waiting
                waiting |= names
            waiting.remove((source, epoch, sample))


@settings(deadline=None, max_examples=20)
@given(changing(), st.integers(0, 60), st.integers(1, 40))
def test_a_replacement_is_a_sample_of_the_same_source(mixture: Changing, step: int, steps: int) -> None:
    plan = mixture.plan()
    batch = plan.batch(step)
    for item in range(0, BATCH, 5):
        source = mixture.sources[int(batch.placed.source[item])]
        used = source.index(np.arange(source.num_samples)).tolist()
        assert plan.replacement(batch, item, steps) in used


@settings(deadline=None, max_examples=20)
@given(changing(), st.integers(1, 2))
def test_the_first_step_of_an_epoch_is_that_of_the_slow_count(mixture: Changing, epoch: int) -> None:
    plan = mixture.plan()
    seen = rows(stream(plan, 80))
    for number in range(len(mixture.sources)):
        slow = next((row[0] // BATCH for row in seen if row[1] == number and row[2] >= epoch), None)
        found = plan.timeline.steps_before(number, epoch, BATCH)
        assert found == slow or (slow is None and (found is None or found >= 80))


def test_a_segment_that_changes_nothing_goes_on_in_the_same_lanes() -> None:
    source = SourceOrder(name="s", num_samples=500, chunk_samples=8, shuffle_window=64, num_lanes=4, seed=1)
    whole = build_order([source], [1.0], 4).sample_at(np.arange(960)).sample
    segments = [Segment(start=start, num_lanes=4, weights=(2.0,)) for start in (0, 240, 480)]
    seen = rows(stream(Changing([source], [0], segments).plan(), 40))
    assert [row[3] for row in seen] == whole.tolist()


def test_lanes_of_four_thousand_and_a_billion_samples_are_laid_out_at_once() -> None:
    sources = [
        SourceOrder(
            name=f"s{n}", num_samples=200_000_000, chunk_samples=64, shuffle_window=1 << 20, num_lanes=64, seed=1
        )
        for n in range(4)
    ]
    weights = (0.4, 0.3, 0.2, 0.1)
    segments = [
        Segment(start=start * 4096, num_lanes=lanes, weights=weights)
        for start, lanes in ((0, 64), (10_000, 1024), (500_000, 8), (600_000, 512))
    ]
    plan = EndlessPlan(
        timeline=lay_out(sources, [0, 0, 0, 2], segments, global_batch=4096),
        chunks=[64] * 4,
        global_batch=4096,
        rank=0,
        world_size=1,
    )
    late = plan.batch(10**9)
    assert late.placed.sample.max() < 200_000_000
    assert plan.given(4096 * 10**9)[3] == 400_000_000


def test_more_lanes_hold_no_larger_windows_than_their_own() -> None:
    """8 lanes have windows of 2,048 samples, 512 of 64: opening counts memory by the latter."""
    source = SourceOrder(name="s", num_samples=10**6, chunk_samples=64, shuffle_window=16384, num_lanes=8, seed=1)
    segments = [Segment(start=0, num_lanes=8, weights=(1.0,)), Segment(start=51200, num_lanes=512, weights=(1.0,))]
    timeline = lay_out([source], [0], segments, global_batch=512)
    plan = EndlessPlan(timeline=timeline, chunks=[64], global_batch=512, rank=0, world_size=1)
    for step, most in ((0, 2048), (100, 64)):
        sizes = [sum(map(len, plan.together(plan.batch(step), item))) for item in range(512)]
        assert most // 4 < max(sizes) <= most


def test_a_stream_that_has_no_source_left_says_so() -> None:
    source = SourceOrder(name="s", num_samples=100, chunk_samples=8, shuffle_window=64, num_lanes=4, seed=1)
    mixture = Changing([source], [1], [Segment(start=0, num_lanes=4, weights=(1.0,))])
    plan = mixture.plan()
    assert len(stream(plan, 4)) == 4
    with pytest.raises(ValueError, match="at position 96 every source has come to its end"):
        plan.batch(4)


@pytest.mark.parametrize(("repeat", "weight"), [(10**9, 1 / 8192), (10**10, 1.0), (10**30, 1.0)])
def test_an_end_that_no_stream_reaches_is_none(repeat: int, weight: float) -> None:
    """Its position, or the number of its draws, would not fit into 64 bits."""
    sources = [
        SourceOrder(name=name, num_samples=n, chunk_samples=64, shuffle_window=4096, num_lanes=1, seed=0)
        for name, n in (("a", 2 * 10**9), ("b", 10**6))
    ]
    timeline = lay_out(sources, [repeat, 0], [Segment(start=0, num_lanes=16, weights=(weight, 1.0))], global_batch=64)
    assert timeline.drained_from == (None, None)
    assert len(timeline.parts) == 1

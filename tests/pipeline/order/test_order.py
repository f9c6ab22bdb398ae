"""The order is arithmetic: quotas, lanes, epochs, and the whole against a slow reference."""

import hashlib
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.order.epoch import Draws, SourceOrder
from headrace.pipeline.order.lanes import deal
from headrace.pipeline.order.order import Order, build_order, lanes_of_rank
from headrace.pipeline.order.quota import MAX_CYCLE, choose_rows, integer_parts, spread
from headrace.shards.permutation import make_key, mix_keys, permute

weights = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=8)
lane_counts = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 60, 64])


@st.composite
def mixtures(draw: st.DrawFn) -> Order:
    """A mixture of small sources."""
    num_lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    num_sources = draw(st.integers(1, 4))
    sources = [
        SourceOrder(
            name=f"s{number}",
            num_samples=draw(st.integers(num_lanes, 90)),
            chunk_samples=draw(st.integers(1, 20)),
            shuffle_window=draw(st.integers(0, 200)),
            num_lanes=num_lanes,
            seed=draw(st.integers(0, 3)),
        )
        for number in range(num_sources)
    ]
    shares = draw(st.lists(st.integers(1, 9), min_size=num_sources, max_size=num_sources))
    return build_order(sources, shares, num_lanes)


@given(weights, st.integers(1, 5000))
def test_whole_parts_sum_up_and_are_within_one_of_the_weights(shares: list[float], total: int) -> None:
    parts = integer_parts(shares, total)
    assert sum(parts) == total
    assert all(abs(part - share * total / sum(shares)) < 1 for part, share in zip(parts, shares, strict=True))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=10))
def test_every_prefix_of_the_cycle_is_exact(parts: list[int]) -> None:
    picks = spread(parts)
    given_so_far = np.cumsum(picks[:, None] == np.arange(len(parts)), axis=0)
    # In whole numbers: |given * M - k * part| < M at every prefix k.
    error = given_so_far * len(picks) - np.arange(1, len(picks) + 1)[:, None] * np.array(parts)
    assert np.abs(error).max() < len(picks)
    assert Counter(picks.tolist()) == dict(enumerate(parts))


@given(weights, lane_counts)
def test_the_cycle_meets_the_weights(shares: list[float], lanes: int) -> None:
    rows = choose_rows(shares, lanes)
    total = rows * lanes
    assert total <= MAX_CYCLE
    parts = np.array(integer_parts(shares, total)) / total
    wanted = np.array(shares) / sum(shares)
    if wanted.min() > 1 / 1000:
        assert np.abs(parts - wanted).max() < 1 / total


def test_decimal_weights_are_met_exactly_by_a_short_cycle() -> None:
    assert choose_rows([0.8, 0.2], 64) == 5
    assert integer_parts([0.8, 0.2], 320) == [256, 64]
    assert choose_rows([1 / 3, 1 / 3, 1 / 3], 64) == 3


@settings(deadline=None, max_examples=20)
@given(weights, lane_counts)
def test_lanes_take_every_pick_once_and_count_what_they_gave(shares: list[float], num_lanes: int) -> None:
    rows = choose_rows(shares, num_lanes)
    lanes = deal(spread(integer_parts(shares, rows * num_lanes)), num_lanes)
    position = np.arange(3 * len(lanes.picks) + 5 * num_lanes)
    lane, row = lanes.lane_of(position)
    assert sorted(zip(row.tolist(), lane.tolist(), strict=True)) == [
        (r, one) for r in range(len(position) // num_lanes) for one in range(num_lanes)
    ]
    assert np.array_equal(lanes.position_of(lane, row), position)
    source = lanes.picks[position % len(lanes.picks)].astype(np.int64)
    slow: Counter[tuple[int, int]] = Counter()
    expected = []
    for one, which in zip(lane.tolist(), source.tolist(), strict=True):
        expected.append(slow[one, which])
        slow[one, which] += 1
    assert lanes.given(source, lane, row).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(weights, st.sampled_from([2, 3, 7, 8, 16, 60, 64, 100, 256]))
def test_a_lane_is_never_far_from_the_weights(shares: list[float], num_lanes: int) -> None:
    rows = choose_rows(shares, num_lanes)
    parts = integer_parts(shares, rows * num_lanes)
    if min(parts) == 0:
        return
    lanes = deal(spread(parts), num_lanes)
    exact = np.arange(lanes.counts.shape[1]) * (np.array(parts)[:, None] / sum(parts))
    error = lanes.counts - exact
    # A lane starts anywhere on the tracks: its error is a difference of two of these.
    assert (error.max(axis=1) - error.min(axis=1)).max() < 8


def test_three_equal_sources_do_not_clump_in_a_lane_of_64() -> None:
    lanes = deal(spread([64, 64, 64]), 64)
    row = np.arange(300)
    seen = lanes.picks[lanes.position_of(np.full_like(row, 17), row) % len(lanes.picks)]
    longest = max(len(run) for run in np.split(seen, np.flatnonzero(np.diff(seen)) + 1))
    assert longest <= 4


def slow_share(order: SourceOrder, lane: int, epoch: int) -> list[int]:
    """The samples of a lane's share, built the long way."""
    whole = order.num_samples // order.chunk_samples
    chunk_key = make_key(order.seed, order.name, "chunk", epoch)
    chunks = [permute(number, whole, chunk_key) for number in range(whole)]
    if order.num_samples % order.chunk_samples:
        chunks.append(whole)
    line = [
        sample
        for chunk in chunks
        for sample in range(chunk * order.chunk_samples, min((chunk + 1) * order.chunk_samples, order.num_samples))
    ]
    shortest, longer = divmod(order.num_samples, order.num_lanes)
    long_lanes = {(epoch * longer + number) % order.num_lanes for number in range(longer)}
    sizes = [shortest + (number in long_lanes) for number in range(order.num_lanes)]
    start = sum(sizes[:lane])
    end = start + sizes[lane]
    early_key = np.array([make_key(order.seed, order.name, "early", epoch)], np.uint64)
    early = int(mix_keys(early_key, np.array([lane]))[0] % np.uint64(order.window_chunks))
    size = order.window_chunks * order.chunk_samples
    base = (start // order.chunk_samples - early) * order.chunk_samples
    window_key = np.array([make_key(order.seed, order.name, "window", epoch)], np.uint64)
    result: list[int] = []
    for number in range((end - base + size - 1) // size):
        first, last = max(start, base + number * size), min(end, base + (number + 1) * size)
        key = int(mix_keys(mix_keys(window_key, np.array([lane])), np.array([number]))[0])
        result += [line[first + permute(place, last - first, key)] for place in range(max(0, last - first))]
    return result


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 12), st.integers(1, 25), st.integers(0, 150))
def test_one_source_is_as_the_slow_reference(
    data: st.DataObject, num_lanes: int, chunk_samples: int, window: int
) -> None:
    num_samples = data.draw(st.integers(num_lanes, 120))
    order = SourceOrder(
        name="s",
        num_samples=num_samples,
        chunk_samples=chunk_samples,
        shuffle_window=window,
        num_lanes=num_lanes,
        seed=9,
    )
    for lane in range(num_lanes):
        expected = [
            (epoch, place, sample) for epoch in range(3) for place, sample in enumerate(slow_share(order, lane, epoch))
        ]
        lanes, number = np.full(len(expected), lane), np.arange(len(expected))
        draws = order.draws(lanes, number)
        got = zip(draws.epoch.tolist(), draws.place.tolist(), order.samples(draws).tolist(), strict=True)
        assert list(got) == expected


@settings(deadline=None, max_examples=40)
@given(mixtures())
def test_every_sample_comes_once_an_epoch(order: Order) -> None:
    position = np.arange(250 * order.lanes.num_lanes)
    placed = order.sample_at(position)
    for number, source in enumerate(order.sources):
        mine = placed.source == number
        # Lanes stand in neighbouring epochs at the end; every lane has left the epochs before its own.
        reached = [placed.epoch[mine & (placed.lane == lane)].max(initial=0) for lane in range(source.num_lanes)]
        complete = min(reached)
        for epoch in range(complete):
            samples = placed.sample[mine & (placed.epoch == epoch)]
            assert sorted(samples.tolist()) == list(range(source.num_samples))


@settings(deadline=None, max_examples=60)
@given(mixtures(), st.integers(0, 10**12))
def test_counts_are_exact_at_every_prefix(order: Order, position: int) -> None:
    total, parts = len(order.lanes.picks), order.parts
    assert all(
        abs(count * total - position * part) < total for count, part in zip(order.given(position), parts, strict=True)
    )
    near = np.bincount(order.sample_at(np.arange(200)).source, minlength=len(parts))
    assert near.tolist() == order.given(200)


@settings(deadline=None, max_examples=60)
@given(mixtures(), st.integers(0, 500), st.integers(1, 5))
def test_any_world_size_that_divides_the_lanes_gives_the_same_global_batch(order: Order, row: int, rows: int) -> None:
    num_lanes = order.lanes.num_lanes
    whole = order.positions(row, rows, range(num_lanes))
    assert whole.tolist() == list(range(row * num_lanes, (row + rows) * num_lanes))
    for world_size in [size for size in range(1, num_lanes + 1) if num_lanes % size == 0]:
        parts = [
            order.positions(row, rows, lanes_of_rank(num_lanes, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert len({len(part) for part in parts}) == 1
        assert sorted(np.concatenate(parts).tolist()) == whole.tolist()
        # A rank owns whole lanes: what it gives later comes from the same ones.
        owners = [set(order.lanes.lane_of(part)[0].tolist()) for part in parts]
        assert sum(len(owner) for owner in owners) == num_lanes


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 10**9))
def test_a_position_means_the_same_alone_and_among_others(order: Order, start: int) -> None:
    position = np.arange(start, start + 50)
    together = order.sample_at(position)
    for number in (0, 17, 49):
        alone = order.sample_at(position[number : number + 1])
        for name in ("source", "lane", "epoch", "place", "sample"):
            assert getattr(alone, name)[0] == getattr(together, name)[number]


@settings(deadline=None, max_examples=30)
@given(mixtures(), st.integers(0, 10**6), st.integers(1, 200))
def test_a_replacement_is_the_next_of_the_same_lane_share(order: Order, position: int, steps: int) -> None:
    placed = order.sample_at(np.array([position]))
    source, lane, epoch = int(placed.source[0]), int(placed.lane[0]), int(placed.epoch[0])
    share = slow_share(order.sources[source], lane, epoch)
    got = order.replacement(source, lane, int(placed.number[0]), steps)
    assert got == share[(int(placed.place[0]) + steps) % len(share)]


def test_the_order_is_the_one_that_runs_began_with() -> None:
    """A digest from before mixtures could change in mid-run: runs of that time go on."""
    digest = hashlib.sha256()
    for num_lanes, num_sources, window in [(4, 2, 24), (64, 3, 16384), (12, 4, 100), (1, 1, 0)]:
        sources = [
            SourceOrder(
                name=f"s{number}",
                num_samples=1000 * (number + 1) + 7,
                chunk_samples=16,
                shuffle_window=window,
                num_lanes=num_lanes,
                seed=3,
            )
            for number in range(num_sources)
        ]
        order = build_order(sources, [0.8, 0.2, 0.1, 0.4][:num_sources], num_lanes)
        for start in (0, 10**6, 10**12):
            placed = order.sample_at(np.arange(start, start + 3000))
            for column in (placed.source, placed.lane, placed.epoch, placed.place, placed.sample):
                digest.update(column.astype(np.int64).tobytes())
            digest.update(order.positions(start // num_lanes, 100, range(num_lanes)).tobytes())
    assert digest.hexdigest() == "4bcbcd4699b805f4b6349207e0c319ad4f23f41febe553576d855e20b5f174f2"


def test_a_seed_changes_the_order_and_an_epoch_too() -> None:
    def samples(seed: int, epoch: int) -> list[int]:
        order = SourceOrder(name="s", num_samples=64, chunk_samples=4, shuffle_window=32, num_lanes=2, seed=seed)
        place = np.arange(32)
        return order.samples(Draws(np.zeros_like(place), np.full_like(place, epoch), place)).tolist()

    assert samples(1, 0) == samples(1, 0)
    assert samples(1, 0) != samples(2, 0)
    assert samples(1, 0) != samples(1, 1)
    assert samples(1, 0) != sorted(samples(1, 0))


def test_a_world_size_that_does_not_divide_the_lanes_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"world size 5 does not divide the 64 lanes.*4, 8"):
        lanes_of_rank(64, rank=0, world_size=5)
    with pytest.raises(ValueError, match="rank 2 of world size 2"):
        lanes_of_rank(64, rank=2, world_size=2)


def test_a_source_smaller_than_the_lanes_is_refused_with_the_number_to_change() -> None:
    with pytest.raises(ValueError, match=r"'s' has 7 samples for 8 lanes; set lanes to 7 or less"):
        SourceOrder(name="s", num_samples=7, chunk_samples=1, shuffle_window=0, num_lanes=8, seed=0)


def test_a_weight_too_small_for_any_cycle_is_refused() -> None:
    sources = [
        SourceOrder(name=name, num_samples=100, chunk_samples=1, shuffle_window=0, num_lanes=4, seed=0) for name in "ab"
    ]
    with pytest.raises(ValueError, match="source 'b': its weight is under one pick in"):
        build_order(sources, [1.0, 1e-9], 4)


def test_two_billion_samples_of_ten_sources_open_at_once_in_little_memory() -> None:
    tracemalloc.start()
    begun = time.process_time()  # the machine may be busy with other tests
    sources = [
        SourceOrder(
            name=f"s{number}", num_samples=200_000_000, chunk_samples=64, shuffle_window=1 << 20, num_lanes=1024, seed=1
        )
        for number in range(10)
    ]
    order = build_order(sources, [1.0 + number for number in range(10)], 1024)
    placed = order.sample_at(np.arange(10**13, 10**13 + 4096))
    seconds = time.process_time() - begun
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert placed.sample.max() < 200_000_000
    assert seconds < 10
    assert peak < 32 << 20

"""A mixture that changes in mid-run, as a stream: states, lanes, ends of sources, parts of datasets."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.pipeline import Mixture, Segment, Source, Stream, open_stream
from headrace.shards.dataset import open_dataset

STEPS = 16


@pytest.fixture
def changing(mixture: Mixture, datasets: tuple[str, str]) -> Mixture:
    """Weights change, a source begins, the lanes change twice, a source ends."""
    return dataclasses.replace(
        mixture,
        sources=(
            *mixture.sources,
            Source(name="late", url=datasets[1], weight=0.0, chunk_samples=3, repeat=1),
        ),
        segments=(
            Segment(start=24, weights={"large": 0.5, "late": 0.25}),
            Segment(start=48, lanes=8),
            Segment(start=72, lanes=2, weights={"small": 0.0}),
        ),
    )


def deliver(mixture: Mixture, steps: int, *, world_size: int = 1, state: Any = None) -> dict[int, tuple[Any, ...]]:
    """Return what stands at every position, over all ranks."""
    rows: dict[int, tuple[Any, ...]] = {}
    for rank in range(world_size):
        with open_stream(mixture, global_batch=8, rank=rank, world_size=world_size, columns=("label",)) as stream:
            if state is not None:
                stream.load_state_dict(state)
            for _ in range(steps):
                batch = next(stream)
                for item, position in enumerate(batch.position.tolist()):
                    assert position not in rows
                    images = batch.images[item].tobytes()
                    rows[position] = (
                        int(batch.source[item]),
                        batch.key[item],
                        int(batch.columns["label"][item]),
                        images,
                    )
    return rows


def state_at(mixture: Mixture, position: int) -> dict[str, Any]:
    with open_stream(mixture, global_batch=8) as stream:
        stream._begin_at(position // 8)
        return dict(json.loads(json.dumps(stream.state_dict())))


def test_a_stream_goes_through_its_segments(changing: Mixture) -> None:
    rows = deliver(changing, STEPS)
    sources = [Counter(rows[position][0] for position in range(start, start + 24)) for start in (0, 24, 48, 72)]
    assert sources[0] == {0: 18, 1: 6}
    assert sources[1] == {0: 12, 1: 6, 2: 6}
    assert sources[2] == {0: 12, 1: 6, 2: 6}
    assert sources[3][1] == 0
    # `late` has 19 samples, each of which comes once; then the other goes on alone.
    late = [row[1] for row in rows.values() if row[0] == 2]
    assert sorted(late) == [f"{number:05d}" for number in range(19)]
    assert {rows[position][0] for position in range(104, 128)} == {0}


def test_every_epoch_is_whole_whatever_changes(changing: Mixture) -> None:
    with open_stream(changing, global_batch=8) as stream:
        rows = deliver(changing, 60)
        given = stream.plan.given(480)
    for number, source in enumerate(changing.sources):
        keys = Counter(row[1] for row in rows.values() if row[0] == number)
        assert keys.total() == given[number]
        size = open_dataset(source.url).num_samples
        # The lanes are a few draws apart, which is an epoch where a share has four samples.
        assert max(keys.values()) - min(keys[f"{key:05d}"] for key in range(size)) <= 2


def test_resume_gives_the_same_tail_across_segments(changing: Mixture, check_resumes: Callable[..., None]) -> None:
    def open_it() -> Stream:
        return open_stream(changing, global_batch=8, columns=("label",))

    check_resumes(open_it, steps=STEPS)


@pytest.mark.parametrize("world_size", [2])
def test_any_world_size_gives_the_same_global_batches_across_segments(changing: Mixture, world_size: int) -> None:
    assert deliver(changing, STEPS, world_size=world_size) == deliver(changing, STEPS)


def test_a_world_size_is_asked_only_of_the_segments_it_reads(changing: Mixture) -> None:
    whole = deliver(changing, 9)
    eight = deliver(changing, 3, world_size=8, state=state_at(changing, 48))
    assert eight == {position: row for position, row in whole.items() if position >= 48}
    with (
        open_stream(changing, global_batch=8, rank=0, world_size=8) as stream,
        pytest.raises(ValueError, match=r"from position 0: world size 8 does not divide the 4 lanes"),
    ):
        next(stream)
    with open_stream(changing, global_batch=8, rank=0, world_size=8) as stream:
        stream.load_state_dict(state_at(changing, 64))
        next(stream)
        with pytest.raises(ValueError, match=r"from position 72: world size 8 does not divide the 2 lanes"):
            next(stream)
        assert stream.position == 72
    with pytest.raises(ValueError, match="world size 3 does not divide the 4 lanes"):
        open_stream(changing, global_batch=8, world_size=3)


def test_a_segment_may_be_added_where_a_run_stands(mixture: Mixture) -> None:
    whole = deliver(mixture, 5)
    state = state_at(mixture, 40)
    changed = dataclasses.replace(mixture, segments=(Segment(start=40, weights={"large": 0.25}, lanes=2),))
    rest = deliver(changed, 3, state=state)
    assert Counter(row[0] for row in rest.values()) == {0: 12, 1: 12}
    assert {**whole, **rest} == deliver(changed, 8)


def test_what_is_to_come_may_change(changing: Mixture) -> None:
    state = state_at(changing, 48)
    other = dataclasses.replace(
        changing,
        sources=(*changing.sources[:2], dataclasses.replace(changing.sources[2], repeat=0)),
        segments=(changing.segments[0], Segment(start=64, weights={"large": 0.1})),
    )
    with open_stream(other, global_batch=8) as stream:
        stream.load_state_dict(state)
        next(stream)


def test_what_is_past_may_not_change_and_is_named(changing: Mixture, datasets: tuple[str, str]) -> None:
    state = state_at(changing, 120)
    large, small, late = changing.sources
    first, second, third = changing.segments

    def refuse(message: str, **change: Any) -> None:
        with (
            open_stream(dataclasses.replace(changing, **change), global_batch=8) as stream,
            pytest.raises(ValueError, match=message),
        ):
            stream.load_state_dict(state)

    refuse(
        r"segment from position 24: weights was .*'late': 0.25.* this stream has .*'late': 0.5",
        segments=(Segment(start=24, weights={"large": 0.5, "late": 0.5}), second, third),
    )
    refuse(r"segment from position 48: lanes was 8, this", segments=(first, Segment(start=48, lanes=2), third))
    refuse(
        r"a segment from position 24 was gone through", segments=(dataclasses.replace(first, start=16), second, third)
    )
    refuse(
        r"source 'late': digest of the dataset was",
        sources=(large, small, dataclasses.replace(late, url=datasets[0])),
    )
    refuse(r"source 'late': fraction was 1.0", sources=(large, small, dataclasses.replace(late, fraction=0.5)))
    refuse(r"the end of source 'late' \(repeat 1\)", sources=(large, small, dataclasses.replace(late, repeat=2)))
    refuse(r"weight was 0.75", sources=(dataclasses.replace(large, weight=0.7), small, late))
    refuse(
        r"this stream has a segment from position 112, which was not gone through: let it start later",
        segments=(*changing.segments, Segment(start=112, lanes=4)),
    )
    state["segments"][1]["colour"] = "of a later version"
    refuse("segments cannot be continued by this headrace")


def test_an_end_that_lies_in_the_past_is_refused(mixture: Mixture) -> None:
    state = state_at(mixture, 120)
    sources = (dataclasses.replace(mixture.sources[0], repeat=1), mixture.sources[1])
    message = r"the end of source 'large' \(repeat 1\) from position \d+, which was not gone through: raise its repeat"
    with (
        open_stream(dataclasses.replace(mixture, sources=sources), global_batch=8) as stream,
        pytest.raises(ValueError, match=message),
    ):
        stream.load_state_dict(state)


def test_a_state_is_small_after_many_segments(mixture: Mixture) -> None:
    segments = tuple(Segment(start=8 * n, weights={"large": 0.5 + n / 100}) for n in range(1, 6))
    assert len(json.dumps(state_at(dataclasses.replace(mixture, segments=segments), 400))) < 1024


def test_windows_of_old_lanes_are_forgotten_and_their_memory_with_them(changing: Mixture) -> None:
    with open_stream(changing, global_batch=8, rank=0, world_size=2) as stream:
        for _ in range(40):
            next(stream)
        assert stream._reading is not None
        prefetcher = stream._reading.prefetcher
        stream.close()
        held = {name[0] for name in prefetcher._ahead._chunks}
        assert held <= {0}
        ahead = len(prefetcher._ahead._chunks) + sum(len(batch.reads) for batch in prefetcher.batches.values())
        assert prefetcher._bytes <= ahead * prefetcher._mean_bytes[0]


@pytest.mark.parametrize("place", [24, 48, 72])
def test_a_damaged_sample_is_replaced_alike_around_a_change(changing: Mixture, tmp_path: Path, place: int) -> None:
    url = str(tmp_path / "damaged")
    shutil.copytree(changing.sources[0].url, url)
    for tar in list((Path(url) / "shards").glob("*.tar"))[::2]:
        data = bytearray(tar.read_bytes())
        for row in open_dataset(url).index(int(tar.stem)).slice(0, 3).to_pylist():
            data[row["offset"] + row["size"] // 2] ^= 0xFF
        tar.write_bytes(data)
    large = dataclasses.replace(changing.sources[0], url=url)
    damaged = dataclasses.replace(changing, sources=(large, *changing.sources[1:]), max_bad_fraction=0.5)
    state = state_at(damaged, place - 8)
    alone = deliver(damaged, 4, state=state)
    assert deliver(damaged, 4, world_size=2, state=state) == alone
    assert alone != deliver(changing, 4, state=state_at(changing, place - 8))


@pytest.mark.parametrize("once", [False, True])
def test_a_fraction_is_nested_and_of_any_seed_and_name(mixture: Mixture, *, once: bool) -> None:
    seen: list[set[str]] = []
    for seed, fraction in enumerate((0.2, 0.4, 0.8, 1.0)):
        source = dataclasses.replace(mixture.sources[0], name=f"part{seed}", fraction=fraction)
        part = dataclasses.replace(mixture, seed=seed, sources=(source,))
        with open_stream(part, global_batch=8, once=once) as stream:
            size = stream.sources[0].num_samples
            assert abs(size - 45 * fraction) <= 1
            keys: list[str] = []
            for _, batch in zip(range(2 * size // 8 + 2), stream, strict=False):
                keys += [key for key, valid in zip(batch.key, batch.valid, strict=True) if valid]
        if once:
            assert keys == sorted(set(keys))
            assert len(keys) == size
        seen.append(set(keys))
        assert len(seen[-1]) == size
    assert seen[0] < seen[1] < seen[2] < seen[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segments": (Segment(start=12, lanes=8),)},
            "a segment starts at 12, .* global batch 8; nearest that are: 8, 16",
        ),
        ({"segments": (Segment(start=16, lanes=3),)}, "global batch 8 is not a multiple of the 3 lanes .* position 16"),
        ({"segments": (Segment(start=16, lanes=48),)}, "global batch 8 is not a multiple of the 48 lanes"),
    ],
)
def test_segments_that_do_not_fit_the_batch_are_refused(mixture: Mixture, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(dataclasses.replace(mixture, **change), global_batch=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"segments": (Segment(start=8, weights={"larch": 1.0}),)}, "no source is named larch; known: large"),
        (
            lambda _: {"segments": (Segment(start=8, lanes=2), Segment(start=8, lanes=4))},
            "segments.1.start is 8, not behind",
        ),
        (
            lambda _: {"segments": (Segment(start=8, weights={"large": 0, "small": 0}),)},
            "every source has weight 0 from pos",
        ),
        (
            lambda m: {"sources": (dataclasses.replace(m.sources[0], weight=0.0), m.sources[1])},
            "'large': weight 0, and no",
        ),
        (
            lambda m: {
                "sources": (dataclasses.replace(m.sources[0], weight=0.0), m.sources[1]),
                "segments": (Segment(start=8, weights={"large": 1.0}),),
            },
            "'large' begins in a later segment than 'small': put it behind",
        ),
    ],
)
def test_segments_that_contradict_themselves_are_refused(
    mixture: Mixture, change: Callable[[Mixture], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mixture, **change(mixture))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 0, "lanes": 4}, "start must be over 0"),
        ({"start": 8}, "changes nothing: give weights or lanes"),
        ({"start": 8, "weights": {"a": -1.0}}, "weights.a must be at least 0"),
        ({"start": 8, "lanes": 5000}, "lanes must be 1..4096"),
    ],
)
def test_a_segment_checks_its_numbers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segment(**arguments)


def test_a_source_that_rests_need_not_fit_the_lanes(mixture: Mixture) -> None:
    """`small` has 19 samples: too few for 32 lanes, where it has no part."""
    segments = (
        Segment(start=64, lanes=32, weights={"small": 0.0}),
        Segment(start=128, lanes=4, weights={"small": 0.25}),
    )
    with open_stream(dataclasses.replace(mixture, segments=segments), global_batch=32) as stream:
        rows = [
            (int(batch.placed.source[item]), int(batch.placed.epoch[item]), int(batch.placed.sample[item]))
            for batch in map(stream.plan.batch, range(12))
            for item in range(32)
        ]
    assert max(Counter(rows).values()) == 1
    assert [sum(row[0] for row in rows[start : start + 64]) for start in (0, 64, 128)] == [16, 0, 16]
    late = dataclasses.replace(
        mixture,
        lanes=32,
        sources=(mixture.sources[0], dataclasses.replace(mixture.sources[1], weight=0.0)),
        segments=(Segment(start=64, lanes=4, weights={"small": 0.25}),),
    )
    open_stream(late, global_batch=32).close()


def test_a_source_that_is_the_last_and_ends_ends_the_stream_with_a_word(mixture: Mixture) -> None:
    alone = dataclasses.replace(mixture, sources=(dataclasses.replace(mixture.sources[0], repeat=1),))
    with open_stream(alone, global_batch=8) as stream:
        keys = [key for _ in range(5) for key in next(stream).key]
        assert len(set(keys)) == 40
        with pytest.raises(ValueError, match="at position 40 every source has come to its end"):
            next(stream)
        assert stream.position == 40
        assert np.isclose(stream.views["large"], 40 / 45)

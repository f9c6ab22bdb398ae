"""What a stream promises: the same batches for every world size, after every stop, with every fault."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Augment, Batch, Mixture, Source, open_stream
from headrace.pipeline.state import VERSION
from headrace.shards.dataset import open_dataset
from headrace.shards.ranges import ReadError
from headrace.shards.write import write_manifest

COLUMNS = ("label", "caption")


def deliver(mixture: Mixture, steps: int, *, world_size: int = 1, once: bool = False) -> list[list[Batch]]:
    """Return for every step the batches of all ranks."""
    result: list[list[Batch]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        with open_stream(
            mixture, global_batch=8, rank=rank, world_size=world_size, columns=COLUMNS, once=once
        ) as stream:
            for step, batch in zip(range(steps), stream, strict=False):
                result[step].append(batch)
    return result


def by_position(batches: list[Batch]) -> dict[int, tuple[object, ...]]:
    """Return what stands at every position of a global batch."""
    return {
        int(batch.position[item]): (
            int(batch.source[item]),
            batch.key[item],
            bool(batch.valid[item]),
            int(batch.columns["label"][item]),
            batch.columns["caption"][item],
            batch.images[item].tobytes(),
        )
        for batch in batches
        for item in range(len(batch.position))
    }


def break_samples(url: str, numbers: dict[int, str]) -> None:
    """Damage samples of a dataset: `crc` flips a byte; `decode` also corrects the index; `tail` cuts the shard."""
    import pyarrow.parquet as pq

    dataset = open_dataset(url)
    for number, how in numbers.items():
        shard, row = divmod(number, dataset.shards[0].num_samples)
        table = dataset.index(shard)
        offset, size = (table.column(name)[row].as_py() for name in ("offset", "size"))
        path = Path(dataset.tar_url(shard))
        data = bytearray(path.read_bytes())
        if how == "tail":
            path.write_bytes(data[: offset + size // 2])
            continue
        data[offset + size // 2] ^= 0xFF
        if how == "decode":
            data[offset : offset + size] = b"\xff\xd8\xff" + b"x" * (size - 3)
            crc = pa.array([None] * table.num_rows, pa.uint32())
            table = table.set_column(table.column_names.index("crc32"), "crc32", crc)
            pq.write_table(table, dataset.index_url(shard))
            seal(url)
        path.write_bytes(data)


def seal(url: str) -> None:
    """Write the manifest anew after an index was changed, as the sum of each is checked where it is read."""
    dataset = open_dataset(url)
    records = [
        {
            **dataclasses.asdict(entry),
            "index_sha256": hashlib.sha256(Path(dataset.index_url(shard)).read_bytes()).hexdigest(),
        }
        for shard, entry in enumerate(dataset.shards)
    ]
    write_manifest(url, records, {"recipe_digest": dataset.recipe_digest, "layout": dataset.layout})


@pytest.fixture
def damaged(tmp_path: Path, mixture: Mixture) -> Mixture:
    """The mixture over a copy of the large dataset with three damaged samples in it."""
    url = str(tmp_path / "damaged")
    shutil.copytree(mixture.sources[0].url, url)
    break_samples(url, {3: "crc", 10: "decode", 44: "tail"})
    source = dataclasses.replace(mixture.sources[0], url=url)
    return dataclasses.replace(
        mixture,
        sources=(source, mixture.sources[1]),
        quarantine=str(tmp_path / "damaged.jsonl"),
        max_bad_fraction=0.5,
    )


def test_batches_hold_what_the_order_says(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, columns=COLUMNS) as stream:
        for step in range(12):
            batch = next(stream)
            placed = stream.plan.batch(step).placed
            assert batch.images.shape == (8, 16, 16, 3)
            assert batch.images.dtype == np.uint8
            assert batch.position.tolist() == list(range(8 * step, 8 * step + 8))
            assert batch.source.tolist() == placed.source.tolist()
            assert batch.key == [f"{sample:05d}" for sample in placed.sample]
            assert batch.columns["label"].tolist() == placed.sample.tolist()  # type: ignore[union-attr]
            assert batch.columns["caption"] == [
                f"number {sample}" if sample % 3 == 0 else None for sample in placed.sample
            ]
            assert batch.valid.all()


def test_the_mixture_is_exact_and_views_count_it(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        sources = np.concatenate([next(stream).source for _ in range(30)])
        assert Counter(sources.tolist()) == {0: 180, 1: 60}
        assert stream.views == {"large": 180 / 45, "small": 60 / 19}
        assert stream.weights == {"large": 0.75, "small": 0.25}


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_world_size_gives_the_same_global_batches(mixture: Mixture, world_size: int) -> None:
    alone = deliver(mixture, 10)
    together = deliver(mixture, 10, world_size=world_size)
    for one, many in zip(alone, together, strict=True):
        assert by_position(many) == by_position(one)


def test_resume_gives_the_same_tail(mixture: Mixture, check_resumes: Callable[..., None]) -> None:
    check_resumes(lambda: open_stream(mixture, global_batch=8, columns=COLUMNS), steps=8)


def test_resume_of_a_finite_pass_gives_the_same_tail(mixture: Mixture, check_resumes: Callable[..., None]) -> None:
    check_resumes(lambda: open_stream(mixture, global_batch=8, columns=COLUMNS, once=True), steps=8)


def test_resume_at_another_world_size_continues_the_same_global_batches(mixture: Mixture) -> None:
    whole = deliver(mixture, 6)
    with open_stream(mixture, global_batch=8, rank=1, world_size=2) as stream:
        for _ in range(3):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
    assert len(json.dumps(state)) < 1024
    rest: list[list[Batch]] = [[] for _ in range(3)]
    for rank in range(4):
        with open_stream(mixture, global_batch=8, rank=rank, world_size=4, columns=COLUMNS) as stream:
            stream.load_state_dict(state)
            for step in range(3):
                rest[step].append(next(stream))
    assert [by_position(batches) for batches in rest] == [by_position(batches) for batches in whole[3:]]


def test_the_state_counts_delivered_batches_only(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        assert stream.state_dict()["position"] == 0
        next(stream)
        time.sleep(0.3)  # threads make more batches ready
        assert stream.state_dict()["position"] == 8


def test_threads_and_memory_do_not_change_the_batches(mixture: Mixture) -> None:
    other = dataclasses.replace(
        mixture, decode_threads=1, io_threads=1, prefetch_batches=1, memory_bytes=200_000, verify_crc=False
    )
    for one, two in zip(deliver(mixture, 12), deliver(other, 12), strict=True):
        assert by_position(one) == by_position(two)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed was 5, this stream has 6"),
        ({"lanes": 2}, "lanes was 4, this stream has 2"),
        ({"image_size": 17}, "pictures .image_size and augment. was"),
        ({"augment": Augment(flip=False)}, "pictures .image_size and augment. was"),
    ],
)
def test_a_state_of_another_mixture_is_refused(mixture: Mixture, change: dict[str, object], named: str) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        state = stream.state_dict()
    with (
        open_stream(dataclasses.replace(mixture, **change), global_batch=8) as stream,  # type: ignore[arg-type]
        pytest.raises(ValueError, match=named),
    ):
        stream.load_state_dict(state)


def test_a_state_of_other_sources_names_what_differs(mixture: Mixture, datasets: tuple[str, str]) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        state = stream.state_dict()
    first, second = mixture.sources
    for change, named in (
        (dataclasses.replace(first, weight=0.5), "source 'large': weight was 0.75, this stream has 0.5"),
        (dataclasses.replace(first, chunk_samples=5), "source 'large': chunk_samples was 3"),
        (dataclasses.replace(first, shuffle_window=5), "source 'large': shuffle_window was 24"),
        (dataclasses.replace(first, url=datasets[1]), "source 'large': digest of the dataset was"),
        (dataclasses.replace(first, name="other"), "sources were large, small; this stream has other, small"),
    ):
        with (
            open_stream(dataclasses.replace(mixture, sources=(change, second)), global_batch=8) as stream,
            pytest.raises(ValueError, match=named),
        ):
            stream.load_state_dict(state)
    with open_stream(mixture, global_batch=16) as stream, pytest.raises(ValueError, match="global_batch was 8"):
        stream.load_state_dict(state)
    with open_stream(mixture, global_batch=8, once=True) as stream, pytest.raises(ValueError, match="once was False"):
        stream.load_state_dict(state)


def test_a_state_that_is_none_is_refused(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        good = stream.state_dict()
        for state in (
            [],
            {},
            {**good, "version": 0},
            {**good, "version": VERSION + 1},
            {**good, "version": True},
            {**good, "position": 3},
            {**good, "position": -8},
            {**good, "position": "8"},
            {**good, "segments": []},
            {**good, "segments": [{"start": 8, "sources": good["segments"][0]["sources"]}]},
            {**good, "segments": [{"start": 0, "sources": 7}]},
        ):
            with pytest.raises(ValueError, match="state"):
                stream.load_state_dict(state)  # type: ignore[arg-type]
        stream.load_state_dict(good)
        next(stream)


def test_a_moved_dataset_keeps_its_order(
    mixture: Mixture, tmp_path: Path, fingerprint: Callable[[Batch], object]
) -> None:
    moved = str(tmp_path / "moved")
    shutil.copytree(mixture.sources[0].url, moved)
    other = dataclasses.replace(
        mixture, sources=(dataclasses.replace(mixture.sources[0], url=moved), mixture.sources[1])
    )
    with open_stream(mixture, global_batch=8) as stream, open_stream(other, global_batch=8) as second:
        second.load_state_dict(stream.state_dict())
        assert fingerprint(next(stream)) == fingerprint(next(second))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_once_gives_every_sample_once_and_pads_the_end(mixture: Mixture, world_size: int) -> None:
    steps = deliver(mixture, 100, world_size=world_size, once=True)
    steps = [batches for batches in steps if batches]
    assert len(steps) == 8  # 64 samples, 8 a batch
    everything = {position: row for batches in steps for position, row in by_position(batches).items()}
    seen = [(row[0], row[1]) for row in everything.values() if row[2]]
    assert sorted(seen) == [(0, f"{n:05d}") for n in range(45)] + [(1, f"{n:05d}") for n in range(19)]


def test_a_second_loop_over_a_finite_pass_gives_it_again(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, once=True) as stream:
        first = [batch.key for batch in stream]
        end = stream.state_dict()
        assert next(stream, None) is None  # without a new loop it stays at its end
        assert [batch.key for batch in stream] == first
        for _ in zip(range(3), stream, strict=False):
            pass
        assert [batch.key for batch in stream] == first[3:]  # a loop that was left goes on
    with open_stream(mixture, global_batch=8, once=True) as stream:
        stream.load_state_dict(end)
        assert list(stream) == []
        assert stream.state_dict() == end
        assert len(list(stream)) == len(first)


def test_a_stream_goes_on_when_its_server_is_back(mixture: Mixture, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(mixture.sources[0].url, url)
    tar = Path(open_dataset(url).tar_url(0))
    source = dataclasses.replace(mixture.sources[0], url=url)
    other = dataclasses.replace(mixture, sources=(source,), read_retries=0, prefetch_batches=1)
    with open_stream(other, global_batch=8) as stream:
        whole = [next(stream).key for _ in range(6)]
    with open_stream(other, global_batch=8) as stream:
        tar.rename(tmp_path / "away")
        seen = []
        with pytest.raises(OSError, match=r"00000\.tar"):
            seen += [batch.key for batch in stream]
        failed_at = stream.position
        (tmp_path / "away").rename(tar)
        seen = [next(stream).key for _ in range(6 - failed_at // 8)]
    assert seen == whole[failed_at // 8 :]


def test_once_pads_with_invalid_rows_at_every_world_size(datasets: tuple[str, str]) -> None:
    mixture = Mixture(
        image_size=16, sources=(Source(name="small", url=datasets[1]),), augment=Augment(crop="center", flip=False)
    )
    alone = deliver(mixture, 10, once=True)
    assert [int(batches[0].valid.sum()) for batches in alone if batches] == [8, 8, 3]
    last = alone[2][0]
    assert not last.images[3:].any()
    assert last.key[3:] == [""] * 5
    assert last.columns["label"].tolist() == [16, 17, 18, -1, -1, -1, -1, -1]  # type: ignore[union-attr]
    for one, many in zip(alone, deliver(mixture, 10, world_size=4, once=True), strict=True):
        assert by_position(many) == by_position(one)


def test_a_damaged_sample_is_replaced_by_the_next_of_its_lane_share(damaged: Mixture, mixture: Mixture) -> None:
    broken = {"00003": "crc", "00010": "decode", "00044": "size"}
    with open_stream(damaged, global_batch=8) as stream:
        keys, plan = [], stream.plan
        for _ in range(12):
            keys += next(stream).key
        reasons = stream.bad_samples
    with open_stream(mixture, global_batch=8) as stream:
        whole = [key for _ in range(12) for key in next(stream).key]
    lines = [json.loads(line) for line in Path(damaged.quarantine).read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == reasons
    assert set(reasons) == {"crc", "decode", "size"}
    changed = {position for position, (a, b) in enumerate(zip(whole, keys, strict=True)) if a != b}
    assert changed == {line["position"] for line in lines}
    for line in lines:
        assert broken[line["key"]] == line["reason"]
        assert keys[line["position"]] == line["replaced_by"]
        assert line["shard"].endswith(".tar")
        assert line["offset"] > 0
        step, item = divmod(line["position"], 8)
        then = plan.batch(step)
        following = [plan.replacement(then, item, steps) for steps in range(1, 4)]
        assert int(line["replaced_by"]) in following


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_samples_replace_at_any_world_size(damaged: Mixture, world_size: int) -> None:
    alone = deliver(damaged, 12)
    for one, many in zip(alone, deliver(damaged, 12, world_size=world_size), strict=True):
        assert by_position(many) == by_position(one)
    ranks = [Path(f"{damaged.quarantine}.{rank}").read_text() for rank in range(world_size) if _exists(damaged, rank)]
    one_file = Path(damaged.quarantine).read_text().splitlines()
    assert sorted("".join(ranks).splitlines()) == sorted(one_file)


def _exists(mixture: Mixture, rank: int) -> bool:
    return Path(f"{mixture.quarantine}.{rank}").exists()


def test_the_same_samples_replace_after_a_resume(damaged: Mixture, check_resumes: Callable[..., None]) -> None:
    check_resumes(lambda: open_stream(damaged, global_batch=8, columns=COLUMNS), steps=8)


def test_the_folder_of_the_quarantine_is_made(damaged: Mixture, tmp_path: Path) -> None:
    """A run must not end at its first damaged sample for want of a folder."""
    elsewhere = dataclasses.replace(damaged, quarantine=str(tmp_path / "new" / "folder" / "damaged.jsonl"))
    deliver(damaged, 12)
    deliver(elsewhere, 12)
    assert Path(elsewhere.quarantine).read_text() == Path(damaged.quarantine).read_text()


def test_once_leaves_a_damaged_sample_out(damaged: Mixture) -> None:
    steps = [batches for batches in deliver(damaged, 100, once=True) if batches]
    rows = {position: row for batches in steps for position, row in by_position(batches).items()}
    assert [position for position, row in rows.items() if not row[2]] == [3, 10, 44]
    assert not any(rows[3][5])  # type: ignore[arg-type]
    seen = [row[1] for row in rows.values() if row[2] and row[0] == 0]
    assert len(seen) == len(set(seen)) == 42


def test_too_many_damaged_samples_stop_the_run_at_the_same_step(
    tmp_path: Path, write_dataset: Callable[..., str]
) -> None:
    url = write_dataset(tmp_path / "data", 40)
    break_samples(url, dict.fromkeys(range(0, 40, 8), "crc"))
    mixture = Mixture(
        lanes=4, image_size=16, sources=(Source(name="s", url=url),), max_bad_fraction=0.05, decode_threads=2
    )
    stopped = []
    for _ in range(2):
        with open_stream(mixture, global_batch=8) as stream:
            with pytest.raises(ValueError, match=r"too many damaged samples: \d+ of \d+, max_bad_fraction is 0.05"):
                list(itertools.islice(stream, 200))
            stopped.append(stream.position)
            with pytest.raises(ValueError, match="too many damaged samples"):
                next(stream)  # the same batch again, not the one behind it
            assert stream.position == stopped[-1]
    assert stopped[0] == stopped[1]


def test_damage_without_end_stops_the_run(tmp_path: Path, write_dataset: Callable[..., str]) -> None:
    url = write_dataset(tmp_path / "data", 20)
    break_samples(url, dict.fromkeys(range(20), "crc"))
    mixture = Mixture(lanes=4, image_size=16, sources=(Source(name="s", url=url),), max_bad_consecutive=7)
    with (
        open_stream(mixture, global_batch=4) as stream,
        pytest.raises(ValueError, match=r"7 in a row, max_bad_consecutive is 7 \(.*crc\); last: .*tar: sample"),
    ):
        next(stream)


def test_a_missing_shard_stops_the_run_and_is_named(mixture: Mixture, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(mixture.sources[0].url, url)
    gone = Path(open_dataset(url).tar_url(2))
    gone.unlink()
    other = dataclasses.replace(mixture, sources=(dataclasses.replace(mixture.sources[0], url=url),), read_retries=1)
    with open_stream(other, global_batch=8) as stream, pytest.raises(ReadError, match=gone.name) as caught:
        list(itertools.islice(stream, 30))
    assert "at byte" in str(caught.value)


def test_an_error_comes_after_the_whole_batches_before_it(mixture: Mixture, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(mixture.sources[0].url, url)
    Path(open_dataset(url).tar_url(6)).unlink()
    other = dataclasses.replace(
        mixture, sources=(dataclasses.replace(mixture.sources[0], url=url),), read_retries=0, prefetch_batches=4
    )
    delivered = []
    for _ in range(2):
        with open_stream(other, global_batch=8, once=True) as stream:
            with pytest.raises(ReadError):
                list(itertools.islice(stream, 30))
            delivered.append(stream.position)
    assert delivered == [40, 40]  # shard 6 begins with sample 42


def own_threads() -> list[str]:
    """Names of the threads of streams; those of a test's server come and go."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace")]


def test_close_leaves_no_thread_and_ends_the_stream(mixture: Mixture) -> None:
    stream = open_stream(mixture, global_batch=8)
    next(stream)
    assert own_threads()
    stream.close()
    stream.close()
    assert not own_threads()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_a_dropped_stream_leaves_no_thread(mixture: Mixture) -> None:
    next(open_stream(mixture, global_batch=8))
    deadline = time.monotonic() + 60
    while own_threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not own_threads()


def test_a_slow_consumer_finds_batches_ready_and_few(mixture: Mixture) -> None:
    with open_stream(dataclasses.replace(mixture, prefetch_batches=3), global_batch=8) as stream:
        next(stream)
        assert stream._reading is not None
        prefetcher = stream._reading.prefetcher
        deadline = time.monotonic() + 60
        # On a busy machine starting may have begun some more, while the first batch was waited for.
        while not 3 <= (begun := stream.stats().queues.begun_batches) == stream.stats().queues.whole_batches:
            assert time.monotonic() < deadline, "the batches were never made ready"
            time.sleep(0.01)
        time.sleep(0.3)
        assert sum(batch.views is not None for batch in prefetcher.batches.values()) == begun
        assert next(stream).waited_for == "none"


def test_the_wait_names_reading_when_reads_are_slow(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.pipeline.threads import Bell
    from headrace.shards.ranges import RangeReader

    quick, wait, waits = RangeReader.read, Bell.wait, threading.Event()

    def slow(self: RangeReader, url: str, offset: int, size: int, **how: Any) -> bytes:
        if waits.wait(200):
            time.sleep(0.2)
        return quick(self, url, offset, size, **how)

    def wait_and_say_so(self: Bell) -> None:
        if threading.current_thread() is threading.main_thread():
            waits.set()
        wait(self)

    monkeypatch.setattr(RangeReader, "read", slow)
    monkeypatch.setattr(Bell, "wait", wait_and_say_so)
    with open_stream(mixture, global_batch=8) as stream:
        batch = next(stream)
    assert batch.waited_for == "read"
    assert batch.waited_seconds > 0.15


def test_crops_follow_the_orientation_of_the_index(tmp_path: Path) -> None:
    """Curation cuts EXIF out of the image; only the index knows that it lies on its side."""
    import io

    from PIL import Image

    from headrace.shards.write import Sample, finish_dataset, write_shard

    upright = np.zeros((32, 24, 3), np.uint8)
    upright[:16] = 200  # bright above, dark below
    sink = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(sink, "PNG")  # stored lying; orientation 6 turns it upright
    write_shard(str(tmp_path), "00000", [Sample("a", sink.getvalue(), "png", {"orientation": 6})])
    finish_dataset(str(tmp_path), recipe_digest="test")
    mixture = Mixture(
        lanes=1,
        image_size=24,
        sources=(Source(name="s", url=str(tmp_path)),),
        augment=Augment(crop="center", flip=False),
    )
    with open_stream(mixture, global_batch=1, once=True) as stream:
        image = next(stream).images[0]
    assert image[2].mean() > 190
    assert image[-3].mean() < 10


def test_a_column_of_one_source_is_null_in_the_others(tmp_path: Path, mixture: Mixture) -> None:
    from headrace.shards.write import Sample, finish_dataset, write_shard

    image = open_dataset(mixture.sources[0].url)
    data = Path(image.tar_url(0)).read_bytes()
    row = image.index(0).slice(0, 1).to_pylist()[0]
    payload = data[row["offset"] : row["offset"] + row["size"]]
    schema = pa.schema([("score", pa.float64()), ("rank", pa.int32()), ("note", pa.string())])
    samples = [Sample(f"{n}", payload, "jpg", {"score": n / 2, "rank": n, "note": f"n{n}"}) for n in range(4)]
    write_shard(str(tmp_path), "0", samples, schema)
    finish_dataset(str(tmp_path), recipe_digest="test")
    sources = (Source(name="with", url=str(tmp_path)), Source(name="without", url=mixture.sources[1].url))
    both = dataclasses.replace(mixture, sources=sources, lanes=1)
    with open_stream(both, global_batch=23, columns=("score", "rank", "note"), once=True) as stream:
        batch = next(stream)
    assert batch.columns["note"] == [f"n{n}" for n in range(4)] + [None] * 19
    assert np.asarray(batch.columns["rank"]).tolist() == [0, 1, 2, 3] + [-1] * 19
    assert np.isnan(np.asarray(batch.columns["score"], np.float64)[4:]).all()
    with pytest.raises(ValueError, match=r"source 'with': .* has no column lable"):
        open_stream(both, global_batch=23, columns=("score", "lable"), once=True)


def test_an_index_without_orientation_leaves_it_to_the_image(tmp_path: Path) -> None:
    """`headrace index --fast` reads no image; its stream delivers the pixels that a full index gives."""
    import io
    import tarfile

    from PIL import Image

    from headrace.shards.foreign.index import IndexConfig, index_folder

    upright = np.zeros((32, 24, 3), np.uint8)
    upright[:16] = 200
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(sink, "JPEG", exif=exif)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", sink.getvalue()), ("a.cls", b"4")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    mixture = Mixture(
        lanes=1,
        image_size=24,
        sources=(Source(name="s", url=str(tmp_path)),),
        augment=Augment(crop="center", flip=False),
    )
    images = []
    for fast in (True, False):
        index_folder(str(tmp_path), ["0.tar"], IndexConfig(fast=fast))
        if fast:
            with pytest.raises(ValueError, match=r"made with --fast and does not hold label; .* headrace index"):
                open_stream(mixture, global_batch=1, columns=("label",), once=True)
        with open_stream(mixture, global_batch=1, columns=() if fast else ("label",), once=True) as stream:
            batch = next(stream)
            images.append(batch.images[0])
    assert batch.columns["label"].tolist() == [4]
    assert np.array_equal(*images)
    assert images[0][2].mean() > 190


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 6}, "global batch 6 is not a multiple of the 4 lanes.*nearest that are: 4, 8"),
        ({"global_batch": 0}, "global batch 0"),
        ({"global_batch": 8, "world_size": 3}, "world size 3 does not divide the 4 lanes.*2, 4"),
        ({"global_batch": 8, "columns": ("lable",)}, "has no column lable; it has key, uid"),
        ({"global_batch": 8, "columns": "label"}, "columns is a list of names"),
        ({"global_batch": 7, "world_size": 2, "once": True}, "not a multiple of the world size 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(mixture: Mixture, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stream(mixture, **arguments)  # type: ignore[arg-type]


def test_windows_that_do_not_fit_into_memory_are_refused(mixture: Mixture) -> None:
    with pytest.raises(
        ValueError, match=r"lower shuffle_window 24 of source 'large' .* for every source fits, or raise"
    ):
        open_stream(dataclasses.replace(mixture, memory_bytes=100_000), global_batch=8)
    # No window fits: to name it would send whoever lowers it in circles.
    with pytest.raises(
        ValueError, match=r"lower chunk_samples 3 of source 'large' .* not even one chunk a lane fits, or"
    ):
        open_stream(dataclasses.replace(mixture, memory_bytes=10_000), global_batch=8)
    # A window of one chunk cannot be lowered, though its part is the largest.
    large = dataclasses.replace(mixture.sources[0], chunk_samples=6, shuffle_window=0)
    small = dataclasses.replace(mixture.sources[1], chunk_samples=1, shuffle_window=16)
    with pytest.raises(ValueError, match=r"lower shuffle_window 16 of source 'small' .* for every source fits, or"):
        open_stream(dataclasses.replace(mixture, sources=(large, small), memory_bytes=140_000), global_batch=8)
    # Half the lanes, half the memory.
    with pytest.raises(ValueError, match="of 2 lanes"):
        open_stream(dataclasses.replace(mixture, memory_bytes=10_000), global_batch=8, world_size=2)


def test_a_mixture_file_is_opened_by_its_path(
    mixture: Mixture, tmp_path: Path, fingerprint: Callable[[Batch], object]
) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    with open_stream(path, global_batch=8) as one, open_stream(mixture, global_batch=8) as two:
        assert fingerprint(next(one)) == fingerprint(next(two))
    with pytest.raises(ValueError, match="no such file"):
        open_stream(str(tmp_path / "none.yaml"), global_batch=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ()}, "sources must be 1"),
        ({"lanes": 0}, "lanes must be"),
        ({"image_size": 0}, "image_size must be"),
        ({"memory_bytes": 0}, "memory_bytes must be at least 1"),
        ({"prefetch_batches": 0}, "prefetch_batches must be at least 1"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must be 0..1"),
    ],
)
def test_a_mixture_checks_its_numbers(mixture: Mixture, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mixture, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two sources are named a"):
        Mixture(sources=(Source(name="a", url="x"), Source(name="a", url="y")))
    with pytest.raises(ValueError, match="scale must be a range within"):
        Augment(scale=(0.5, 0.2))

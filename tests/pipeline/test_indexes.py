"""Indexes of a running stream: each is parsed once, little stays in memory, and no batch depends on the cache."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Batch, Mixture, open_stream
from headrace.pipeline.indexes import Indexes
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.index import read_index, write_index
from headrace.shards.index_cache import IndexCache
from headrace.shards.index_rows import rows_of_file

Fingerprint = Callable[[Batch], tuple[object, ...]]


@pytest.fixture
def dataset(datasets: tuple[str, str]) -> Dataset:
    """The large one: 45 samples in shards of 7."""
    return open_dataset(datasets[0])


class Reader:
    """Counts whole files that are read, and may wait in the middle."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.urls: list[str] = []
        self._gate = gate

    def __call__(self, url: str) -> bytes:
        self.urls.append(url)
        if self._gate is not None:
            assert self._gate.wait(200)
        return Path(url).read_bytes()


@pytest.mark.parametrize("cached", [True, False])
def test_an_index_that_many_threads_want_is_read_once(dataset: Dataset, tmp_path: Path, cached: bool) -> None:
    gate = threading.Event()
    reader = Reader(gate)
    indexes = Indexes(IndexCache(tmp_path, max_bytes=1 << 20) if cached else None)
    with ThreadPoolExecutor(8) as pool:
        one = [pool.submit(indexes.rows, dataset, 2, np.array([n % 7]), ("label",), reader) for n in range(8)]
        gate.set()
        labels = [future.result()[0]["label"].to_pylist() for future in one]
    assert labels == [[14 + n % 7] for n in range(8)]
    assert len(reader.urls) == indexes.num_loaded == 1


def test_a_second_stream_reads_no_index(dataset: Dataset, tmp_path: Path) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    for expected in (7, 0):
        reader = Reader()
        indexes = Indexes(cache)
        for shard in range(len(dataset.shards)):
            rows, names = indexes.rows(dataset, shard, np.array([1, 0]), ("caption",), reader)
            assert rows["key"].to_pylist() == [f"{shard * 7 + 1:05d}", f"{shard * 7:05d}"]
            assert {"uid", "label", "caption"} < set(names)
        assert len(reader.urls) == expected


def test_a_column_that_is_asked_for_later_is_added_to_what_is_there(dataset: Dataset, tmp_path: Path) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    reads = []
    for columns in ((), ("label",), ("caption",), ("label",), ("caption", "label"), ("nowhere",)):
        reader = Reader()
        rows, _ = Indexes(cache).rows(dataset, 0, np.arange(7), columns, reader)
        reads.append(len(reader.urls))
        for name in columns:
            assert name == "nowhere" or rows[name].to_pylist() == dataset.index(0)[name].to_pylist()
    assert reads == [1, 1, 1, 0, 0, 0]


def test_an_index_that_fails_is_asked_for_again(dataset: Dataset, tmp_path: Path) -> None:
    indexes = Indexes(IndexCache(tmp_path, max_bytes=1 << 20))

    def fail(url: str) -> bytes:
        raise OSError(f"{url} is away")

    with pytest.raises(OSError, match="is away"):
        indexes.rows(dataset, 0, np.arange(7), (), fail)
    assert indexes.rows(dataset, 0, np.arange(7), (), Reader())[0].num_rows == 7


@pytest.mark.parametrize("cached", [True, False])
def test_memory_for_indexes_is_bounded_and_counted(dataset: Dataset, tmp_path: Path, cached: bool) -> None:
    indexes = Indexes(IndexCache(tmp_path, max_bytes=1 << 20) if cached else None, held_bytes=6000)
    for _ in range(2):
        for shard in range(len(dataset.shards)):
            indexes.rows(dataset, shard, np.arange(3), ("caption",), Reader())
            assert 0 < indexes.held_bytes <= 6000
    assert indexes.num_loaded == (7 if cached else 14)


def test_an_index_replaced_by_another_valid_one_is_refused_with_both_sums(
    tmp_path: Path, datasets: tuple[str, str]
) -> None:
    url = shutil.copytree(datasets[1], tmp_path / "copy")
    dataset = open_dataset(str(url))
    table = read_index(dataset.index_url(1))
    labels = table["label"].to_pylist()[::-1]
    place = table.column_names.index("label")
    write_index(dataset.index_url(1), table.set_column(place, table.schema.field(place), [labels]))
    for cache in (None, IndexCache(tmp_path / "cache", max_bytes=1 << 20)):
        reader = Reader()
        expected = rf"sha256 of the index is [0-9a-f]{{64}}, the manifest says {dataset.shards[1].index_sha256}"
        with pytest.raises(ShardError, match=expected):
            Indexes(cache).rows(dataset, 1, np.arange(7), ("label",), reader)
        # Read again before it is judged; then what the dataset says by now: samples may have been taken down.
        assert reader.urls == [dataset.index_url(1)] * 2 + [f"{url}/dataset.json"]


def test_a_damaged_block_and_a_removed_file_are_made_again(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    indexes, reader = Indexes(cache), Reader()
    whole = indexes.rows(dataset, 0, np.arange(7), (), reader)[0]
    path = cache.path(dataset.shards[0].index_sha256)
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    assert indexes.rows(dataset, 0, np.arange(7), (), reader)[0].equals(whole)
    assert "is damaged and is made again" in caplog.text
    path.unlink()
    assert indexes.rows(dataset, 0, np.arange(7), (), reader)[0].equals(whole)
    assert len(reader.urls) == 3
    assert rows_of_file(path, dataset.shards[0].index_sha256).take(np.arange(7)).equals(whole)


def test_a_damaged_block_is_made_again_though_another_thread_opens_the_file_meanwhile(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    indexes, reader = Indexes(cache), Reader()
    whole = indexes.rows(dataset, 0, np.arange(7), (), reader)[0]
    path = cache.path(dataset.shards[0].index_sha256)
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    # Between the second look and the third: the head is whole, and is held then.
    monkeypatch.setattr(cache, "complain", lambda *_: indexes.rows(dataset, 0, np.arange(0), (), reader))
    assert indexes.rows(dataset, 0, np.arange(7), (), reader)[0].equals(whole)
    assert len(reader.urls) == 2


def test_processes_that_want_other_columns_share_a_cache_in_peace(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (Indexes(IndexCache(tmp_path, max_bytes=1 << 20)) for _ in range(2))
    reader = Reader()
    for _ in range(5):
        for shard in range(3):
            keys = one.rows(dataset, shard, np.arange(7), (), reader)[0]["key"].to_pylist()
            assert keys == [f"{number:05d}" for number in range(7 * shard, 7 * shard + 7)]
            labels = other.rows(dataset, shard, np.arange(7), ("label",), reader)[0]["label"].to_pylist()
            assert labels == list(range(7 * shard, 7 * shard + 7))
    assert not caplog.records
    assert len(reader.urls) == 6  # without the column, then with it


def _batches(mixture: Mixture, fingerprint: Fingerprint, count: int = 6) -> list[tuple[object, ...]]:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as stream:
        return [fingerprint(next(stream)) for _ in range(count)]


def _harm(folder: Path, how: str, draw: st.DataObject) -> None:
    """Damage some files of a cache: cut, changed in one byte, of another index, or gone."""
    files = sorted(folder.rglob("*.rows"))
    for path in draw.draw(st.lists(st.sampled_from(files), unique=True)) if files else ():
        data = bytearray(path.read_bytes())
        if how == "cut":
            path.write_bytes(data[: draw.draw(st.integers(0, len(data) - 1))])
        elif how == "changed":
            data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
            path.write_bytes(data)
        elif how == "another":
            path.write_bytes(draw.draw(st.sampled_from(files)).read_bytes())
        else:
            path.unlink()


@pytest.fixture(scope="session")
def expected(mixture: Mixture, fingerprint: Fingerprint) -> list[tuple[object, ...]]:
    """What a stream without a cache gives."""
    return _batches(dataclasses.replace(mixture, index_cache="none"), fingerprint)


@given(st.sampled_from(["cut", "changed", "another", "gone"]), st.data())
@settings(max_examples=12)
def test_the_batches_do_not_depend_on_the_cache(
    mixture: Mixture,
    expected: list[tuple[object, ...]],
    fingerprint: Fingerprint,
    tmp_path_factory: pytest.TempPathFactory,
    how: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cached = dataclasses.replace(mixture, index_cache=str(folder))
    assert _batches(cached, fingerprint) == expected  # cold
    _harm(folder, how, data)
    assert _batches(cached, fingerprint) == expected
    assert _batches(cached, fingerprint) == expected  # warm


PROGRAM = """
import hashlib, json, sys
from headrace.config import load_config
from headrace.pipeline import Mixture, open_stream
with open_stream(sys.argv[1], global_batch=8, columns=["label", "caption"]) as stream:
    for _ in range(6):
        batch = next(stream)
        columns = batch.columns
        print(json.dumps([batch.position.tolist(), batch.key, columns["label"].tolist(), columns["caption"]]))
"""


def test_processes_that_share_a_cold_cache_give_the_same_batches(mixture: Mixture, tmp_path: Path) -> None:
    sources = [
        {"name": s.name, "url": s.url, "weight": s.weight, "chunk_samples": s.chunk_samples} for s in mixture.sources
    ]
    config = {"lanes": 4, "image_size": 16, "sources": sources, "index_cache": str(tmp_path / "cache")}
    (tmp_path / "m.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.yaml")]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [program.communicate(timeout=400)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    assert outputs[0].count(b"\n") == 6
    assert outputs[0] == outputs[1] == outputs[2]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_broken_cache_folder_costs_the_cache_and_not_the_stream(
    mixture: Mixture,
    expected: list[tuple[object, ...]],
    fingerprint: Fingerprint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    broken = dataclasses.replace(mixture, index_cache=str(tmp_path / "file"))
    assert _batches(broken, fingerprint) == expected
    assert caplog.text.count("the index cache takes nothing") == 1


@pytest.mark.parametrize("value", ["", "s3://bucket/cache"])
def test_a_cache_that_is_no_local_folder_is_refused(mixture: Mixture, value: str) -> None:
    with pytest.raises(ValueError, match="index_cache must be auto, none or a local folder"):
        dataclasses.replace(mixture, index_cache=value)

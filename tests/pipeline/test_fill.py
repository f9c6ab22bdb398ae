"""The cache of indexes is filled ahead: the stream that comes then reads no index."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.fill import fill_index_cache
from headrace.shards.progress import Progress
from headrace.shards.ranges import RangeReader


def test_a_stream_over_a_filled_cache_reads_no_index(
    mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = dataclasses.replace(mixture, index_cache=str(tmp_path / "cache"), sources=mixture.sources[:1])
    seen: list[Progress] = []
    filled = fill_index_cache(cached, ["label"], on_progress=seen.append)
    assert (filled.num_indexes, filled.num_made) == (7, 7)
    assert filled.num_bytes == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.rows"))
    assert (seen[-1].done, seen[-1].total) == (7, 7)
    assert fill_index_cache(cached, ["label"]).num_made == 0
    monkeypatch.setattr("headrace.shards.dataset.Dataset.index_part", None)
    with open_stream(cached, global_batch=8, columns=["label"]) as stream:
        assert next(stream).columns["label"].tolist()


def test_a_column_that_no_index_has_is_refused(mixture: Mixture, tmp_path: Path) -> None:
    cached = dataclasses.replace(mixture, index_cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"source 'large': .*parquet has no column captoin; it has key, uid"):
        fill_index_cache(cached, ["label", "captoin"])


def test_a_mixture_without_a_cache_has_nothing_to_fill(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="index_cache is none"):
        fill_index_cache(mixture)


def test_a_fault_does_not_wait_for_reads_under_way(
    mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes, stalled = RangeReader.read_bytes, threading.Event()

    def read(reader: RangeReader, url: str) -> bytes:
        if url.endswith("/00000.parquet"):
            assert stalled.wait(200)
            raise OSError(f"{url} is away")
        if url.endswith("/00001.parquet"):
            stalled.set()
            assert reader.pause(400)  # it was told to give up
            raise OSError("the reader is closed")
        return read_bytes(reader, url)

    monkeypatch.setattr(RangeReader, "read_bytes", read)
    cached = dataclasses.replace(mixture, index_cache=str(tmp_path / "cache"), sources=mixture.sources[:1])
    begun = time.monotonic()
    with pytest.raises(OSError, match="is away"):
        fill_index_cache(cached, threads=2)
    assert time.monotonic() - begun < 300

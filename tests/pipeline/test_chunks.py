"""A stream over http is the local one, through every fault of the way; what no span can be costs one sample."""

import contextlib
import dataclasses
import http.server
import itertools
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace import files
from headrace.patience import Patience
from headrace.pipeline import Batch, Mixture, Source, open_stream
from headrace.pipeline.catalog import ShardRows
from headrace.pipeline.chunks import ChunkReader
from headrace.shards.dataset import open_dataset
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.members import MAX_IMAGE_BYTES
from headrace.shards.ranges import RangeReader
from headrace.shards.verify import verify_dataset

OpenServer = Callable[[str], Any]


def remote_mixture(mixture: Mixture, url: str) -> Mixture:
    """The large source of the mixture alone, read from `url`."""
    return dataclasses.replace(mixture, sources=(dataclasses.replace(mixture.sources[0], url=url),))


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (-1, 5, "the index says 5 bytes at -1; an image has 1 to 268435456 bytes"),
        (0, 0, "the index says 0 bytes at 0; "),
        (0, MAX_IMAGE_BYTES + 1, "the index says 268435457 bytes at 0; "),
        # As large as `headrace index` takes it: it is read, and only then found cut.
        (0, MAX_IMAGE_BYTES // 2 + 1, "the shard ends after 3 of 134217729 bytes"),
    ],
)
def test_a_span_that_cannot_be_is_a_damaged_sample(tmp_path: Path, offset: int, size: int, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(b"abc")
    (spans_at, sizes, ones) = (np.array([value], np.int64) for value in (offset, size, 1))
    rows = ShardRows(str(tmp_path / "0.tar"), pa.chunked_array([["k"]]), spans_at, sizes, -ones, ones, {})
    ranges = RangeReader(Patience())
    with contextlib.closing(ChunkReader((), ranges, io_threads=1, verify_crc=True)) as reader:
        (payload,) = reader._read_rows(rows, partial(ranges.read, rows.url))
    assert payload.fault is not None
    assert payload.fault.reason == "size"
    assert str(payload.fault).startswith(message)


def test_a_server_that_ignores_ranges_is_refused(datasets: tuple[str, str], mixture: Mixture) -> None:
    """`python -m http.server` answers 200 with the whole file."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=datasets[0]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with (
            open_stream(remote_mixture(mixture, url), global_batch=8) as stream,
            pytest.raises(OSError, match=r"\d\.tar: at byte \d+: the server ignores Range"),
        ):
            next(stream)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_stream_over_http_equals_the_local_one(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
) -> None:
    server = range_server(datasets[0])
    local = dataclasses.replace(mixture, sources=mixture.sources[:1])
    with (
        open_stream(local, global_batch=8) as one,
        open_stream(remote_mixture(mixture, server.url), global_batch=8) as two,
    ):
        server.faults[:] = ["503", "short", "reset", "redirect", "short"]
        for _ in range(10):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert two.num_retries == 4
        assert not two.bad_samples


def test_chunks_are_read_whole_and_only_once_an_epoch(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.pipeline.ahead.EASED_BATCHES", 0)  # the first batches read what they need first
    server = range_server(datasets[0])
    source = Source(name="large", url=server.url, chunk_samples=7, shuffle_window=0)
    chunked = dataclasses.replace(mixture, lanes=1, sources=(source,), prefetch_batches=1, io_threads=1)
    with open_stream(chunked, global_batch=9) as stream:
        list(itertools.islice(stream, 5))  # one epoch of 45
        tars = [entry for entry in server.ranges if entry[0].endswith(".tar")]
    dataset = open_dataset(datasets[0])
    # One request a chunk of 7 (= a shard here); how far reading ahead went into the next epochs is chance.
    assert len(set(tars[:7])) == 7
    first = dataset.index(0)
    span = first.column("offset")[6].as_py() + first.column("size")[6].as_py() - first.column("offset")[0].as_py()
    assert any(end - start + 1 == span for _, start, end in tars)


@pytest.mark.full
def test_a_stream_through_many_faults_loses_nothing(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
) -> None:
    server = range_server(datasets[0])
    patient = dataclasses.replace(remote_mixture(mixture, server.url), read_timeout_seconds=0.3, read_retries=12)
    with (
        open_stream(dataclasses.replace(mixture, sources=mixture.sources[:1]), global_batch=8) as one,
        open_stream(patient, global_batch=8) as two,
    ):
        server.faults[:] = ["503", "stall", "short", "reset", "", "stall", "503"] * 3
        for _ in range(40):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert two.num_retries >= 12


def test_an_index_has_the_streams_patience(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer
) -> None:
    server = range_server(datasets[0])
    server.faulty = ".parquet"
    server.faults[:] = ["503", "reset", "short", "503"]  # of the manifest, then of indexes
    with open_stream(remote_mixture(mixture, server.url), global_batch=8) as stream:
        next(stream)
    assert not server.faults


def test_an_index_that_a_server_does_not_give_is_not_called_missing(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer
) -> None:
    server = range_server(datasets[0])
    server.faulty = ".parquet"
    server.faults[:] = ["503"] * 100
    hasty = dataclasses.replace(remote_mixture(mixture, server.url), read_retries=1)
    with pytest.raises(OSError, match=r"shards.parquet: the server answered 503 .*; tried 2 times"):
        open_stream(hasty, global_batch=8)


def test_closing_does_not_wait_for_an_index_that_stalls(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer
) -> None:
    server = range_server(datasets[0])
    patient = dataclasses.replace(remote_mixture(mixture, server.url), read_timeout_seconds=200.0)
    stream = open_stream(patient, global_batch=8)
    server.faulty = ".parquet"
    server.faults[:] = ["stall"] * 100

    refused: list[str] = []

    def take() -> None:
        try:
            next(stream)
        except (OSError, ValueError) as error:
            refused.append(str(error))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    while len(server.faults) == 100:
        time.sleep(0.01)
    stream.close()
    thread.join(50)  # the server would have stalled on for sixty seconds, and the reader waited for longer
    assert not thread.is_alive()
    assert len(refused) == 1
    assert "closed" in refused[0]


def test_shards_of_any_name_are_indexed_verified_and_streamed_over_http(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer, tmp_path: Path
) -> None:
    names = ["a b.tar", "c#d.tar", "e?f.tar", "g%20h.tar", "u\u00fc\u4e2d.tar"]
    folder = tmp_path / "odd names"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(Path(open_dataset(datasets[0]).tar_url(number)).read_bytes())
    url = f"{range_server(str(tmp_path)).url}/odd%20names"
    index = str(tmp_path / "index")
    summary = index_folder(url, names, IndexConfig(index_dir=index))
    assert summary.num_shards == len(names)
    assert list(verify_dataset(url, index_dir=index)) == []
    source = Source(name="odd", url=url, index_dir=index)
    once = dataclasses.replace(mixture, sources=(source,))
    with open_stream(once, global_batch=8, once=True) as stream:
        assert sum(int(batch.valid.sum()) for batch in stream) == summary.num_samples


def test_time_is_what_a_read_has_unless_tries_are_counted(mixture: Mixture) -> None:
    assert dataclasses.replace(mixture, read_retries=None).patience == Patience(
        timeout_seconds=mixture.read_timeout_seconds, retries=0, seconds=mixture.read_patience_seconds
    )
    counted = dataclasses.replace(mixture, read_retries=7, read_timeout_seconds=2.0)
    assert counted.patience == Patience(timeout_seconds=2.0, retries=7, seconds=0.0)


@pytest.mark.parametrize("faulty", [".tar", "1.parquet", "shards.parquet", "dataset.json"])
def test_zeros_that_a_proxy_sends_once_cost_nothing(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
    faulty: str,
) -> None:
    server = range_server(datasets[0])
    server.faulty = faulty
    local = dataclasses.replace(mixture, sources=mixture.sources[:1])
    server.faults[:] = ["zeros"] * (2 if faulty == ".tar" else 1)
    with (
        open_stream(local, global_batch=8) as one,
        open_stream(remote_mixture(mixture, server.url), global_batch=8) as two,
    ):
        for _ in range(12):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert not two.bad_samples
    assert not server.faults


def test_what_lies_damaged_is_judged_after_a_second_look_that_equals_the_first(
    mixture: Mixture, range_server: OpenServer, write_dataset: Callable[..., str], tmp_path: Path
) -> None:
    url = write_dataset(tmp_path / "data", 16)
    tar = Path(open_dataset(url).tar_url(0))
    index = open_dataset(url).index(0)
    offset, size = index["offset"][2].as_py(), index["size"][2].as_py()
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    server = range_server(url)
    once = dataclasses.replace(remote_mixture(mixture, server.url), max_bad_fraction=0.5)
    with open_stream(once, global_batch=8, once=True) as stream:
        invalid = [key for batch in stream for key, valid in zip(batch.key, batch.valid, strict=True) if not valid]
        assert stream.bad_samples == {"crc": 1}
    assert len(invalid) == 1
    assert sum(entry == ("/shards/00000.tar", offset, offset + size - 1) for entry in server.ranges) == 1


def test_what_was_read_once_comes_from_the_cache(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
    tmp_path: Path,
) -> None:
    server = range_server(datasets[0])
    cached = dataclasses.replace(
        remote_mixture(mixture, server.url), cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 24
    )
    local = dataclasses.replace(mixture, sources=mixture.sources[:1])
    counts = []
    with open_stream(local, global_batch=8) as one:
        expected = [fingerprint(next(one)) for _ in range(12)]
    for _ in range(2):
        server.faults[:] = ["zeros"]  # in the cache, too, until they are read again
        with open_stream(cached, global_batch=8) as two:
            assert [fingerprint(next(two)) for _ in range(12)] == expected
            assert not two.bad_samples
            assert two.num_cached_bytes
        counts.append(sum(entry[0].endswith(".tar") for entry in server.ranges))
        server.faults.clear()
        server.ranges.clear()
    assert counts[0] >= 7
    assert counts[1] == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"cache_dir": "s3://bucket/cache"}, "must be a local folder"), ({"cache_bytes": 1000}, "at least 1048576")],
)
def test_a_cache_that_makes_no_sense_is_refused(mixture: Mixture, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(mixture, **changes)


def _num_tar_reads(server: Any) -> int:
    return sum(entry[0].endswith(".tar") for entry in server.ranges)


def test_a_shard_that_stalls_is_named_while_other_chunks_are_read(
    datasets: tuple[str, str], mixture: Mixture, range_server: OpenServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = range_server(datasets[0])
    slow = dataclasses.replace(remote_mixture(mixture, server.url), slow_read_seconds=0.2, read_timeout_seconds=200.0)
    with open_stream(slow, global_batch=8) as stream:
        next(stream)  # until then only what it needs is read
        server.ranges.clear()
        server.faults[:] = ["stall"]

        def take() -> None:
            with contextlib.suppress(ValueError):
                while True:
                    next(stream)

        thread = threading.Thread(target=take, daemon=True)
        with caplog.at_level("WARNING"):
            thread.start()
            deadline = time.monotonic() + 50  # the server ends the stalled one after sixty seconds
            while time.monotonic() < deadline and ("at byte" not in caplog.text or _num_tar_reads(server) < 9):
                time.sleep(0.05)
        assert "/shards/0000" in caplog.text
        assert "other chunks are read meanwhile" in caplog.text
        assert _num_tar_reads(server) >= 9
        stream.close()
        thread.join(100)
        assert not thread.is_alive()


def test_a_hedged_read_does_not_wait_for_a_server_that_stalls(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
) -> None:
    server = range_server(datasets[0])
    hedged = dataclasses.replace(remote_mixture(mixture, server.url), hedge_reads="on", read_timeout_seconds=200.0)
    with (
        open_stream(dataclasses.replace(mixture, sources=mixture.sources[:1]), global_batch=8) as one,
        open_stream(hedged, global_batch=8) as two,
    ):
        for _ in range(40):  # enough to know how long reads take
            assert fingerprint(next(one)) == fingerprint(next(two))
        server.faults[:] = ["stall"]
        begun = time.monotonic()
        for _ in range(20):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert not server.faults
        assert time.monotonic() - begun < 50  # the reader alone would have waited for sixty seconds
        assert two._reading is not None
        assert two._reading.ranges.num_hedged


@pytest.mark.parametrize("changes", [{"verify_crc": False}, {"verify_crc": False, "cache_bytes": 1 << 24}])
def test_zeros_without_a_checksum_are_read_again_when_they_do_not_decode(
    datasets: tuple[str, str],
    mixture: Mixture,
    range_server: OpenServer,
    fingerprint: Callable[[Batch], object],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    server = range_server(datasets[0])
    if "cache_bytes" in changes:
        changes = {**changes, "cache_dir": str(tmp_path)}
    unchecked = dataclasses.replace(remote_mixture(mixture, server.url), **changes)
    server.faults[:] = ["zeros"]
    with (
        open_stream(dataclasses.replace(mixture, sources=mixture.sources[:1]), global_batch=8) as one,
        open_stream(unchecked, global_batch=8) as two,
    ):
        for _ in range(12):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert not two.bad_samples
    assert not server.faults


def test_closing_does_not_wait_for_a_file_system_that_hangs(
    mixture: Mixture,
    write_dataset: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = write_dataset(tmp_path / "data", 16)
    source = dataclasses.replace(mixture.sources[0], url=url)
    stream = open_stream(dataclasses.replace(mixture, sources=(source,)), global_batch=8)
    for number in range(3):  # a pipe that nobody writes: like a file server that is gone, opening it does not return
        tar = Path(open_dataset(url).tar_url(number))
        tar.unlink()
        os.mkfifo(tar)
    read_range, reads = files.read_range, threading.Event()

    def reading(*given: Any, **how: Any) -> bytes:
        reads.set()
        return read_range(*given, **how)

    monkeypatch.setattr(files, "read_range", reading)

    def take() -> None:
        with contextlib.suppress(ValueError):
            next(stream)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert reads.wait(100)
    with caplog.at_level("WARNING"):
        stream.close()  # or this test would never end
    assert "it is left behind" in caplog.text
    thread.join(100)
    assert not thread.is_alive()
    for number in range(3):  # lets them go
        for _ in range(4):
            with contextlib.suppress(OSError):
                os.close(os.open(open_dataset(url).tar_url(number), os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.05)

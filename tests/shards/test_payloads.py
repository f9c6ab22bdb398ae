"""Reading by ranges: the right bytes in the order asked for, few requests, short answers seen."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.payloads import coalesce, read_payloads, read_sample
from headrace.shards.write import Sample

spans_strategy = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 99)), max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=spans_strategy)
def test_payloads_come_in_the_order_asked_for(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    data = bytes(range(256)) * 4
    path = tmp_path / "file"
    path.write_bytes(data)
    assert read_payloads(str(path), spans) == [data[offset : offset + size] for offset, size in spans]


@given(spans=spans_strategy, gap=st.integers(0, 100), limit=st.integers(100, 400))
def test_requests_cover_every_span_once_and_stay_small(spans: list[tuple[int, int]], gap: int, limit: int) -> None:
    groups = coalesce(spans, gap, limit)
    assert sorted(number for group in groups for number in group) == list(range(len(spans)))
    for group in groups:
        start, end = spans[group[0]][0], max(spans[n][0] + spans[n][1] for n in group)
        assert min(spans[n][0] for n in group) == start
        assert end - start <= limit


def test_a_negative_span_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        read_payloads(str(tmp_path), [(-1, 5)])


@pytest.mark.parametrize("remote", [False, True])
def test_a_short_read_names_shard_and_offset(tmp_path: Path, remote: bool) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    url = str(tmp_path / "file")
    if remote:
        import fsspec

        url = f"memory://{url}"
        with fsspec.open(url, "wb") as file:
            file.write(b"x" * 100)
    with pytest.raises(ShardError, match=r"file: at byte 90: asked for 20 bytes, got 10: the shard is truncated"):
        read_payloads(url, [(0, 10), (90, 20)])


@pytest.mark.usefixtures("dataset_url")
def test_samples_over_http_by_range(folder_server: Any, samples: list[Sample]) -> None:
    dataset = open_dataset(f"{folder_server.url}/dataset")
    assert [read_sample(dataset, n // 5, n % 5) for n in range(10)] == [sample.image for sample in samples]
    tar_reads = [request for request in folder_server.requests if "GET" in request and ".tar" in request]
    assert len(tar_reads) == 10
    assert all("bytes=" in request for request in tar_reads)


def test_neighbours_share_a_request(dataset_url: str, folder_server: Any) -> None:
    dataset = open_dataset(dataset_url)
    spans = [(row["offset"], row["size"]) for row in dataset.index(0).to_pylist()]
    url = f"{folder_server.url}/dataset/shards/00000.tar"
    assert read_payloads(url, spans[::-1]) == read_payloads(dataset.tar_url(0), spans[::-1])
    assert len([request for request in folder_server.requests if "GET" in request]) == 1


@pytest.mark.usefixtures("dataset_url")
def test_a_server_that_ignores_ranges_is_found_out(folder_server: Any) -> None:
    folder_server.ignore_ranges = True
    dataset = open_dataset(f"{folder_server.url}/dataset")
    with pytest.raises(ShardError, match="its server ignores ranges"):
        read_sample(dataset, 0, 0)


def test_a_flipped_bit_names_the_sample(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    row = dataset.index(0).to_pylist()[2]
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[row["offset"] + 30] ^= 1
    tar.write_bytes(data)
    read_sample(dataset, 0, 1)
    with pytest.raises(ShardError, match=rf"00000.tar: sample '00002' at byte {row['offset']}: crc32 is 0x"):
        read_sample(dataset, 0, 2)


def test_a_row_that_is_not_there_is_said(dataset_url: str) -> None:
    with pytest.raises(ValueError, match="row 5 of 5"):
        read_sample(open_dataset(dataset_url), 0, 5)

"""Verify: each damaged sample by shard, key and offset, and nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.images.header import read_header
from headrace.shards.index import write_index
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig
from headrace.shards.verify import Damage, verify_dataset
from headrace.shards.write import Sample, finish_dataset, write_shard


def _rows(url: str) -> list[dict[str, object]]:
    return list(open_dataset(url).index(0).to_pylist())


def _damage(url: str, change: Callable[[bytearray], object]) -> list[str]:
    """Change the first tar and return what verify says, without the line about its sha256."""
    tar = Path(open_dataset(url).tar_url(0))
    data = bytearray(tar.read_bytes())
    change(data)
    tar.write_bytes(data)
    lines = [str(damage) for damage in verify_dataset(url, decode=True)]
    assert any("sha256 of the tar" in line or "the tar has" in line for line in lines)
    return [line for line in lines if "sha256 of the tar" not in line and "the tar has" not in line]


def test_a_whole_dataset_has_no_damage(dataset_url: str) -> None:
    assert list(verify_dataset(dataset_url, decode=True)) == []


def test_a_flipped_bit_of_an_image(dataset_url: str) -> None:
    row = _rows(dataset_url)[2]
    offset = int(str(row["offset"]))

    def flip(data: bytearray) -> None:
        data[offset + int(str(row["size"])) // 2] ^= 4

    (line,) = _damage(dataset_url, flip)
    assert line.startswith(f"00000 sample '00002' at byte {offset}: crc32 is 0x")


def test_a_flipped_letter_of_a_caption(dataset_url: str) -> None:
    def flip(data: bytearray) -> None:
        data[data.index(b"number 3", data.index(b"00003.txt"))] ^= 1

    (line,) = _damage(dataset_url, flip)
    assert "sample '00003'" in line
    assert "caption in the tar is not the index's" in line


def test_a_flipped_header_names_the_header_and_the_samples_behind_it(dataset_url: str) -> None:
    rows = _rows(dataset_url)

    def flip(data: bytearray) -> None:
        data[int(str(rows[3]["offset"])) - 512] ^= 1

    lines = _damage(dataset_url, flip)
    assert "damaged tar header: checksum" in lines[0]
    assert [line.split("'")[1] for line in lines[1:]] == ["00003", "00004"]
    assert all("its bytes are whole" in line for line in lines[1:])


def test_a_cut_tar_names_the_samples_that_are_lost(dataset_url: str) -> None:
    rows = _rows(dataset_url)

    def cut(data: bytearray) -> None:
        del data[int(str(rows[3]["offset"])) + 10 :]

    lines = _damage(dataset_url, cut)
    assert "truncated" in lines[0]
    assert [line.split("'")[1] for line in lines[1:]] == ["00003", "00004"]


def test_missing_files(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    Path(dataset.tar_url(0)).unlink()
    Path(dataset.index_url(1)).unlink()
    lines = [str(damage) for damage in verify_dataset(dataset_url)]
    assert lines == [f"00000: missing shard {dataset.tar_url(0)}", f"00001: missing index {dataset.index_url(1)}"]


def test_a_changed_index(dataset_url: str) -> None:
    path = Path(open_dataset(dataset_url).index_url(0))
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR2"))
    lines = [str(damage) for damage in verify_dataset(dataset_url)]
    assert any("sha256 of the index is" in line for line in lines)
    assert any("not a parquet file" in line for line in lines)


def test_another_shard_in_its_place(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    Path(dataset.tar_url(0)).write_bytes(Path(dataset.tar_url(1)).read_bytes())
    damages = list(verify_dataset(dataset_url))
    assert {damage.key for damage in damages if damage.key} == {f"{number:05d}" for number in range(5)}
    assert any("sha256 of the tar" in damage.message or "the tar has" in damage.message for damage in damages)


def test_decode_finds_what_the_header_hides(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    data = bytearray(encode_image("png", (32, 32)))
    start = data.index(b"IDAT") + 8
    data[start : start + 20] = bytes(20)
    read_header(bytes(data))
    url = str(tmp_path / "d")
    write_shard(url, "s", [Sample("bad", bytes(data), "png"), Sample("good", encode_image(), "jpg")])
    finish_dataset(url, recipe_digest="r")
    assert list(verify_dataset(url)) == []
    (damage,) = verify_dataset(url, decode=True)
    assert (damage.shard, damage.key) == ("s", "bad")
    assert "png" in damage.message


def test_an_index_that_claims_another_size_or_place(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    rows = dataset.index(0).to_pylist()
    rows[0]["size"] += 1
    rows[1]["offset"] += 512
    rows[2]["width"] += 1
    rows[3]["key"] = "other"
    rows[4]["offset"], rows[4]["size"] = 1 << 60, 1 << 60
    write_index(dataset.index_url(0), pa.Table.from_pylist(rows, schema=dataset.index(0).schema))
    lines = "\n".join(str(damage) for damage in verify_dataset(dataset_url))
    for expected in (
        r"'00000' at byte \d+: size in the tar is \d+, the index says",
        r"'00001' at byte \d+: crc32",
        r"'00002' at byte \d+: the image is 22 x 16, the index says 23 x 16",
        r"'other' at byte \d+: the tar names it '00003'",
        r"'00004' at byte 1152921504606846976: 1152921504606846976 bytes expected",
    ):
        assert re.search(expected, lines), expected


@pytest.mark.parametrize("column", ["key", "offset", "size"])
def test_a_row_without_a_place_is_named_and_the_others_are_checked(dataset_url: str, column: str) -> None:
    dataset = open_dataset(dataset_url)
    rows = dataset.index(0).to_pylist()
    rows[2][column] = None
    write_index(dataset.index_url(0), pa.Table.from_pylist(rows, schema=dataset.index(0).schema))
    lines = [str(damage) for damage in verify_dataset(dataset_url)]
    assert "00000: 1 rows of the index have no key, offset or size" in lines
    assert not any("sample" in line for line in lines)


def test_commit_records_are_compared_with_the_manifest(dataset_url: str) -> None:
    def change(name: str, **fields: object) -> None:
        path = Path(dataset_url, "commits", f"{name}.json")
        record = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**record, **fields}))

    change("00000", num_samples=6)
    change("00001", sha256="x")
    change("00002", num_samples=3, num_bytes=1, index_sha256="x")
    change("00003")
    assert [str(damage) for damage in verify_dataset(dataset_url)] == [
        "00000: num_samples is 6 in its commit record, 5 in the manifest",
        f"00001: sha256 is 'x' in its commit record, '{open_dataset(dataset_url).shards[1].sha256}' in the manifest",
        "00002: a shard of 3 samples is committed, yet the manifest does not name it",
        f"00003: {dataset_url}/commits/00003.json: damaged commit record: num_samples must be a whole number, "
        "got no such field",
    ]
    for name in ("00002", "00003"):
        Path(dataset_url, "commits", f"{name}.json").unlink()
    Path(dataset_url, "commits", "00001.json").unlink()
    assert "00001: the manifest names this shard, yet it has no commit record" in map(str, verify_dataset(dataset_url))
    Path(dataset_url, "commits", "00000.json").unlink()
    assert list(verify_dataset(dataset_url)) == []  # a dataset copied without its records


def test_what_a_terminal_would_obey_does_not_reach_it() -> None:
    damage = Damage("a\x1b[31m\u202e.tar", "k\x1b", 5, "bad\nline")
    assert str(damage).isprintable()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(dataset_url: str, place: float, bit: int) -> None:
    dataset: Dataset = open_dataset(dataset_url)
    tar = Path(dataset.tar_url(0))
    whole = tar.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    try:
        tar.write_bytes(data)
        assert list(verify_dataset(dataset_url))
    finally:
        tar.write_bytes(whole)


@pytest.mark.usefixtures("dataset_url")
@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_over_http(folder_server: Any, ignore_ranges: bool) -> None:
    # A window holds these small shards whole, so a server without ranges is no obstacle here.
    folder_server.ignore_ranges = ignore_ranges
    assert list(verify_dataset(f"{folder_server.url}/dataset")) == []


def test_samples_and_bytes_are_counted_and_damage_is_told_in_the_order_of_the_manifest(dataset_url: str) -> None:
    seen: list[Progress] = []
    told: list[Damage] = []
    dataset = open_dataset(dataset_url)
    for entry in dataset.shards:
        tar = Path(dataset_url) / "shards" / f"{entry.name}.tar"
        data = bytearray(tar.read_bytes())
        data[600] ^= 1
        tar.write_bytes(data)
    engine = EngineConfig(workers=2)
    found = verify_dataset(dataset_url, engine=engine, on_progress=seen.append, on_damage=told.append)
    assert found == told == verify_dataset(dataset_url)
    assert [damage.shard for damage in found] == sorted(damage.shard for damage in found)
    assert {damage.shard for damage in found} == {entry.name for entry in dataset.shards}
    num_bytes = sum(entry.num_bytes for entry in dataset.shards)
    assert seen[-1].counts["samples"] == dataset.num_samples
    assert seen[-1].expected == {"bytes": num_bytes}
    assert 0 < seen[-1].counts["bytes"] <= num_bytes

"""Tars without an index are opened as they are; the second opening reads none of them, and a changed one is noticed."""

import dataclasses
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.pipeline import Augment, Mixture, Source, open_stream
from headrace.shards.errors import ShardError
from headrace.shards.foreign import unindexed
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.foreign.unindexed import open_tars
from headrace.shards.write import Sample, write_shard


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write_tar(tmp_path: Path, encode_image: Callable[..., bytes]) -> Callable[[str, int], Path]:
    """`write_tar(name, first)`: a tar of four samples with labels, no index."""

    def write(name: str, first: int) -> Path:
        samples = [
            Sample(f"k{number:03d}", encode_image(size=(20, 16), seed=number), "jpg", {"label": number})
            for number in range(first, first + 4)
        ]
        write_shard(str(tmp_path / f"made{first}"), name, samples)
        (tmp_path / "tars").mkdir(exist_ok=True)
        made = tmp_path / f"made{first}" / "shards" / f"{name}.tar"
        return Path(shutil.copy(made, tmp_path / "tars" / f"{name}.tar"))

    return write


@pytest.fixture
def tars(write_tar: Callable[[str, int], Path]) -> Path:
    for number in range(3):
        write_tar(f"00{number}", 10 * number)
    return write_tar("003", 30).parent


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was indexed, by call."""
    calls: list[list[str]] = []

    def index(folder: str, names: list[str], config: IndexConfig) -> object:
        calls.append(list(names))
        return index_folder(folder, names, config)

    monkeypatch.setattr(unindexed, "index_folder", index)
    return calls


@pytest.mark.parametrize(
    ("pattern", "count"), [("*.tar", 16), ("{000..002}.tar", 12), ("003.tar", 4), ("00[12].tar", 8)]
)
def test_a_tar_a_glob_and_a_brace_pattern_stream_without_an_index(tars: Path, pattern: str, count: int) -> None:
    before = sorted(os.listdir(tars))
    mixture = Mixture(sources=(Source(name="a", url=f"{tars}/{pattern}"),), lanes=1, image_size=8, augment=Augment())
    with open_stream(mixture, global_batch=4, columns=["label"], once=True) as stream:
        rows = [
            (key, int(label)) for batch in stream for key, label in zip(batch.key, batch.columns["label"], strict=True)
        ]
    assert len(rows) == count
    assert all(key == f"k{label:03d}" for key, label in rows)
    assert sorted(os.listdir(tars)) == before  # nothing is written beside the tars


def test_the_second_opening_indexes_nothing_and_the_same_order_comes(tars: Path, indexed: list[list[str]]) -> None:
    first = open_tars(f"{tars}/*.tar")
    second = open_tars(f"{tars}/*.tar")
    assert len(indexed) == 1
    assert list(first.shards) == list(second.shards)
    mixture = Mixture(sources=(Source(name="a", url=f"{tars}/*.tar"),), lanes=1, image_size=8)
    with open_stream(mixture, global_batch=4) as stream:
        next(stream)
        state = stream.state_dict()
        expected = next(stream).key
    with open_stream(mixture, global_batch=4) as stream:
        stream.load_state_dict(state)
        assert next(stream).key == expected


def test_a_changed_tar_is_noticed_though_it_has_its_size(
    tars: Path, write_tar: Callable[[str, int], Path], indexed: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    before = open_tars(f"{tars}/*.tar")
    size = (tars / "001.tar").stat().st_size
    write_tar("001", 50)
    assert (tars / "001.tar").stat().st_size == size
    os.utime(tars / "001.tar", (time.time() + 5, time.time() + 5))
    with caplog.at_level(logging.WARNING):
        after = open_tars(f"{tars}/*.tar")
    assert "001.tar has changed since it was indexed" in caplog.text
    assert len(indexed) == 2
    assert after.index(1).column("key").to_pylist() == ["k050", "k051", "k052", "k053"]
    assert after.shards[0] == before.shards[0]


def test_a_tar_behind_a_link_is_noticed_too(
    tars: Path, write_tar: Callable[[str, int], Path], tmp_path: Path, indexed: list[list[str]]
) -> None:
    (tmp_path / "links").mkdir()
    for tar in tars.iterdir():
        (tmp_path / "links" / tar.name).symlink_to(tar)
    url = f"{tmp_path}/links/*.tar"
    assert open_tars(url).index(1).column("key")[0].as_py() == "k010"
    write_tar("001", 50)
    os.utime(tars / "001.tar", (time.time() + 5, time.time() + 5))
    assert open_tars(url).index(1).column("key")[0].as_py() == "k050"
    assert len(indexed) == 2


def test_a_tar_more_is_one_more_shard(tars: Path, write_tar: Callable[[str, int], Path]) -> None:
    assert open_tars(f"{tars}/*.tar").num_samples == 16
    write_tar("004", 40)
    assert open_tars(f"{tars}/*.tar").num_samples == 20
    (tars / "000.tar").unlink()
    assert open_tars(f"{tars}/*.tar").num_samples == 16


def test_a_tar_without_a_sum_is_told_from_what_it_was_by_its_stamp(tars: Path) -> None:
    """Or blocks of the old one, kept in `cache_dir`, would be given for those of the new one."""
    before = open_tars(f"{tars}/*.tar", fast=True)
    os.utime(tars / "001.tar", (time.time() + 5, time.time() + 5))
    after = open_tars(f"{tars}/*.tar", fast=True)
    assert [after.version(shard) == before.version(shard) for shard in range(4)] == [True, False, True, True]
    full = open_tars(f"{tars}/*.tar")
    assert full.version(1) == full.shards[1].sha256


def test_a_user_without_a_home_is_told_what_to_name(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match="who has no home; set HOME, or name a folder as the source's index_dir"):
        open_tars(f"{tars}/*.tar")


def test_two_lots_of_tars_do_not_keep_their_indexes_in_one_folder() -> None:
    one = Source(name="a", url="/x/*.tar", index_dir="/i")
    Mixture(sources=(one, dataclasses.replace(one, name="b")))
    with pytest.raises(ValueError, match="'a' and 'b' keep the index of different tars in one index_dir, /i: give"):
        Mixture(sources=(one, dataclasses.replace(one, name="b", url="/y/*.tar")))


def test_headers_alone_are_enough_until_a_column_is_asked_for(tars: Path) -> None:
    fast = open_tars(f"{tars}/*.tar", fast=True)
    assert fast.num_samples == 16
    with pytest.raises(ValueError, match="label"):
        fast.require_columns(["label"])
    full = open_tars(f"{tars}/*.tar")
    full.require_columns(["label"])
    assert open_tars(f"{tars}/*.tar", fast=True).not_held == ()  # what is there is used


def test_what_headrace_index_made_elsewhere_is_taken(tars: Path, tmp_path: Path, indexed: list[list[str]]) -> None:
    base = str(tmp_path / "index")
    index_folder(str(tars), sorted(os.listdir(tars)), IndexConfig(index_dir=base))
    times = {path: path.stat().st_mtime_ns for path in Path(base, "index").glob("*.parquet")}
    assert open_tars(f"{tars}/*.tar", index_dir=base).num_samples == 16
    assert {path: path.stat().st_mtime_ns for path in Path(base, "index").glob("*.parquet")} == times
    assert len(indexed) == 1  # which looked at the records and kept them


def test_damaged_stamps_cost_an_index_and_no_more(tars: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "index")
    first = open_tars(f"{tars}/*.tar", index_dir=base)
    for rubbish in (b"", b"[]", b'{"version": 1, "stamps": 7}'):
        (tmp_path / "index" / "stamps.json").write_bytes(rubbish)
        assert list(open_tars(f"{tars}/*.tar", index_dir=base).shards) == list(first.shards)


def _open_and_count(url: str, counts: "multiprocessing.Queue[int]") -> None:
    counts.put(open_tars(url).num_samples)


def test_ranks_that_open_at_once_wait_for_the_first(tars: Path) -> None:
    context = multiprocessing.get_context("spawn")
    counts: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_open_and_count, args=(f"{tars}/*.tar", counts)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [counts.get(timeout=120) for _ in processes] == [16, 16, 16]
    for process in processes:
        process.join()


def test_a_damaged_or_missing_tar_is_one_line(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.*: no .tar there"):
        open_tars(f"{tmp_path}/none/*.tar")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    compressed = Mixture(sources=(Source(name="a", url=f"{tmp_path}/*.tar.gz"),))
    with pytest.raises(ValueError, match="a shard must be a plain"):
        open_stream(compressed, global_batch=16)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be kept there \(Not a directory\); name another folder"):
        open_tars(f"{tars}/*.tar", index_dir=f"{tmp_path}/file/index")
    with pytest.raises(ValueError, match="are not there"):
        open_tars(f"{tars}/{{000..009}}.tar")
    shutil.copytree(tars, tmp_path / "b" / "tars")
    shutil.copytree(tars, tmp_path / "a" / "tars")
    with pytest.raises(ValueError, match="names tars in 2 folders"):
        open_tars(f"{tmp_path}/{{a,b}}/tars/*.tar")
    data = (tars / "002.tar").read_bytes()
    (tars / "002.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=r"002.tar: .*truncated"):
        open_tars(f"{tars}/*.tar")

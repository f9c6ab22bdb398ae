"""The folder of index rows: bounded, without locks, and whatever lies in it, no row is wrong."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.shards import index_cache
from headrace.shards.index_cache import IndexCache, cache_folder
from headrace.shards.index_rows import encode_rows


def digest_of(number: int) -> str:
    return f"{number:064x}"


def data_of(number: int, num_rows: int = 50) -> bytes:
    return encode_rows(pa.table({"key": [f"{number}-{row}" for row in range(num_rows)]}), digest_of(number), ["key"])


def keys_of(cache: IndexCache, number: int) -> list[str] | None:
    rows = cache.get(digest_of(number))
    return None if rows is None else rows.take(np.arange(rows.num_rows))["key"].to_pylist()


def test_what_was_put_is_got_by_any_process(tmp_path: Path) -> None:
    assert keys_of(IndexCache(tmp_path, max_bytes=1 << 20), 1) is None
    put = IndexCache(tmp_path, max_bytes=1 << 20).put(digest_of(1), data_of(1))
    assert put is not None
    assert put.held_bytes < 3000
    assert keys_of(IndexCache(tmp_path, max_bytes=1 << 20), 1) == [f"1-{row}" for row in range(50)]


@pytest.mark.parametrize("content", [b"", b"not ours at all", data_of(2), data_of(1)[:-1000], data_of(1)[:100]])
def test_a_damaged_or_foreign_file_is_not_there(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    cache.put(digest_of(1), data_of(1))
    cache.path(digest_of(1)).write_bytes(content)
    try:
        found = keys_of(cache, 1)
    except ValueError:  # a block: whoever took the rows says so
        return
    assert found is None
    assert "is damaged and is made again" in caplog.text


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    for number in range(12):
        cache.put(digest_of(number), data_of(number))
        os.utime(cache.path(digest_of(number)), (number, number))
    keys_of(cache, 0)  # used now
    leftover = cache.path(digest_of(3)).with_name(f".{digest_of(3)}.rows.{1:032x}.tmp")
    leftover.write_bytes(b"half")
    os.utime(leftover, (1, 1))
    fresh = leftover.with_name(f".{digest_of(3)}.rows.{2:032x}.tmp")
    fresh.write_bytes(b"half")
    (tmp_path / "work").mkdir()
    others = [tmp_path / "README", tmp_path / "work" / "draft.tmp", tmp_path / "work" / "notes.rows"]
    for foreign in others:
        foreign.write_bytes(bytes(1 << 20))
        os.utime(foreign, (1, 1))
    with caplog.at_level(logging.INFO, "headrace"):
        IndexCache(tmp_path, max_bytes=10 * len(data_of(11))).trim()
    kept = [number for number in range(12) if cache.path(digest_of(number)).exists()]
    assert kept == [0, *range(4, 12)]
    assert "3 files that were not used for longest removed" in caplog.text
    assert [path.exists() for path in (leftover, fresh, *others)] == [False, True, True, True, True]


def test_what_may_not_be_removed_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, unlink = IndexCache(tmp_path, max_bytes=1 << 20), os.unlink
    for number in range(12):
        cache.put(digest_of(number), data_of(number))
        os.utime(cache.path(digest_of(number)), (number, number))

    def refuse(path: str) -> None:
        if path == str(cache.path(digest_of(0))):
            raise PermissionError(path)
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        IndexCache(tmp_path, max_bytes=10 * len(data_of(11))).trim()
    assert [number for number in range(12) if cache.path(digest_of(number)).exists()] == [0, *range(4, 12)]


def test_another_user_may_read_what_one_has_kept(tmp_path: Path) -> None:
    cache, before = IndexCache(tmp_path, max_bytes=1 << 20), os.umask(0o022)
    try:
        cache.put(digest_of(1), data_of(1))
    finally:
        os.umask(before)
    assert cache.path(digest_of(1)).stat().st_mode & 0o777 == 0o644


def test_a_file_that_another_process_removes_at_once_does_not_end_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError("made room")

    cache = IndexCache(tmp_path, max_bytes=1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "rows_of_file", gone)
        assert cache.put(digest_of(1), data_of(1)) is None
    assert cache.put(digest_of(2), data_of(2)) is not None
    assert not caplog.records


def test_no_number_of_short_runs_grows_beyond_the_bound(tmp_path: Path) -> None:
    size = len(data_of(0))
    for run in range(40):
        cache = IndexCache(tmp_path, max_bytes=20 * size)
        for number in range(5):
            cache.put(digest_of(run * 5 + number), data_of(run * 5 + number))
    total = sum(path.stat().st_size for path in tmp_path.rglob("*.rows"))
    assert total <= 21 * size


def test_a_folder_that_takes_nothing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = IndexCache(tmp_path / "file", max_bytes=1 << 20)
    assert cache.put(digest_of(1), data_of(1)) is None
    assert cache.put(digest_of(2), data_of(2)) is None
    assert caplog.text.count("the index cache takes nothing") == 1
    assert keys_of(cache, 1) is None


KILLED = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from test_index_cache import IndexCache, data_of, digest_of
cache = IndexCache(pathlib.Path(sys.argv[1]), max_bytes=1 << 24)
print("begun", flush=True)
number = 0
while True:
    number += 1
    cache.put(digest_of(number % 5), data_of(number % 5, 2000))
"""


def test_a_writer_that_is_killed_leaves_whole_files_and_no_lock(tmp_path: Path) -> None:
    for _ in range(3):
        program = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE
        )
        assert program.stdout is not None
        program.stdout.readline()
        time.sleep(0.05)
        program.kill()
        program.wait()
        program.stdout.close()
    cache = IndexCache(tmp_path, max_bytes=1 << 24)
    for number in range(5):
        assert keys_of(cache, number) in (None, [f"{number}-{row}" for row in range(2000)])
    assert all(path.suffix in (".rows", ".tmp") for path in tmp_path.rglob("*") if path.is_file())


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / "headrace" / "indexes"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("auto") == tmp_path / "home" / ".cache" / "headrace" / "indexes"
    assert cache_folder("none") is None
    assert cache_folder("~/mine") == tmp_path / "home" / "mine"

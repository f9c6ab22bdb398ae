"""Promises of the cache on disk: the same bytes, within its bound, whoever is killed and whatever the disk does."""

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.cache import BLOCK_BYTES, BlockCache, CachedFile, open_cache

FILE = CachedFile("http://host/a.tar", "1")


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Origin:
    """A file that counts how often and how much of it is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.calls = data, list[tuple[int, int]]()

    def __call__(self, offset: int, size: int) -> bytes:
        self.calls.append((offset, size))
        return self.data[offset : offset + size]


def opened(folder: Path, num_blocks: int = 64) -> BlockCache:
    cache = open_cache(str(folder), num_blocks * (BLOCK_BYTES + 32) + 32)
    assert cache is not None
    return cache


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


DATA = content(1, 5 * BLOCK_BYTES + 777)


@given(st.lists(st.tuples(st.integers(0, len(DATA) + 10), st.integers(1, 3 * BLOCK_BYTES)), min_size=1, max_size=6))
def test_any_range_is_the_same_bytes_each_time(spans: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, origin = opened(Path(folder)), Origin(DATA)
        for offset, size in spans * 2:
            assert cache.read(FILE, offset, size, origin) == DATA[offset : offset + size]
        cache.close()


def test_what_was_read_is_not_fetched_again_and_neighbours_come_in_one_request(tmp_path: Path) -> None:
    cache, origin = opened(tmp_path), Origin(DATA)
    cache.read(FILE, BLOCK_BYTES + 5, 10, origin)
    assert origin.calls == [(BLOCK_BYTES, BLOCK_BYTES)]
    cache.read(FILE, 0, len(DATA), origin)
    assert origin.calls[1:] == [(0, BLOCK_BYTES), (2 * BLOCK_BYTES, 4 * BLOCK_BYTES)]
    cache.close()
    again = opened(tmp_path)  # by another process, say
    assert again.read(FILE, 0, len(DATA), origin) == DATA
    assert len(origin.calls) == 3
    assert again.num_hit_bytes == len(DATA)
    other = CachedFile(FILE.url, "2")
    assert again.read(other, 0, 100, Origin(b"new" * 100)) == (b"new" * 100)[:100]
    again.close()


def test_the_bound_holds_and_what_is_used_stays(tmp_path: Path) -> None:
    cache = opened(tmp_path, num_blocks=16)
    bound = 16 * (BLOCK_BYTES + 32) + 32
    kept = Origin(content(0, BLOCK_BYTES))
    for number in range(60):
        cache.read(CachedFile(f"http://host/{number}", "1"), 0, BLOCK_BYTES, Origin(content(number, BLOCK_BYTES)))
        cache.read(FILE, 0, BLOCK_BYTES, kept)
        assert on_disk(tmp_path) <= bound
    assert len(kept.calls) == 1
    late, early = Origin(content(59, BLOCK_BYTES)), Origin(content(3, BLOCK_BYTES))
    cache.read(CachedFile("http://host/59", "1"), 0, BLOCK_BYTES, late)
    cache.read(CachedFile("http://host/3", "1"), 0, BLOCK_BYTES, early)
    assert (len(late.calls), len(early.calls)) == (0, 1)
    cache.close()


def test_a_block_that_the_disk_damaged_is_fetched_again(tmp_path: Path) -> None:
    cache, origin = opened(tmp_path), Origin(DATA)
    cache.read(FILE, 0, len(DATA), origin)
    data = bytearray((tmp_path / "blocks.data").read_bytes())
    for at in range(0, len(data), BLOCK_BYTES):
        data[at] ^= 1
    (tmp_path / "blocks.data").write_bytes(data)
    assert cache.read(FILE, 0, len(DATA), origin) == DATA
    assert origin.calls[-1] == (0, 6 * BLOCK_BYTES)
    (tmp_path / "blocks.table").write_bytes(b"rubbish" * 1000)
    assert cache.read(FILE, 0, len(DATA), origin) == DATA
    cache.close()
    assert opened(tmp_path).read(FILE, 0, len(DATA), origin) == DATA


def test_a_fresh_read_believes_nothing_and_mends_the_cache(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.read(FILE, 0, 100, Origin(bytes(100)))
    good = Origin(content(5, 100))
    assert cache.read(FILE, 0, 100, good, fresh=True) == good.data
    assert cache.read(FILE, 0, 100, Origin(bytes(100))) == good.data
    cache.close()


HAMMER = """
import random, sys
from headrace.shards.cache import BLOCK_BYTES, CachedFile, open_cache
cache = open_cache(sys.argv[1], 32 * (BLOCK_BYTES + 32) + 32)
chance = random.Random(int(sys.argv[2]))
print("begun", flush=True)
while True:
    number = chance.randrange(20)
    data = random.Random(number).randbytes(3 * BLOCK_BYTES // 2)
    got = cache.read(CachedFile(f"http://host/{number}", "1"), 0, len(data), lambda at, size: data[at : at + size])
    if got != data:
        print("WRONG", number, flush=True)
        break
"""


def test_many_processes_share_it_and_a_kill_leaves_it_whole(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for kill in range(3):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", HAMMER, str(folder), str(number)], stdout=subprocess.PIPE, text=True
            )
            for number in range(kill, kill + 3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
        time.sleep(0.7)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            assert process.communicate()[0] == ""
    assert sorted(os.listdir(folder)) == ["blocks.data", "blocks.table"]
    assert on_disk(folder) <= 32 * (BLOCK_BYTES + 32) + 32
    cache, hits = opened(folder, num_blocks=32), 0
    for number in range(20):  # 40 blocks: most are there, and looking for the others evicts few before they are found
        origin = Origin(content(number, 3 * BLOCK_BYTES // 2))
        file = CachedFile(f"http://host/{number}", "1")
        assert cache.read(file, 0, len(origin.data), origin) == origin.data
        hits += not origin.calls
    assert hits
    cache.close()


def test_a_full_disk_is_said_once_and_reading_goes_on(
    tmp_path: Path, no_more_than: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache, origin = opened(tmp_path), Origin(DATA)
    no_more_than(3000)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.read(FILE, 0, len(DATA), origin) == DATA
    assert len(caplog.records) == 1
    assert "the cache cannot be written" in caplog.text
    cache.close()


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert open_cache(str(tmp_path / "file" / "cache"), 1 << 30) is None
    assert "reading goes on without" in caplog.text


def test_a_disk_with_less_room_than_the_bound_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened(tmp_path / "small").close()
        assert not caplog.text
        cache = open_cache(str(tmp_path / "large"), 1 << 60)
    assert cache is not None
    assert "MB free, and the cache may take" in caplog.text
    assert on_disk(tmp_path / "large") == 32
    cache.close()


def test_another_size_begins_anew_once_nobody_uses_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large, origin = opened(tmp_path, num_blocks=64), Origin(DATA)
    large.read(FILE, 0, len(DATA), origin)
    with caplog.at_level(logging.WARNING):
        assert open_cache(str(tmp_path), 20 * BLOCK_BYTES) is None  # it would not be within the bound
    assert "a larger cache is in use" in caplog.text
    larger = opened(tmp_path, num_blocks=128)  # takes what is there
    assert larger.read(FILE, 0, len(DATA), origin) == DATA
    assert len(origin.calls) == 1
    large.close()
    larger.close()
    small = opened(tmp_path, num_blocks=16)
    assert on_disk(tmp_path) == 32
    assert small.read(FILE, 0, len(DATA), origin) == DATA
    small.close()

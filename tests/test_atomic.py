"""Promises of writes and removals at any URL, on the local disk and on a remote file system."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from headrace import atomic, files, urlpath


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


def test_a_failed_write_leaves_the_old_file_and_no_other(folder: str) -> None:
    url = urlpath.join(folder, "x")
    atomic.write_atomic(url, b"old")

    def fail() -> None:
        with atomic.atomic_file(url) as path:
            path.write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert files.read_bytes(url) == b"old"
    assert files.list_names(folder) == ["x"]


def test_put_if_absent_never_replaces(folder: str) -> None:
    url = urlpath.join(folder, "record")
    assert atomic.put_if_absent(url, b"first")
    assert not atomic.put_if_absent(url, b"second")
    assert files.read_bytes(url) == b"first"


@pytest.mark.parametrize(("status", "expected"), [(409, True), (412, False)])
def test_a_put_that_s3_refuses_is_tried_again_or_came_second(
    monkeypatch: pytest.MonkeyPatch, status: int, expected: bool
) -> None:
    class Store:
        puts = 0

        def pipe_file(self, _path: str, _data: bytes, *, mode: str) -> None:
            self.puts += 1
            if self.puts == 1:
                error = OSError(errno.EIO, f"{mode}: refused")
                error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
                raise error

    store = Store()
    monkeypatch.setattr(atomic, "open_store", lambda *_: (store, "a"))
    assert atomic.put_if_absent("s3://bucket/a", b"x") == expected
    assert store.puts == 1 + expected


def _put(url: str, number: int, results: "multiprocessing.Queue[tuple[int, bool]]") -> None:
    results.put((number, atomic.put_if_absent(url, str(number).encode())))


def test_of_two_processes_one_puts(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    url = str(tmp_path / "record")
    processes = [context.Process(target=_put, args=(url, number, results)) for number in range(2)]
    for process in processes:
        process.start()
    outcome = dict(results.get(timeout=200) for _ in processes)
    for process in processes:
        process.join()
    winners = [number for number, won in outcome.items() if won]
    assert [str(number) for number in winners] == [Path(url).read_text()]


def test_a_put_whose_temporary_file_was_cleared_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, cleared = os.link, []

    def clear_once(source: str, target: Path) -> None:
        if not cleared:
            atomic.remove_leftovers(str(tmp_path))
            cleared.append(source)
        link(source, target)

    monkeypatch.setattr(os, "link", clear_once)
    assert atomic.put_if_absent(str(tmp_path / "a"), b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_leaves_only_a_hidden_file_that_can_be_cleared(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with atomic.atomic_file(str(tmp_path / "x")) as path:
            path.write_bytes(b"half")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    assert files.list_names(str(tmp_path)) == []
    atomic.remove_leftovers(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_full_disk_names_what_was_written(tmp_path: Path) -> None:
    target = str(tmp_path / "a")
    with pytest.raises(OSError, match=f"No space left on device: '{target}'") as caught, atomic.atomic_file(target):
        Path("/dev/full").write_bytes(b"x")
    assert atomic.is_full_disk(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_inside_a_write_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic.atomic_file(str(tmp_path / "a")):
        Path(tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")

"""Promises of a lease: one holder at a time, wherever the record lies; one that is gone is replaced by one other."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import atomic, files, lease, urlpath
from headrace.curation.job import Job, own_job
from headrace.lease import HeldError, check_free, held, holder_of, only_writer

NUM_RIVALS = 6


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.full)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of each kind; of S3 on a real server."""
    if request.param == "s3":
        import fsspec

        settings: Callable[[int], dict[str, Any]] = request.getfixturevalue("s3_settings")
        store = fsspec.filesystem("s3", **settings(request.getfixturevalue("swift")))
        if not store.exists("leases"):
            store.mkdir("leases")
        return f"s3://leases/{tmp_path.name}"
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


@pytest.fixture(autouse=True)
def no_long_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)


def _hold(url: str, **options: bool) -> Any:
    return held(url, what=f"{url} is held", advice="wait", **options)


def _leave(url: str, **told: Any) -> None:
    record = {"host": "elsewhere", "process": 7, "started": "1", "token": "t", "beat": time.time()}
    atomic.write_atomic(url, json.dumps({**record, **told}).encode())


def test_a_second_holder_is_refused_and_the_first_goes_on(place: str) -> None:
    url = urlpath.join(place, "a.holder")
    with _hold(url) as mine:
        with pytest.raises(
            HeldError, match=rf"is held by process {os.getpid()} on .*\(last sign of life \d+ s ago\); wait"
        ):
            _hold(url).__enter__()
        mine.check()
    assert holder_of(url) is None


def test_of_rivals_for_a_silent_place_one_gets_it(place: str) -> None:
    url = urlpath.join(place, "a.holder")
    _leave(url, beat=time.time() - lease.SILENT_SECONDS - 60)
    got, refused, all_tried = [], [], threading.Barrier(NUM_RIVALS)

    def try_it(number: int) -> None:
        all_tried.wait()
        try:
            with _hold(url):
                got.append(number)
                all_tried.wait()
        except HeldError:
            refused.append(number)
            all_tried.wait()

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(NUM_RIVALS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, NUM_RIVALS - 1)
    assert files.list_names(place) == []


def test_a_holder_whose_clock_is_behind_is_not_replaced_while_it_gives_signs_of_life(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 300)  # it ends with the first sign
    url, behind, ended = urlpath.join(place, "a.holder"), 2 * lease.SILENT_SECONDS, threading.Event()

    def live() -> None:
        while not ended.wait(0.02):
            with lease._one_at_a_time(url):  # as a beat is given: who looks must not hold the lock
                _leave(url, beat=time.time() - behind)

    _leave(url, beat=time.time() - behind)
    check_free(url, what="", advice="", watch=False)  # at first sight it seems gone
    living = threading.Thread(target=live)
    living.start()
    try:
        with pytest.raises(
            HeldError, match=r"is held by process 7 on elsewhere \(last sign of life 12\d\d s ago\); wait"
        ):
            _hold(url).__enter__()
        with pytest.raises(HeldError, match="held by process 7"):
            check_free(url, what="held", advice="")
    finally:
        ended.set()
        living.join()


@pytest.mark.parametrize("told", [{}, {"beat": None}], ids=["alive a moment ago", "of an older version"])
def test_a_holder_elsewhere_that_may_live_is_replaced_only_where_the_user_says_so(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    url = str(tmp_path / "a.holder")
    _leave(url, **told)
    with pytest.raises(HeldError, match="by process 7 on elsewhere"):
        _hold(url).__enter__()
    with _hold(url, take_over=True):
        found = holder_of(url)
        assert found is not None
        assert (found.host, found.process) == (socket.gethostname(), os.getpid())


def test_a_machine_or_container_of_the_same_name_is_another(tmp_path: Path) -> None:
    """Of the number of a process there nothing is known here: only silence tells."""
    url = str(tmp_path / "a.holder")
    _leave(url, host=socket.gethostname(), machine="another boot")
    with pytest.raises(HeldError, match="by process 7 on"):
        _hold(url).__enter__()
    _leave(url, host=socket.gethostname())  # of an older version: it may be told by its process only
    with _hold(url):
        pass


def test_who_was_replaced_stops_and_leaves_the_record_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    url, told_to_end = str(tmp_path / "a.holder"), threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    with _hold(url) as mine:
        first = holder_of(url)
        deadline = time.monotonic() + 60
        while holder_of(url) == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert holder_of(url) != first  # it has given a sign of life
        with lease._one_at_a_time(url):
            _leave(url)
        while not told_to_end.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, before)
        assert told_to_end.is_set()  # a command ends now, as by the signal
        with pytest.raises(OSError, match="another process took this over"):
            mine.check()
    assert json.loads(Path(url).read_text())["host"] == "elsewhere"


def test_a_store_that_loses_its_answer_has_put_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = atomic.put_if_absent
    monkeypatch.setattr(atomic, "put_if_absent", lambda url, data: put(url, data) and False)
    with _hold(str(tmp_path / "a.holder")):
        pass


def test_a_remote_folder_has_one_writer(place: str) -> None:
    with only_writer(place), pytest.raises(ValueError, match="is being written"), only_writer(place):
        pass
    with own_job(Job(urlpath.join(place, "job"))) as job, pytest.raises(ValueError, match="is owned by"), own_job(job):
        pass


def test_a_folder_has_one_writer_and_a_killed_one_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    ready, told = os.pipe()
    if (child := os.fork()) == 0:
        with only_writer(folder):
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(ValueError, match="out is being written by another process"), only_writer(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with only_writer(folder):
        assert list(Path(folder).iterdir()) == []

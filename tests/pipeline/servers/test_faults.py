"""Real servers through every fault of the way: nothing is lost, nothing comes twice, and closing waits for nobody."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.pipeline import Batch, Mixture, Stream, open_stream

pytestmark = pytest.mark.full

CLOSE_SECONDS = 40.0  # of the sixty that a read may take
FAULTS = ["503", "429", "stall", "hang", "reset", "short", "zeros"]


@dataclass(frozen=True, slots=True)
class Place:
    """A dataset of 45 samples behind a proxy in front of a real server."""

    url: str
    proxy: Any


@pytest.fixture(params=["nginx", "swift"])
def place(
    request: pytest.FixtureRequest,
    datasets: tuple[str, str],
    in_front: Callable[[int], Any],
    s3_settings: Callable[[int], dict[str, Any]],
) -> Place:
    """The large dataset at each kind of server."""
    if request.param == "nginx":
        folder, port = request.getfixturevalue("nginx")
        shutil.copytree(datasets[0], folder / "large", dirs_exist_ok=True)
        shutil.copytree(Path(datasets[0]) / "shards", folder / "plain" / "tars", dirs_exist_ok=True)
        proxy = in_front(port)
        return Place(f"http://127.0.0.1:{proxy.port}/large", proxy)
    port = request.getfixturevalue("swift")
    _upload(datasets[0], s3_settings(port))
    proxy = in_front(port)
    s3_settings(proxy.port)
    return Place("s3://shards/large", proxy)


def _upload(folder: str, settings: dict[str, Any]) -> None:
    """Put the dataset at s3://shards/large, and its tars alone at s3://shards/plain/tars, unless they are there."""
    import s3fs

    direct = s3fs.S3FileSystem(**settings, skip_instance_cache=True)
    if not direct.exists("shards/large"):
        direct.mkdir("shards")
        for path in Path(folder).rglob("*"):
            if path.is_file():
                direct.put_file(str(path), f"shards/large/{path.relative_to(folder)}")
            if path.suffix == ".tar":
                direct.put_file(str(path), f"shards/plain/tars/{path.name}")


def _at(mixture: Mixture, url: str, **changes: Any) -> Mixture:
    sources = (dataclasses.replace(mixture.sources[0], url=url),)
    return dataclasses.replace(mixture, sources=sources, **{"read_timeout_seconds": 1.0, **changes})


def _everything(mixture: Mixture) -> list[tuple[str, int]]:
    """Key and label of all that a finite pass gives."""
    with open_stream(mixture, global_batch=8, columns=["label"], once=True) as stream:
        rows = [
            (key, int(label))
            for batch in stream
            for key, label, valid in zip(batch.key, batch.columns["label"], batch.valid, strict=True)
            if valid
        ]
        assert not stream.bad_samples
    return rows


def _close(stream: Stream) -> float:
    began = time.monotonic()
    stream.close()
    return time.monotonic() - began


@pytest.mark.parametrize("faulty", [".tar", "0.parquet", "shards.parquet", "dataset.json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_nothing_but_time(
    place: Place, mixture: Mixture, datasets: tuple[str, str], fault: str, faulty: str
) -> None:
    local = _everything(_at(mixture, datasets[0]))
    place.proxy.faulty = faulty
    place.proxy.faults[:] = [fault] * (3 if faulty == ".tar" and fault != "zeros" else 1)
    assert _everything(_at(mixture, place.url)) == local
    assert not place.proxy.faults
    assert len(set(local)) == 45


def test_a_state_of_the_local_dataset_continues_at_the_server(
    place: Place, mixture: Mixture, datasets: tuple[str, str], fingerprint: Callable[[Batch], object]
) -> None:
    with open_stream(_at(mixture, datasets[0]), global_batch=8) as one:
        for _ in range(5):
            next(one)
        state = one.state_dict()
        place.proxy.faults[:] = ["reset", "503"]
        with open_stream(_at(mixture, place.url), global_batch=8) as two:
            two.load_state_dict(state)
            for _ in range(8):
                assert fingerprint(next(one)) == fingerprint(next(two))


def test_the_recipe_for_s3_in_the_docs_streams(
    swift: int, s3_settings: Callable[[int], dict[str, Any]], datasets: tuple[str, str], tmp_path: Path
) -> None:
    _upload(datasets[0], s3_settings(swift))
    source = f"{{name: a, url: {datasets[0]}, chunk_samples: 3, shuffle_window: 24}}"
    (tmp_path / "mixture.yaml").write_text(f"lanes: 4\nimage_size: 16\nsources: [{source}]\n")
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "test:tester",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{swift}",
    }
    told = []
    for more in ([], ["sources.0.url=s3://shards/large"]):
        program = "from headrace.cli.app import main; main()"
        command = [sys.executable, "-c", program, "stream", str(tmp_path / "mixture.yaml"), *more]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stdout.splitlines() if line.startswith("batch ")])
    assert told[0]
    assert told[0] == told[1]


def test_tars_without_an_index_stream_from_a_server_and_are_indexed_once(
    place: Place, mixture: Mixture, datasets: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place.proxy.faults[:] = ["503", "short", "reset", "429"]
    tars = _at(mixture, f"{place.url.removesuffix('large')}plain/tars/*.tar")
    assert _everything(tars) == _everything(_at(mixture, datasets[0]))
    read = [request for request in place.proxy.requests if "0.tar" in request]
    place.proxy.requests.clear()
    with open_stream(tars, global_batch=8):
        pass
    stamps = [request for request in place.proxy.requests if "0.tar" in request]
    assert len(stamps) <= 1  # over http each tar is asked whether it is what it was; a store lists them at once
    assert len(read) > len(stamps)


def test_many_faults_at_thirty_milliseconds_give_the_same_stream(
    place: Place, mixture: Mixture, datasets: tuple[str, str], fingerprint: Callable[[Batch], object]
) -> None:
    place.proxy.latency_seconds = 0.03
    with (
        open_stream(_at(mixture, datasets[0]), global_batch=8) as one,
        open_stream(_at(mixture, place.url), global_batch=8) as two,
    ):
        place.proxy.faults[:] = ["503", "stall", "short", "", "reset", "zeros", "", "429"] * 2
        for _ in range(30):
            assert fingerprint(next(one)) == fingerprint(next(two))
        assert two.num_retries >= 8
        assert not two.bad_samples


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.timeout(900))])
def test_a_server_that_is_away_is_waited_for(
    place: Place,
    mixture: Mixture,
    datasets: tuple[str, str],
    fingerprint: Callable[[Batch], object],
    seconds: int,
) -> None:
    with (
        open_stream(_at(mixture, datasets[0]), global_batch=8) as one,
        open_stream(_at(mixture, place.url), global_batch=8) as two,
    ):
        assert fingerprint(next(one)) == fingerprint(next(two))
        place.proxy.away()
        timer = threading.Timer(seconds, place.proxy.back)
        timer.start()
        for _ in range(30):
            assert fingerprint(next(one)) == fingerprint(next(two))
        timer.join()


def test_a_stream_that_gave_up_goes_on_when_the_server_is_back(
    place: Place, mixture: Mixture, datasets: tuple[str, str], fingerprint: Callable[[Batch], object]
) -> None:
    with (
        open_stream(_at(mixture, datasets[0]), global_batch=8) as one,
        open_stream(_at(mixture, place.url, read_patience_seconds=1.0), global_batch=8) as two,
    ):
        given = [fingerprint(next(two))]
        place.proxy.away()
        with pytest.raises(OSError, match=r"large/shards/0000\d\.(tar|parquet): .*; tried \d+ times in \d+ s"):
            given.extend(fingerprint(next(two)) for _ in range(100))
        place.proxy.back()
        given.extend(fingerprint(next(two)) for _ in range(5))
        assert given == [fingerprint(next(one)) for _ in given]


@pytest.mark.parametrize("fault", ["hang", "stall", "503", "away"])
@pytest.mark.parametrize("faulty", [".tar", ".parquet"])
def test_closing_waits_for_no_server(place: Place, mixture: Mixture, fault: str, faulty: str) -> None:
    stream = open_stream(_at(mixture, place.url, read_timeout_seconds=60.0), global_batch=8)
    place.proxy.faulty = faulty
    before = len(place.proxy.requests)
    if fault == "away":
        place.proxy.away()
    else:
        place.proxy.faults[:] = [fault] * 1000

    def take() -> None:
        with contextlib.suppress(OSError, ValueError):
            next(stream)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    while fault != "away" and len(place.proxy.requests) == before:
        time.sleep(0.01)
    time.sleep(0.3)
    assert _close(stream) < CLOSE_SECONDS
    thread.join(50)
    assert not thread.is_alive()

"""Promises of units of work: every unit runs, an error names its unit, a killer is named and costs no other unit."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.shards.heartbeat import beat, expect
from headrace.shards.logs import RunLog
from headrace.shards.progress import Progress
from headrace.shards.quarantine import Quarantine
from headrace.shards.resources import Resources
from headrace.shards.units import EngineConfig, run_units


@dataclass(frozen=True)
class Mark:
    """Write a file, or fail in one of the ways a unit can."""

    name: str
    folder: str
    how: str = "fine"


def mark(unit: Mark) -> str:
    if unit.how == "raise":
        raise ValueError("bad input")
    if unit.how == "slow":
        time.sleep(0.3)
    if unit.how == "crash":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # of pytest's faulthandler, should it be there
        os.kill(os.getpid(), signal.SIGSEGV)
    if unit.how == "exit":
        os._exit(3)
    attempt = Path(unit.folder) / f"{unit.name}.attempts"
    attempt.write_text((attempt.read_text() if attempt.exists() else "") + "x")
    if unit.how == "kill" or (unit.how == "kill once" and attempt.read_text() == "x"):
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(unit.folder) / unit.name).touch()
    return unit.name


def _units(folder: Path, *hows: str) -> list[Mark]:
    return [Mark(f"u{number}", str(folder), how) for number, how in enumerate(hows)]


def _done(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.suffix)


EXECUTORS = ["inline", "local", pytest.param("ray", marks=pytest.mark.full)]
PROCESSES = EXECUTORS[1:]
ray_warnings = pytest.mark.filterwarnings(
    "ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """A Ray cluster on this machine that several tests use."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> EngineConfig:
    """Two workers of the executor that the test is about."""
    if request.param == "ray":
        request.getfixturevalue("_cluster")
    return EngineConfig(executor=request.param, workers=2)


@pytest.mark.parametrize("engine", EXECUTORS, indirect=True)
@ray_warnings
def test_every_unit_runs_once_and_results_come_in_the_order_of_the_units(tmp_path: Path, engine: EngineConfig) -> None:
    seen: list[tuple[int, int]] = []
    units = _units(tmp_path, "slow", *["fine"] * 4)
    assert run_units(mark, units, engine, lambda progress: seen.append((progress.done, progress.total))) == [
        "u0",
        "u1",
        "u2",
        "u3",
        "u4",
    ]
    assert _done(tmp_path) == ["u0", "u1", "u2", "u3", "u4"]
    assert all(path.read_text() == "x" for path in tmp_path.glob("*.attempts"))
    assert list(dict.fromkeys(seen)) == [(number, 5) for number in range(6)]


def count(unit: Mark) -> None:
    expect(rows=20)
    for number in range(20):
        beat(rows=1, bytes=10, failed="odd" if number % 5 == 0 else None)
        time.sleep(0.1)
    if unit.name == "u1":
        logging.getLogger("headrace.test").info("%s is done\x1b[2J", unit.name)


@pytest.mark.parametrize("engine", EXECUTORS, indirect=True)
@ray_warnings
def test_units_tell_what_they_count_while_they_run(tmp_path: Path, engine: EngineConfig) -> None:
    seen: list[Progress] = []
    run_units(count, _units(tmp_path, "fine", "fine"), engine, seen.append)
    moving = [item for item in seen if 0 < item.counts.get("rows", 0) < 40 and not item.done]
    assert moving
    assert moving[-1].expected == {"rows": 40}
    assert moving[-1].left_seconds is not None
    assert seen[-1].counts == {"rows": 40, "bytes": 400}
    assert seen[-1].failures == {"odd": 8}


@pytest.mark.parametrize("engine", EXECUTORS, indirect=True)
@ray_warnings
def test_log_lines_of_units_reach_the_driver_and_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, engine: EngineConfig
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    handler = RunLog(tmp_path / "run.log", units=tmp_path / "logs")
    logging.getLogger("headrace").addHandler(handler)
    try:
        run_units(count, _units(tmp_path, "fine", "fine"), engine)
    finally:
        logging.getLogger("headrace").removeHandler(handler)
        handler.close()
    said = [record.getMessage() for record in caplog.records if record.name == "headrace.test"]
    assert [line.replace("\x1b", " ") for line in said] == [
        "u1 is done [2J" if engine.executor == "inline" else "u1: u1 is done [2J"
    ]
    assert [path.name for path in (tmp_path / "logs").iterdir() if "u1 is done" in path.read_text()] == ["u1.log"]
    assert "unit u0: done (" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("engine", EXECUTORS, indirect=True)
@ray_warnings
def test_an_error_stops_the_run_and_names_its_unit(tmp_path: Path, engine: EngineConfig) -> None:
    with pytest.raises(ValueError, match="bad input") as caught:
        run_units(mark, _units(tmp_path, "fine", "raise"), engine)
    assert "in unit u1" in getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("engine", PROCESSES, indirect=True)
@ray_warnings
def test_a_unit_that_kills_its_worker_once_is_run_again(tmp_path: Path, engine: EngineConfig) -> None:
    assert run_units(mark, _units(tmp_path, "kill once", "fine", "fine"), engine) == ["u0", "u1", "u2"]
    assert _done(tmp_path) == ["u0", "u1", "u2"]


@pytest.mark.parametrize("engine", PROCESSES, indirect=True)
@ray_warnings
def test_a_unit_that_kills_twice_is_named_and_all_others_are_done(tmp_path: Path, engine: EngineConfig) -> None:
    how = r" \((SIGKILL|WorkerCrashedError)\)"
    with pytest.raises(OSError, match=rf"1 of 4 units killed their worker twice.*: u1{how}.*all other units are done"):
        run_units(mark, _units(tmp_path, "fine", "kill", "fine", "fine"), engine)
    assert _done(tmp_path) == ["u0", "u2", "u3"]


def test_the_way_a_worker_died_is_told(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match=r"u0 \(SIGSEGV\), u1 \(exit code 3\);"):
        run_units(mark, _units(tmp_path, "crash", "exit"), EngineConfig(workers=1))


def test_no_unit_is_lost_where_the_pool_is_found_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FoundBroken(ProcessPoolExecutor):
        def submit(self, *arguments: Any, **settings: Any) -> Any:
            if _done(tmp_path) == ["u0"]:
                (tmp_path / "u0").rename(tmp_path / "u0.done")
                raise BrokenProcessPool
            return super().submit(*arguments, **settings)

    monkeypatch.setattr("headrace.shards.units_local.ProcessPoolExecutor", FoundBroken)
    assert run_units(mark, _units(tmp_path, "fine", "fine"), EngineConfig(workers=1)) == ["u0", "u1"]
    assert _done(tmp_path) == ["u1"]


def test_a_run_stops_where_every_unit_kills_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.shards.units.MAX_KILLERS", 2)
    monkeypatch.setattr("headrace.shards.units_local.MAX_BROKEN_POOLS", 1)
    with pytest.raises(ChildProcessError, match=r"2 of 9 units killed their worker twice.*the run stopped"):
        run_units(mark, _units(tmp_path, *["kill"] * 9), EngineConfig(workers=2))
    assert len(list(tmp_path.glob("*.attempts"))) < 9


def test_no_units_is_no_work() -> None:
    assert run_units(mark, [], EngineConfig()) == []


def test_a_killer_is_noted_and_comes_last_in_the_next_run(tmp_path: Path) -> None:
    place = Quarantine(str(tmp_path / "job/quarantine/fetch"))
    engine = EngineConfig(workers=1)
    with pytest.raises(ChildProcessError, match=r"u0 \(SIGKILL\).*noted in .*/job/quarantine/fetch"):
        run_units(mark, _units(tmp_path, "kill", "fine"), engine, quarantine=place)
    assert place.deaths() == {"u0": 2}
    order: list[int] = []
    run_units(
        mark,
        _units(tmp_path, "fine", "fine"),
        engine,
        on_result=lambda number, _: order.append(number),
        quarantine=place,
    )
    assert order == [1, 0]
    assert place.deaths() == {}


ALONE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_units import _units, mark
from headrace.shards.desk import Streaming
from headrace.shards.quarantine import Quarantine
from headrace.shards.units import INLINE, run_units

def each(desk):
    while (taken := desk.take()) is not None:
        taken.ended(mark(taken.unit))

if __name__ == "__main__":
    folder = Path({folder!r})
    work = Streaming(each) if {streaming} else mark
    run_units(work, _units(folder, "kill", "fine"), INLINE, quarantine=Quarantine(str(folder / "quarantine/fetch")))
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_unit_that_kills_this_process_twice_is_named_by_the_third_run(tmp_path: Path, streaming: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(ALONE.format(tests=str(Path(__file__).parent), folder=str(tmp_path), streaming=streaming))
    ended = [
        subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False) for _ in range(3)
    ]
    assert [done.returncode for done in ended] == [-signal.SIGKILL, -signal.SIGKILL, 1]
    assert "1 of 2 units killed their worker twice, the second time alone: u0 (SIGKILL)" in ended[2].stderr
    assert (tmp_path / "u1").exists()


ON_GPU = Resources(gpu="one")


@dataclass(frozen=True)
class Heavy(Mark):
    """A unit that takes a GPU."""

    resources: Resources = ON_GPU


def spend(unit: Mark) -> tuple[float, float]:
    """Take some time, and the first of those with a GPU and of those without until one of the others has begun."""
    begun = time.monotonic()
    kinds = ["with", "without"] if isinstance(unit, Heavy) else ["without", "with"]
    mine, theirs = (Path(unit.folder) / kind for kind in kinds)
    mine.touch()
    while not theirs.exists() and time.monotonic() < begun + 150:
        time.sleep(0.01)
    time.sleep(0.1)
    return begun, time.monotonic()


def test_of_units_that_take_a_gpu_one_runs_at_a_time_beside_others(tmp_path: Path) -> None:
    units = [*(Heavy(f"g{number}", str(tmp_path)) for number in range(3)), *_units(tmp_path, "fine", "fine", "fine")]
    found = run_units(spend, units, EngineConfig(workers=3))
    heavy = sorted(found[:3])
    assert all(end <= begun for (_, end), (begun, _) in itertools.pairwise(heavy))
    assert any(begun < end_of and begun_of < end for begun, end in found[3:] for begun_of, end_of in heavy)

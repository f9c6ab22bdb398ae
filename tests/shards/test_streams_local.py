"""Promises of work that has several units under way in one process: the same as of any work, whoever runs it."""

import asyncio
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.shards.desk import Desk, Streaming
from headrace.shards.heartbeat import beat, expect
from headrace.shards.logs import RunLog
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig, run_units

log = logging.getLogger("headrace.test")


@dataclass(frozen=True)
class Step:
    """A unit that says how it ends."""

    name: str
    folder: str
    how: str = "fine"


def walk(desk: Desk[Step, str]) -> None:
    """Take two units at a time, and end the second one first."""

    async def one(taken) -> None:
        unit = taken.unit
        expect(rows=2)
        beat(rows=1)
        log.info("%s begins", unit.name)
        await asyncio.sleep(0.3 if unit.how == "slow" else 0.02)
        attempts = Path(unit.folder) / f"{unit.name}.attempts"
        attempts.write_text((attempts.read_text() if attempts.exists() else "") + "x")
        if unit.how == "kill" or (unit.how == "kill once" and attempts.read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.how == "raise":
            error = ValueError("bad input")
            error.add_note(f"in unit {unit.name}")
            raise error
        beat(rows=1, failed="odd" if unit.how == "slow" else None)
        taken.ended(unit.name)

    async def main() -> None:
        running: set[asyncio.Task[None]] = set()
        while (taken := await asyncio.to_thread(desk.take)) is not None:
            running.add(asyncio.get_running_loop().create_task(one(taken), context=taken.context))
            if len(running) == 2:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        await asyncio.gather(*running)

    asyncio.run(main())


def steps(folder: Path, *hows: str) -> list[Step]:
    return [Step(f"s{number}", str(folder), how) for number, how in enumerate(hows)]


ENGINES = [EngineConfig(executor="inline"), EngineConfig(executor="local", workers=2)]


@pytest.mark.parametrize("engine", ENGINES, ids=["inline", "local"])
def test_every_unit_runs_once_and_keeps_its_own_counts_and_lines(tmp_path: Path, engine: EngineConfig) -> None:
    seen: list[Progress] = []
    handler = RunLog(tmp_path / "run.log", units=tmp_path / "logs")
    logging.getLogger("headrace").addHandler(handler)
    logging.getLogger("headrace").setLevel(logging.INFO)
    try:
        units = steps(tmp_path, "slow", *["fine"] * 5)
        assert run_units(Streaming(walk), units, engine, seen.append) == [unit.name for unit in units]
    finally:
        logging.getLogger("headrace").removeHandler(handler)
        handler.close()
    assert all(path.read_text() == "x" for path in tmp_path.glob("*.attempts"))
    assert (seen[-1].done, seen[-1].counts, seen[-1].failures) == (6, {"rows": 12}, {"odd": 1})
    lines = {path.stem: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert all(f"{name} begins" in text and text.count("begins") == 1 for name, text in lines.items())
    assert len(lines) == 6


@pytest.mark.parametrize("engine", ENGINES, ids=["inline", "local"])
def test_an_error_stops_the_run_and_names_its_unit(tmp_path: Path, engine: EngineConfig) -> None:
    with pytest.raises(ValueError, match="bad input") as caught:
        run_units(Streaming(walk), steps(tmp_path, "slow", "raise", "fine"), engine)
    assert "in unit s1" in getattr(caught.value, "__notes__", [])


def test_a_unit_that_kills_twice_is_named_and_all_others_are_done(tmp_path: Path) -> None:
    units = steps(tmp_path, "slow", "kill", "kill once", *["fine"] * 4)
    results: dict[int, str] = {}
    with pytest.raises(ChildProcessError, match=r"1 of 7 units killed their worker twice.*: s1 \(SIGKILL\)"):
        run_units(Streaming(walk), units, ENGINES[1], on_result=results.__setitem__)
    assert sorted(results.values()) == ["s0", "s2", "s3", "s4", "s5", "s6"]


def hang(desk: Desk[Step, str]) -> None:
    taken = desk.take()
    assert taken is not None
    if taken.unit.how == "raise":
        raise ValueError("bad input")
    time.sleep(500)


def test_an_error_does_not_wait_for_the_other_processes(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="bad input"):
        run_units(Streaming(hang), steps(tmp_path, "fine", "raise"), ENGINES[1])
    assert time.monotonic() - started < 300


def die(_: Desk[Step, str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_die_before_they_take_anything_end_the_run(tmp_path: Path) -> None:
    units = steps(tmp_path, "fine", "fine")
    with pytest.raises(ChildProcessError, match=r"2 of 2 units killed their worker twice.*SIGKILL"):
        run_units(Streaming(die), units, EngineConfig(executor="local", workers=1))


def test_work_called_with_one_unit_does_that_unit(tmp_path: Path) -> None:
    assert Streaming(walk)(steps(tmp_path, "fine")[0]) == "s0"

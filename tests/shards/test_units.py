"""Promises of the engine: every unit runs, an error names its unit, a killer is named and costs no other unit."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.curation.engine import EngineConfig, run_units


@dataclass(frozen=True)
class Mark:
    """Write a file, or fail in one of the ways a unit can."""

    name: str
    folder: str
    how: str = "fine"


def mark(unit: Mark) -> None:
    if unit.how == "raise":
        raise ValueError("bad input")
    attempt = Path(unit.folder) / f"{unit.name}.attempts"
    attempt.write_text((attempt.read_text() if attempt.exists() else "") + "x")
    if unit.how == "kill" or (unit.how == "kill once" and attempt.read_text() == "x"):
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(unit.folder) / unit.name).touch()


def _units(folder: Path, *hows: str) -> list[Mark]:
    return [Mark(f"u{number}", str(folder), how) for number, how in enumerate(hows)]


def _done(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.suffix)


@pytest.mark.parametrize("executor", ["inline", "local", pytest.param("ray", marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_every_unit_runs_once(tmp_path: Path, executor: str) -> None:
    seen: list[tuple[int, int]] = []
    handler = signal.getsignal(signal.SIGTERM)
    engine = EngineConfig(executor=executor, workers=2)  # type: ignore[arg-type]
    run_units(mark, _units(tmp_path, *["fine"] * 5), engine, lambda done, total: seen.append((done, total)))
    assert _done(tmp_path) == ["u0", "u1", "u2", "u3", "u4"]
    assert seen == [(number, 5) for number in range(6)]
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize("executor", ["inline", "local", pytest.param("ray", marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_an_error_stops_the_run_and_names_its_unit(tmp_path: Path, executor: str) -> None:
    engine = EngineConfig(executor=executor, workers=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bad input") as caught:
        run_units(mark, _units(tmp_path, "fine", "raise"), engine)
    assert "in unit u1" in getattr(caught.value, "__notes__", [])


def test_a_unit_that_kills_its_worker_once_is_run_again(tmp_path: Path) -> None:
    run_units(mark, _units(tmp_path, "kill once", "fine", "fine"), EngineConfig(workers=2))
    assert _done(tmp_path) == ["u0", "u1", "u2"]


def test_a_unit_that_kills_twice_is_named_and_all_others_are_done(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"1 of 4 units killed their worker twice.*: u1$"):
        run_units(mark, _units(tmp_path, "fine", "kill", "fine", "fine"), EngineConfig(workers=2))
    assert _done(tmp_path) == ["u0", "u2", "u3"]


def test_no_units_is_no_work() -> None:
    run_units(mark, [], EngineConfig())

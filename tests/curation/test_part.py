"""Promises of the parts of a stage: one that is missing, twice there or of others is named."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import lease
from headrace.curation.job import Job, begin_job, own_job
from headrace.curation.part import Divided, check_merge, forget_parts, run_part
from headrace.lease import Fence
from headrace.shards.part import parse_part

UNITS = [f"u{number}" for number in range(7)]


def _append(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")


def _divided(folder: Path, units: Sequence[str] = UNITS, during: Callable[[], None] = lambda: None) -> Divided:
    """A stage that writes a file a unit and counts how often it was prepared."""
    out = folder / "out"

    def prepare() -> None:
        out.mkdir(exist_ok=True)
        _append(folder / "prepared")

    def run(names: Sequence[str], fence: Fence) -> None:
        during()
        for name in names:
            fence.check()
            _append(out / name)

    return Divided(
        prepare=prepare,
        units=lambda: list(units),
        done=lambda: {path.name for path in out.iterdir()},
        run=run,
    )


def _run(job: Job, divided: Divided, part: str, recipe: str = "r", **options: bool) -> str:
    begin_job(job)
    return str(run_part(job, "fetch", divided, parse_part(part), recipe=recipe, **options))


def test_four_parts_at_once_do_every_unit_once_and_merge_finds_nothing_missing(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    threads = [threading.Thread(target=_run, args=(job, divided, f"{number}/4")) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == dict.fromkeys(UNITS, "x")
    assert (tmp_path / "prepared").read_text() == "x"
    with own_job(job):
        check_merge(job, "fetch", divided, recipe="r")
        forget_parts(job, "fetch")
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["job.json"]


def test_a_part_that_ran_before_is_told_and_does_nothing(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    assert _run(job, divided, "2/3") == "part 2/3 is done: 2 units"
    assert _run(job, divided, "2/3") == "part 2/3 is done already; nothing was done again"
    (tmp_path / "out" / "u4").unlink()
    assert _run(job, divided, "2/3") == "part 2/3 is done: 2 units, 1 of them before"


def test_a_part_that_runs_twice_at_once_is_named_and_goes_on_alone(tmp_path: Path) -> None:
    job, told = Job(str(tmp_path / "job")), []

    def again() -> None:
        with pytest.raises(ValueError, match=rf"part 1 of fetch is under way by process {os.getpid()} on ") as caught:
            _run(job, _divided(tmp_path), "1/2")
        told.append(str(caught.value))
        with pytest.raises(ValueError, match=r"part 1 of fetch is under way by process"), own_job(job):
            pass
        with pytest.raises(
            ValueError, match=r"2 of 2 parts of fetch are not done: part 1 is under way by .*; part 2 has"
        ):
            check_merge(job, "fetch", _divided(tmp_path), recipe="r")

    assert _run(job, _divided(tmp_path, during=again), "1/2") == "part 1/2 is done: 4 units"
    assert "--take-over" in told[0]


def test_parts_that_have_not_run_are_named_at_the_merge(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="no part of fetch has run, and u0 and 6 more are to do"):
        check_merge(job, "fetch", divided, recipe="r")
    with pytest.raises(ValueError, match=r"job: no part of fetch has run; run it with --part 1/N to N/N"):
        check_merge(job, "fetch", replace(divided, units=list), recipe="r")
    _run(job, divided, "2/4")
    with pytest.raises(ValueError, match=r"3 of 4 parts of fetch are not done: part 1 has not run.*part 3.*part 4"):
        check_merge(job, "fetch", divided, recipe="r")


@pytest.mark.parametrize(
    ("part", "recipe", "units", "message"),
    [
        ("1/3", "r", UNITS, r"divided into 2 parts, not 3; go on with --part I/2"),
        ("1/2", "other", UNITS, "begun with another recipe"),
        ("1/2", "r", UNITS[:-1], r"has changed since its parts began \(7 units then\)"),
    ],
)
def test_a_part_of_others_is_refused(
    tmp_path: Path, part: str, recipe: str, units: Sequence[str], message: str
) -> None:
    job = Job(str(tmp_path / "job"))
    _run(job, _divided(tmp_path), "2/2")
    with pytest.raises(ValueError, match=message):
        _run(job, _divided(tmp_path, units), part, recipe)
    if recipe != "r":
        with pytest.raises(ValueError, match=message):
            check_merge(job, "fetch", _divided(tmp_path), recipe=recipe)


def test_a_part_beside_a_driver_of_the_job_is_refused(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "job"))
    with own_job(job), pytest.raises(ValueError, match=f"is owned by process {os.getpid()}"):
        _run(job, _divided(tmp_path), "1/2")


@pytest.mark.parametrize("silent_seconds", [5.0, 4000.0])
def test_the_part_of_a_node_that_vanished_is_done_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_seconds: float
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    _run(job, divided, "1/2")
    beat = time.time() - silent_seconds
    left = {"host": "elsewhere", "process": 7, "started": "1", "token": "t", "beat": beat}
    (tmp_path / "job/parts/fetch/2.holder").write_text(json.dumps(left))
    if silent_seconds < lease.SILENT_SECONDS:
        with pytest.raises(ValueError, match=r"by process 7 on elsewhere \(last sign of life \d+ s ago\).*--take-over"):
            _run(job, divided, "2/2")
        assert _run(job, divided, "2/2", take_over=True) == "part 2/2 is done: 3 units"
        return
    with pytest.raises(ValueError, match="part 2 was left by process 7 on elsewhere"):
        check_merge(job, "fetch", divided, recipe="r")
    assert _run(job, divided, "2/2") == "part 2/2 is done: 3 units"
    check_merge(job, "fetch", divided, recipe="r")


def test_parts_start_over_together_once_or_say_why_not(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    over = replace(divided, starts_over=True)
    assert str(_run(job, over, "1/2")) == "part 1/2 is done: 4 units"
    kept = "; its parts have started over before, so nothing was removed now"
    assert _run(job, over, "2/2") == f"part 2/2 is done: 3 units{kept}"  # all tasks of an array have the same options
    assert _run(job, over, "2/2") == f"part 2/2 is done already; nothing was done again{kept}"
    assert _run(job, divided, "2/2") == "part 2/2 is done already; nothing was done again"
    assert (tmp_path / "prepared").read_text() == "x"
    forget_parts(job, "fetch")
    (tmp_path / "out" / "u0").unlink()
    _run(job, divided, "1/2")
    with pytest.raises(ValueError, match=r"were begun without --start-over.*finish them without it, or run the whole"):
        _run(job, over, "2/2")


def test_a_part_that_runs_again_after_the_merge_is_told_so_and_no_merge_waits_for_the_others(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    for part in ("1/2", "2/2"):
        _run(job, divided, part)
    for again in ("1/2", "3/4"):  # be it of another N
        with own_job(job):
            check_merge(job, "fetch", divided, recipe="r")
            forget_parts(job, "fetch")
        assert _run(job, divided, again) == f"part {again} is done already; nothing was done again"
        assert not (tmp_path / "job/parts/fetch/plan.json").exists()
    with own_job(job):
        check_merge(job, "fetch", divided, recipe="r")
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"x"}


def test_a_merge_asks_for_no_part_where_every_unit_is_done(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    for part in ("1/2", "2/2"):
        _run(job, divided, part)
    forget_parts(job, "fetch")
    # As a late part of an older version leaves it: a plan, and itself alone.
    (tmp_path / "out" / "u0").unlink()
    assert _run(job, divided, "1/2") == "part 1/2 is done: 4 units, 3 of them before"
    check_merge(job, "fetch", divided, recipe="r")
    (tmp_path / "out" / "u1").unlink()
    with pytest.raises(ValueError, match="1 of 2 parts of fetch are not done: part 2 has not run"):
        check_merge(job, "fetch", divided, recipe="r")


@pytest.mark.parametrize("by", ["another of its number", "a driver of the whole job"])
def test_a_part_that_woke_up_after_it_was_replaced_does_no_unit(tmp_path: Path, by: str) -> None:
    job = Job(str(tmp_path / "job"))

    def replace_it() -> None:
        if by == "another of its number":
            assert _run(job, _divided(tmp_path), "1/2", take_over=True) == "part 1/2 is done: 4 units"
        else:
            with own_job(job, take_over=True):
                forget_parts(job, "fetch")
        _append(tmp_path / "out" / "replaced")

    with pytest.raises(OSError, match="another process took this over"):
        _run(job, _divided(tmp_path, during=replace_it), "1/2")
    done = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert done == dict.fromkeys(["replaced", *(UNITS[::2] if by == "another of its number" else [])], "x")


def test_a_part_does_no_unit_beside_a_driver_that_took_the_job_over_while_it_prepared(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            divided.prepare()
            stack.enter_context(own_job(job, take_over=True))

        with pytest.raises(OSError, match=r"owner\.json: another process took this over"):
            _run(job, replace(divided, prepare=prepare), "1/2")
    assert not list((tmp_path / "out").iterdir())


def test_a_part_that_was_told_to_take_over_asks_no_part_of_another_stage(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    begin_job(job)
    (tmp_path / "job/parts/annotate").mkdir(parents=True)
    left = {"host": "elsewhere", "process": 7, "started": "1", "token": "t", "beat": time.time()}
    (tmp_path / "job/parts/annotate/3.holder").write_text(json.dumps(left))
    with pytest.raises(ValueError, match=r"part 3 of annotate is under way by process 7 on elsewhere.*--take-over"):
        _run(job, divided, "1/2")
    assert _run(job, divided, "1/2", take_over=True) == "part 1/2 is done: 4 units"


def test_a_part_whose_units_went_elsewhere_is_not_done(tmp_path: Path) -> None:
    job, divided = Job(str(tmp_path / "job")), _divided(tmp_path)
    with pytest.raises(ValueError, match="4 units of fetch were done and are not there, the first u0; name a job"):
        _run(job, replace(divided, run=lambda *_: None), "1/2")
    assert not (tmp_path / "job/parts/fetch/1.done").exists()
    assert _run(job, divided, "1/2") == "part 1/2 is done: 4 units"

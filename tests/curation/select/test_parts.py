"""Promises of a run of select in parts: nothing of how the work was cut, or done before, shows in the ledger."""

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from select_jobs import flip_bits, hash_bytes, make_row, run, write_job

from headrace.curation.job import Job
from headrace.curation.ledger import LedgerSummary, latest_decision
from headrace.curation.select import kept, parts, shuffle
from headrace.curation.select import run as run_module
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.near import search
from headrace.curation.select.place import Placement
from headrace.curation.select.sieve import Sieve
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.step import Bench, Step, StepResult, write_verdict
from headrace.curation.select.steps import SelectStep
from headrace.curation.select.steps.exact_duplicates import ExactDuplicates
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.rule import Rule
from headrace.curation.select.steps.top_fraction import TopFraction
from headrace.shards.units import EngineConfig

STEPS: tuple[SelectStep, ...] = (
    Rule(name="size", keep="image_width >= 60", value="image_width", threshold=60),
    ExactDuplicates(captions="longest"),
    NearDuplicates(captions="longest"),
    Rule(name="late", keep="caption_chars > 2", value="caption_chars"),
    TopFraction(score="clip_score", fraction=0.7),
)


def mixed_job(folder: Path) -> Job:
    """Write shards of many sizes, out of order, with retries, failures, copies, near copies and missing captions."""
    rng = np.random.default_rng(0)
    hashes = hash_bytes(rng, 30)
    rows = []
    for number in range(300):
        near = flip_bits(hashes[number % 30], rng.choice(256, int(rng.integers(0, 20)), replace=False).tolist())
        values: dict[str, Any] = {
            "pdq": near,
            "pdq_trimmed": flip_bits(near, range(number % 3)),
            "caption": None if number % 4 == 0 else "c" * (1 + number % 7),
            "sha256": f"{int(rng.integers(0, 250)):064x}",
            "clip_score": float(rng.random()),
            "image_width": int(rng.integers(50, 200)),
        }
        if number % 17 == 0:
            values |= {"status": "failed_to_download", "error_class": ("timeout", "http_404")[number % 2]}
        rows.append(make_row(number, **values))
    again = [{**row, "status": "success"} for row in rows[::34]]
    order = [rows[place] for place in rng.permutation(300)]
    return write_job(folder, [order[:120], order[120:121], [], order[121:200], order[200:], again])


def ledger_bytes(job: Job) -> str:
    return hashlib.sha256(Path(latest_decision(job).ledger.table).read_bytes()).hexdigest()


def again(job: Job, steps: tuple[SelectStep, ...] = STEPS, *, fresh: bool = True) -> tuple[LedgerSummary, str]:
    if fresh:
        shutil.rmtree(Path(job.url) / "ledger", ignore_errors=True)
    return run(job, steps), ledger_bytes(job)


def test_parts_windows_and_executors_do_not_show_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = mixed_job(tmp_path)
    whole = again(job)
    assert whole[0].rows == 300, "a retried row counts once, whatever the part it was tried again in"
    monkeypatch.setattr(parts, "PART_ROWS", 1)
    monkeypatch.setattr("headrace.curation.select.write.WINDOW_ROWS", 100)
    monkeypatch.setattr("headrace.curation.select.sieve.MOST_GONE", 0.01)
    assert again(job) == whole
    monkeypatch.setattr(parts, "INLINE_ROWS", 0)
    monkeypatch.setattr(search, "INLINE_NODES", 0)
    monkeypatch.setattr(shuffle, "ALONE_ROWS", 0)
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 150)
    folders = sorted((tmp_path / "annotations").iterdir())
    inputs = find_inputs(job, {path.name.split("-")[0]: str(path) for path in folders})
    selection = Selection(steps=STEPS, placement=Placement(seed=1, shuffle_window=2, samples_per_shard=3))
    shutil.rmtree(tmp_path / "ledger")
    limits = Limits(threads=1)
    summary = select_rows(inputs, selection, limits=limits, engine=EngineConfig(executor="local", workers=2))
    assert (summary, ledger_bytes(job)) == whole


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the steps that are run from now on, as they are."""
    ran: list[str] = []
    inside: Callable[..., Any] = Sieve.run

    def noted(sieve: Any, step: Step, *rest: Any) -> Any:
        ran.append(step.name)
        return inside(sieve, step, *rest)

    monkeypatch.setattr(Sieve, "run", noted)
    return ran


def test_changing_one_step_runs_what_depends_on_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "KEPT_ROWS", 0)
    job = mixed_job(tmp_path)
    again(job)
    ran = count_runs(monkeypatch)
    for place, changed, expected in (
        (4, TopFraction(score="clip_score", fraction=0.5), ["top_fraction"]),
        (3, Rule(name="late", keep="caption_chars > 3"), ["late", "top_fraction"]),
        (2, NearDuplicates(distance=12), ["near_duplicates", "late", "top_fraction"]),
    ):
        steps = (*STEPS[:place], changed, *STEPS[place + 1 :])
        ran.clear()
        found = again(job, steps, fresh=False)
        assert [name for name in ran if name not in ("fetch", "decode", "size")] == expected
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "KEPT_ROWS", 10**9)
            assert again(mixed_job(tmp_path / f"fresh{place}"), steps) == found
    # One raw table is another: nothing of before counts.
    shutil.rmtree(tmp_path / "raw")
    shutil.rmtree(tmp_path / "annotations")
    write_job(tmp_path, [[make_row(number) for number in range(9)]])
    ran.clear()
    assert again(job, fresh=False)[0].rows == 9
    assert ran == ["fetch", "decode", "size", *(step.name for step in STEPS[1:])]


def test_kept_results_are_few_and_may_go_or_break_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "KEPT_ROWS", 0)
    monkeypatch.setattr(kept, "MOST_OF_A_KIND", 2)
    job = mixed_job(tmp_path)
    whole = again(job)
    folder = tmp_path / "ledger" / "kept"
    assert len(list(folder.iterdir())) == 2
    for cut in (0, 20):  # removed, broken
        for file in list(folder.iterdir()):
            data = file.read_bytes()
            file.unlink()
            if cut:
                file.write_bytes(data[:-cut])
        shutil.rmtree(latest_decision(job).ledger.url)
        assert again(job, fresh=False) == whole


def test_a_result_that_cannot_be_kept_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_module, "KEPT_ROWS", 0)
    job = mixed_job(tmp_path)
    whole = again(job)

    def full(url: str, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", url)

    monkeypatch.setattr(kept, "write_parquet", full)
    assert again(job) == whole
    assert "is not kept for the next run: [Errno 28] No space left on device" in caplog.text
    assert not (tmp_path / "ledger" / "kept").exists()


class Wandering(Step):
    """Says of each part how many rows it has, though it claims to look at each row alone."""

    step: Literal["wandering"] = "wandering"
    name: str = "wandering"
    each_row: ClassVar[bool] = True

    def __init__(self) -> None:
        pass

    def run(self, bench: Bench) -> StepResult:
        write_verdict(
            bench,
            "SELECT __row, 'x' AS reason, NULL::DOUBLE AS value, NULL::DOUBLE AS threshold, "
            "NULL::VARCHAR AS duplicate_of FROM here WHERE false",
        )
        return StepResult(None, {"rows": bench.num_here})


def test_a_step_that_is_not_what_it_says_of_each_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 1)
    job = write_job(tmp_path, [[make_row(0)], [make_row(1), make_row(2)]])
    with pytest.raises(ValueError, match="step 'wandering' says `each_row`, but its result differs between parts"):
        run(job, [Wandering()])

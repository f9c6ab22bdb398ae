"""Promises of a dry run of select: what it says will be kept is kept, and it says of how many rows it knows."""

import re
from pathlib import Path

import numpy as np
import pytest
from select_jobs import flip_bits, hash_bytes, make_row, run, write_job

from headrace.curation.job import Job
from headrace.curation.select import forecast
from headrace.curation.select.database import Limits
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, plan_select
from headrace.curation.select.steps import SelectStep
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.rule import Rule
from headrace.curation.select.steps.top_fraction import TopFraction
from headrace.shards.units import INLINE

RULES: tuple[SelectStep, ...] = (
    Rule(name="wide", keep="image_width >= 60", value="image_width", threshold=60),
    TopFraction(score="clip_score", fraction=0.4, of="input"),
    Rule(name="late", keep="image_width < 180"),
)


def plan(job: Job, *steps: SelectStep) -> list[str]:
    folders = sorted((Path(job.url) / "annotations").iterdir())
    annotations = {path.name.split("-")[0]: str(path) for path in folders}
    selection = Selection(steps=steps, placement=Placement(seed=1, shuffle_window=2, samples_per_shard=3))
    return plan_select(job, selection, annotations, limits=Limits(threads=1), engine=INLINE)


def scored_job(folder: Path) -> Job:
    rng = np.random.default_rng(0)
    rows = [
        make_row(number, image_width=int(rng.integers(50, 200)), clip_score=float(rng.random()))
        for number in range(200)
    ]
    failed = make_row(200, status="failed_to_download", error_class="timeout")
    return write_job(folder, [rows[:90], rows[90:], [failed]])


def test_what_a_dry_run_says_of_all_rows_is_what_the_run_keeps(tmp_path: Path) -> None:
    job = scored_job(tmp_path)
    lines = plan(job, *RULES)
    assert "on all rows:" in lines
    for line in run(job, RULES).steps:
        assert any(text.strip().startswith(f"{line.name} keeps {line.rows_out} of {line.rows_in} (") for text in lines)
    assert re.match(r"about 201 rows; the ledger takes 8.04 kB, .* hours of one core, so ", lines[4])
    widths = next(line for line in lines if line.strip().startswith("image_width: "))
    assert re.match(
        r" +image_width: 10% below \d+, 25% below \d+, 50% below 1[123]\d, 75% below \d+, 90% below 1[89]\d$", widths
    )
    best = next(line for line in lines if line.strip().startswith("clip_score: "))
    assert "the best 10% from 0.9" in best
    assert "the best 50% from 0." in best


def test_of_many_rows_some_shards_are_looked_at_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "SAMPLE_ROWS", 30)
    job = write_job(tmp_path, [[make_row(shard * 10 + place) for place in range(10)] for shard in range(12)])
    lines = plan(job, *RULES[:1], NearDuplicates())
    assert "on the 30 rows of 3 of 12 raw shards, without near_duplicates:" in lines
    assert "  wide keeps 30 of 30 (100.0 %)" in lines


def test_other_distances_are_told_where_a_ledger_knows_them(tmp_path: Path) -> None:
    hashes = hash_bytes(np.random.default_rng(1), 40)
    near = [flip_bits(item, range(bits)) for item, bits in zip(hashes, [4, 7, 12, 15, 18, 20] * 5, strict=False)]
    rows = [make_row(number, pdq=item, pdq_trimmed=item) for number, item in enumerate([*hashes, *near])]
    job = write_job(tmp_path / "job", [rows])
    assert not any("in ledger" in line for line in plan(job, NearDuplicates(distance=20)))
    dropped = {
        distance: sum(
            run(write_job(tmp_path / str(distance), [rows]), [NearDuplicates(distance=distance)])
            .steps[-1]
            .dropped.values()
        )
        for distance in (8, 16)
    }
    name = run(job, [NearDuplicates(distance=20)]).inputs[:16]
    others = f"about {dropped[16]} at 16, about {dropped[8]} at 8"
    told = f"near_duplicates in ledger {name} dropped 30 at distance 20, {others}"
    assert told in plan(job, NearDuplicates(distance=12))


def test_a_dry_run_refuses_an_expression_that_has_no_value_and_waits_for_tables(tmp_path: Path) -> None:
    job = scored_job(tmp_path)
    with pytest.raises(ValueError, match="step 'year': an expression has no value for a row"):
        plan(job, Rule(name="year", keep="caption::integer > 3", value="caption::integer"))
    for file in (tmp_path / "annotations").glob("clip-*/commits/00001.json"):
        file.unlink()
    assert "not ready: " in plan(job, *RULES)[-1]

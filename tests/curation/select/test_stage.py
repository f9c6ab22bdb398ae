"""A run of select as a whole: what it refuses, when it does nothing, what a kill leaves, how long it takes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from select_jobs import (
    ANNOTATIONS,
    commit_table,
    flip_bits,
    hash_bytes,
    ledger,
    make_row,
    run,
    write_job,
    write_large_job,
)

from headrace.curation.job import Job
from headrace.curation.ledger import LEDGER_SCHEMA, latest_decision, list_ledgers
from headrace.curation.select.database import Limits
from headrace.curation.select.load import NotReadyError, find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.rank import BEST_COPY_COLUMNS
from headrace.curation.select.step import Bench, Step, StepResult, take_captions, write_verdict
from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, SelectStep, TopFraction, Unsafe
from headrace.curation.select.steps.top_fraction import exact_count
from headrace.shards.errors import ShardError
from headrace.shards.permutation import make_key, permute

STEPS: tuple[SelectStep, ...] = (
    Rule(name="size", keep="least(image_width, image_height) >= 60"),
    ExactDuplicates(),
    NearDuplicates(),
    TopFraction(score="clip_score", fraction=0.4, of="input"),
)


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_ledger_has_exactly_the_contracts_columns(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(0)]])
    run(job, STEPS)
    ledger = latest_decision(job).ledger
    assert pq.read_schema(ledger.table).equals(LEDGER_SCHEMA)
    assert sorted(path.name for path in Path(ledger.url).iterdir()) == ["ledger.parquet", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "ledger").iterdir()) == sorted([ledger.name, "latest.json"])


def test_the_same_job_in_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [make_row(number, clip_score=number % 7 / 7) for number in range(50)]
    others = ("two", "wh?t", "my [data] (v1)", "st*r", "quo'te\"")  # letters that mean something to the database
    for name in ("one", *others):
        run(write_job(tmp_path / name, [rows[:20], rows[20:]]), STEPS)
    assert all(files_of(tmp_path / "one") == files_of(tmp_path / name) for name in others)


def test_nothing_is_done_twice_and_a_change_is_seen(tmp_path: Path) -> None:
    rows = [make_row(number, clip_score=number % 7 / 7) for number in range(20)]
    job = write_job(tmp_path, [rows[:10], rows[10:]])
    first = run(job, STEPS)
    table = Path(latest_decision(job).ledger.table)
    before = table.stat().st_mtime_ns
    assert run(job, STEPS) == first
    assert run(job, STEPS, limits=Limits(threads=2, memory_bytes=1 << 30)) == first
    assert table.stat().st_mtime_ns == before
    changed = [
        run(job, STEPS[:-1]),
        run(job, STEPS, placement=Placement(seed=2, shuffle_window=2, samples_per_shard=3)),
        run(job, STEPS, placement=Placement(seed=1, shuffle_window=1, samples_per_shard=3)),
        run(write_job(tmp_path, [rows[:10], rows[10:19]]), STEPS),
    ]
    assert len({summary.digest for summary in (first, *changed)}) == 5
    assert len(list_ledgers(job)) == 5
    assert table.stat().st_mtime_ns == before, "a ledger is never overwritten by another decision"


def test_a_damaged_or_half_written_ledger_is_written_again(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(number) for number in range(5)]])
    run(job, STEPS)
    whole = files_of(tmp_path)
    ledger = latest_decision(job).ledger
    table, summary = Path(ledger.table), Path(ledger.summary)
    for damage in (
        lambda: table.write_bytes(table.read_bytes()[:-1]),
        lambda: table.unlink(),
        lambda: summary.unlink(),
        lambda: (tmp_path / "ledger" / ".work").mkdir() or (tmp_path / "ledger" / ".work" / "select.duckdb").touch(),
        lambda: (table.parent / ".ledger.parquet.x.tmp").write_bytes(b"half"),
    ):
        damage()
        run(job, STEPS)
        assert files_of(tmp_path) == whole
        assert not (tmp_path / "ledger" / ".work").exists()


def test_a_reader_refuses_a_ledger_without_its_summary(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(0)]])
    with pytest.raises(ValueError, match="run `headrace select` first"):
        latest_decision(job)
    run(job, STEPS)
    summary = Path(latest_decision(job).ledger.summary)
    summary.write_text("{}")
    with pytest.raises(ValueError, match="is not a summary that this version of headrace wrote"):
        latest_decision(job)
    summary.unlink()
    with pytest.raises(ValueError, match="run `headrace select` first"):
        latest_decision(job)


def test_a_retried_row_counts_once_by_its_success(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"status": "failed_to_download", "error_class": "timeout"}
    rows = [make_row(0, **failed), make_row(1, **failed), make_row(2)]
    job = write_job(tmp_path, [rows, [make_row(0)]])
    summary = run(job, [])
    found = {row["input_row"]: row for row in ledger(job)}
    assert summary.rows == len(ledger(job)) == 3
    assert (found[0]["kept"], found[0]["raw_shard"]) == (True, "00001")
    assert (found[1]["step"], found[1]["reason"], found[1]["raw_shard"]) == ("fetch", "timeout", "00000")


def test_carried_columns_may_have_any_name_that_the_ledger_uses(tmp_path: Path) -> None:
    names = ["value", "threshold", "reason", "step", "kept", "duplicate_of", "raw_shard", "size", "members", "place"]
    carried = [pa.field(name, pa.float64()) for name in [*names, "node", "label", "best", "distance", "out_shard"]]
    values = {field.name: 7.0 for field in carried}
    rows = [make_row(number, sha256="0" * 64, **values) for number in range(3)] + [make_row(3, **values)]
    job = write_job(tmp_path, [rows], carried=carried)
    every = tuple(f"{field.name} desc" for field in carried)
    steps = [
        Rule(name="sum", keep=" + ".join(f'"{name}"' for name in values) + " > 0", value="value", threshold=0),
        ExactDuplicates(order=every),
        TopFraction(score="value", fraction=1.0),
        NearDuplicates(order=every),
    ]
    assert run(job, steps).kept == 1
    assert [row["reason"] for row in ledger(job)] == [None, "same-bytes", "same-bytes", "near-duplicate"]


def test_a_uid_listed_twice_is_two_rows(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(0), make_row(0, input_row=9), make_row(0, input_file="other.parquet")]])
    assert run(job, []).kept == 3
    assert run(job, [ExactDuplicates()]).kept == 1


def test_an_empty_selection_and_an_empty_job_have_a_ledger(tmp_path: Path) -> None:
    job = write_job(tmp_path / "none", [[]])
    summary = run(job, STEPS)
    assert (summary.rows, summary.kept, summary.out_shards) == (0, 0, 0)
    assert ledger(job) == []
    job = write_job(tmp_path / "dropped", [[make_row(0)]])
    summary = run(job, [Rule(name="nothing", keep="false"), NearDuplicates(), *STEPS[3:]])
    assert (summary.rows, summary.kept, summary.out_shards) == (1, 0, 0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Unsafe()], r"step 'unsafe' needs the column 'unsafe_image_score'.*annotate.unsafe_image"),
        ([NearDuplicates()], r"step 'near_duplicates' needs the column 'pdq'.*annotate.hashes"),
        ([Rule(name="score", keep="clip_score > 0.3")], r"rule 'score': unknown column 'clip_score'.*annotate.clip"),
        ([TopFraction(score="clip_score", fraction=0.5)], r"step 'top_fraction': score: unknown column 'clip_score'"),
        ([ExactDuplicates(order=("image_widht desc",))], r"'exact_duplicates': order: unknown column 'image_widht'"),
        ([ExactDuplicates(), ExactDuplicates()], r"select.1: the name 'exact_duplicates' is empty or taken"),
        ([Rule(name="decode", keep="true")], r"select.0: the name 'decode' is empty or taken"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_any_row_is_read(
    tmp_path: Path, steps: list[SelectStep], message: str
) -> None:
    job = write_job(tmp_path, [[make_row(0)]], annotators=["image"])
    with pytest.raises(ValueError, match=message):
        run(job, steps)
    assert not (tmp_path / "ledger").exists()


SCORE_AS_TEXT = [pa.field("clip_score", pa.string())]
NO_CLIP = [name for name in ANNOTATIONS if name != "clip"]


def test_a_score_that_a_list_carries_as_text_breaks_no_tie(tmp_path: Path) -> None:
    rows = [make_row(number, clip_score=f"0.{number}") for number in range(2)]
    job = write_job(tmp_path, [rows], annotators=NO_CLIP, carried=SCORE_AS_TEXT)
    assert run(job, [NearDuplicates()]).kept == 1
    for step in (NearDuplicates(captions="best_score"), ExactDuplicates(captions="best_score")):
        with pytest.raises(ValueError, match=r"captions: 'clip_score' must be a number, but it is of type VARCHAR"):
            run(job, [step])


def test_an_unsafe_score_that_is_text_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    names = [name for name in ANNOTATIONS if name != "unsafe_image"]
    carried = [pa.field("unsafe_image_score", pa.string())]
    job = write_job(tmp_path, [[make_row(0, unsafe_image_score="0.1")]], annotators=names, carried=carried)
    with pytest.raises(ValueError, match=r"step 'unsafe': 'unsafe_image_score' must be a number, .* VARCHAR"):
        run(job, [Unsafe()])
    assert not (tmp_path / "ledger").exists()


def test_a_column_of_another_type_than_a_step_needs_is_named_in_a_line(tmp_path: Path) -> None:
    names = [name for name in ANNOTATIONS if name != "quality"]
    text = dict.fromkeys(BEST_COPY_COLUMNS, "0.5")
    rows = [make_row(number, pdq=make_row(0)["pdq"], **text) for number in range(2)]
    job = write_job(tmp_path, [rows], annotators=names, carried=[pa.field(name, pa.string()) for name in text])
    with pytest.raises(
        ValueError, match=r"step 'near_duplicates': a column is not of the type that it needs: .*VARCHAR"
    ):
        run(job, [NearDuplicates()])


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeFirstCaption(Step):
    """Give every row the caption of the first."""

    step: Literal["take_first_caption"] = "take_first_caption"
    name: str = "take_first_caption"

    def run(self, bench: Bench) -> StepResult:
        query = "SELECT __row, '' AS reason, 0.0 AS value, 0.0 AS threshold, '' AS duplicate_of FROM here WHERE false"
        write_verdict(bench, query)
        take_captions(bench, "SELECT __row, 0 AS source FROM here WHERE __row > 0")
        return StepResult(None, {"said": 1})


def test_the_captions_that_any_step_takes_are_counted_and_noted(tmp_path: Path) -> None:
    shards = [[make_row(0), make_row(1)], [make_row(2)]]
    job = write_job(tmp_path, shards)
    summary = run(job, [TakeFirstCaption(), TopFraction(score="caption_chars", fraction=1.0)])
    assert summary.steps[-2].details == {"said": 1, "captions_taken": 2}
    rows = ledger(job)
    assert [row["caption_of"] for row in rows] == [None, rows[0]["uid"], rows[0]["uid"]]
    assert {json.loads(row["caption_facts"])["caption"] for row in rows[1:]} == {"caption 0"}


def test_missing_or_foreign_annotations_are_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(0)], [make_row(1), make_row(2)]])
    clip = tmp_path / "annotations" / "clip-00000000"
    (clip / "00001.parquet").write_bytes((clip / "00000.parquet").read_bytes())
    commit_table(clip / "00001.parquet")
    with pytest.raises(ValueError, match="does not hold the rows of raw shard 00001"):
        run(job, STEPS)
    (clip / "00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"00001.parquet is missing; run `headrace annotate` first"):
        run(job, STEPS)
    with pytest.raises(ValueError, match="no raw shards; run `headrace fetch` first"):
        find_inputs(Job(str(tmp_path / "other")), {})


def test_an_annotation_that_was_not_committed_or_is_damaged_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(0)], [make_row(1), make_row(2)]])
    table = tmp_path / "annotations" / "clip-00000000" / "00001.parquet"
    data = table.read_bytes()
    # The score's bytes: parquet itself has no checksum that would tell.
    table.write_bytes(data.replace(np.float32(0.5).tobytes(), np.float32(0.7).tobytes()))
    with pytest.raises(ShardError, match=r"00001.parquet: its sha256 is not.*remove this file and run `headrace anno"):
        run(job, STEPS)
    table.write_bytes(data)
    (table.parent / "commits" / "00001.json").unlink()
    with pytest.raises(NotReadyError, match=r"00001.json is missing; run `headrace annotate` first"):
        run(job, STEPS)


def test_sha256_of_the_hashes_annotator_is_used(tmp_path: Path) -> None:
    rows = [make_row(0, sha256=None), make_row(1, sha256=None)]
    job = write_job(tmp_path, [rows], annotators=["image"])
    with pytest.raises(ValueError, match="2 rows have no sha256; add annotate"):
        run(job, [ExactDuplicates()])


@pytest.mark.parametrize(
    ("fraction", "base", "expected"),
    [(0.15, 10, 2), (0.15, 100, 15), (0.35, 10, 4), (0.25, 10, 3), (1.0, 7, 7), (0.1, 4, 0), (0.3, 0, 0)],
)
def test_fractions_round_half_up_as_written(fraction: float, base: int, expected: int) -> None:
    assert exact_count(fraction, base) == expected


def test_top_fraction_is_exact_whatever_the_scores(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    scores = [0.5, nan, None, 0.5, infinite, -infinite, 0.5, 0.1]
    job = write_job(tmp_path, [[make_row(number, clip_score=score) for number, score in enumerate(scores)]])

    def kept(fraction: float) -> list[int]:
        run(job, [TopFraction(score="clip_score", fraction=fraction)])
        return [row["input_row"] for row in ledger(job) if row["kept"]]

    assert [kept(fraction) for fraction in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)] == [
        [4],
        [0, 4],
        [0, 3, 4],
        [0, 3, 4, 6],
        [0, 3, 4, 6, 7],
        [0, 3, 4, 5, 6, 7],
        [0, 3, 4, 5, 6, 7],
    ]
    assert kept(0.01) == []
    assert [row["reason"] for row in ledger(job)] == ["no-score" if s in (1, 2) else "below-cut" for s in range(8)]


def test_of_input_counts_fetched_and_decoded_rows(tmp_path: Path) -> None:
    rows = [make_row(number, clip_score=number / 10) for number in range(10)]
    rows[0] |= {"status": "failed_to_download", "error_class": "dns"}
    rows[1] |= {"decode_error": "truncated: early"}
    job = write_job(tmp_path, [rows])
    half = Rule(name="half", keep="clip_score < 0.65")
    assert run(job, [half, TopFraction(score="clip_score", fraction=0.5, of="input")]).kept == 4
    assert run(job, [half, TopFraction(score="clip_score", fraction=0.5)]).kept == 3
    assert run(job, [half, TopFraction(score="clip_score", fraction=1.0, of="input")]).kept == 5


def test_kept_rows_are_shuffled_within_windows_and_cut(tmp_path: Path) -> None:
    rows = [make_row(number, image_width=50 if number % 3 == 0 else 100) for number in range(60)]
    job = write_job(tmp_path, [rows[start : start + 6] for start in range(0, 60, 6)])
    placement = Placement(seed=9, shuffle_window=4, samples_per_shard=7)
    run(job, [Rule(name="wide", keep="image_width >= 60")], placement=placement)
    kept = [row for row in ledger(job) if row["kept"]]
    expected, start = {}, 0
    for window in range(3):
        mine = [row["uid"] for row in kept if int(row["raw_shard"]) // 4 == window]
        for index, uid in enumerate(mine):
            expected[uid] = start + permute(index, len(mine), make_key(9, "build", window))
        start += len(mine)
    assert {row["uid"]: int(row["out_shard"]) * 7 + row["out_index"] for row in kept} == expected
    assert {row["out_shard"] for row in kept} == {f"{number:05d}" for number in range(6)}


def test_two_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    job = write_large_job(tmp_path, 200_000)
    # Processor seconds of all threads: the machine may be busy with other tests.
    start = time.process_time()
    summary = run(job, STEPS, placement=Placement(seed=0, shuffle_window=16, samples_per_shard=10_000))
    assert time.process_time() - start < 20
    assert summary.rows == 200_000
    assert summary.kept == 80_000


@pytest.mark.full
def test_killed_select_run_again_gives_the_same_files(
    tmp_path: Path, hold: Callable[[str, int], dict[str, str]]
) -> None:
    job = write_large_job(tmp_path, 60_000)
    program = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "from select_jobs import run; from headrace.curation.job import Job\n"
        "from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, TopFraction\n"
        f"run(Job({job.url!r}), {STEPS!r})\n"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, timeout=120)
    whole = files_of(tmp_path)
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    held = hold(f"{tmp_path}/ledger/*/ledger.parquet", 1)
    for _ in range(5):
        shutil.rmtree(tmp_path / "ledger")
        process = subprocess.Popen(command, env=held)
        while not (tmp_path / "ledger" / ".work" / "select.duckdb").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list_ledgers(job), "the kill came too late to prove anything"
        subprocess.run(command, check=True, timeout=120)
        assert files_of(tmp_path) == whole


def test_the_summary_is_plain_json_that_reads_back(tmp_path: Path) -> None:
    job = write_job(tmp_path, [[make_row(number, clip_score=float("inf")) for number in range(3)]])
    summary = run(job, STEPS)
    assert latest_decision(job).summary == summary

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    data = json.loads(Path(latest_decision(job).ledger.summary).read_text(), parse_constant=refuse)
    assert [step["name"] for step in data["steps"]] == ["fetch", "decode", "size", *(step.name for step in STEPS[1:])]


def test_near_hashes_of_many_shards_are_compared_across_them(tmp_path: Path) -> None:
    base = hash_bytes(np.random.default_rng(0), 1)[0]
    rows = [
        make_row(number, pdq=flip_bits(base, [number]), pdq_trimmed=flip_bits(base, [number])) for number in range(6)
    ]
    job = write_job(tmp_path, [[row] for row in rows])
    assert run(job, [NearDuplicates()]).kept == 1

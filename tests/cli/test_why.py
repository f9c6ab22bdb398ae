"""`headrace why`: every row of a uid, each step's verdict, the place in the dataset, and what build made of it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.cli.why import _one_line
from headrace.curation.annotate.config import annotate_config
from headrace.curation.annotate.tables import annotation_folders
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, TopFraction
from headrace.shards.commit import commit
from headrace.shards.units import EngineConfig

sys.path.append(str(Path(__file__).parents[1] / "curation/select"))
from select_jobs import flip_bits, make_row, run, write_job

# uid, status, width, score in thousandths
ROWS = [
    ("aaaa0001", "success", 300, 900),
    ("aaaa0002", "success", 50, 800),
    ("bbbb0003", "failed_to_download", None, None),
    ("cccc0004", "success", 300, 100),
    ("dddd0005", "success", 300, 700),
    ("dddd0005", "success", 300, 600),
]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job after select: six rows, two of one uid."""
    records = []
    for number, (uid, status, width, score) in enumerate(ROWS):
        failed = status != "success"
        records.append(
            {
                "key": f"00000{number:04d}",
                "uid": uid,
                "url": "n/a" if failed else f"http://host/{number}",
                "caption": "a \x1b[31mred\x1b[0m [bold]house[/bold]",
                "status": status,
                "error_class": "http-4xx" if failed else None,
                "error_message": "HTTP 404" if failed else None,
                "width": width,
                "height": width,
                "original_width": score,
                "sha256": None if failed else f"{min(number, 4):064x}",
                "input_file": "list.csv",
                "input_row": number,
            }
        )
    columns = {field.name: pa.array([record.get(field.name) for record in records], field.type) for field in OWN_SCHEMA}
    job = Job(str(tmp_path))
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table(columns, schema=OWN_SCHEMA), tmp_path / "raw" / "00000.parquet")
    commit(job.raw, "00000", {})
    folder = annotation_folders(annotate_config(faces=None), job)["caption"]
    keys = [record["key"] for record in records if record["status"] == "success"]
    table = pa.table({"key": keys, "caption_chars": pa.array([9] * 5, pa.int32())})
    write_annotations(folder, "00000", table, {})
    plan = Selection(
        steps=(
            Rule(name="size", keep="width >= 100", value="width", threshold=100.0),
            TopFraction(score="original_width / 1000", fraction=0.75),
            ExactDuplicates(order=("original_width desc",)),
        ),
        placement=Placement(seed=0, shuffle_window=1, samples_per_shard=10),
    )
    inputs = find_inputs(job, {"caption": folder})
    select_rows(inputs, plan, limits=Limits(threads=1), engine=EngineConfig(executor="inline"))
    return job


def why(job: Job, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["why", job.url, *arguments], env={"COLUMNS": "200"})


def rows_of(job: Job, query: str) -> list[dict[str, Any]]:
    result = why(job, query, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_dropped_row_names_step_value_and_threshold(job: Job) -> None:
    (row,) = rows_of(job, "aaaa0002")
    outcomes = [(step["name"], step["outcome"]) for step in row["steps"]]
    assert outcomes == [
        ("fetch", "passed"),
        ("decode", "passed"),
        ("size", "dropped"),
        ("top_fraction", "not reached"),
        ("exact_duplicates", "not reached"),
    ]
    drop = row["steps"][2]
    assert (drop["reason"], drop["value"], drop["threshold"]) == ("false", 50.0, 100.0)
    assert (row["kept"], row["build"], row["dataset_key"]) == (False, "dropped", None)
    assert row["columns"] == {"caption_chars": 9}


def test_only_the_hashes_that_decided_are_shown_unless_asked_for_all(tmp_path: Path) -> None:
    rows = [make_row(0, pdq=bytes(range(32)), pdq_trimmed=b"\xab" * 32) for _ in range(2)]
    rows[1] |= {"uid": f"{1:032x}", "input_row": 1, "pdq": flip_bits(rows[0]["pdq"], [3])}
    here = write_job(tmp_path, [rows])
    run(here, [NearDuplicates(hashes=("pdq",), order=("input_row",))])
    for row, was_dropped in zip(rows, (False, True), strict=True):
        brief, full = (" ".join(why(here, row["uid"], *more).output.split()) for more in ((), ("--all",)))
        pdq, trimmed = f"pdq {row['pdq'].hex()}", f"pdq_trimmed {'ab' * 32}"
        assert (pdq in brief, trimmed in brief) == (was_dropped, False)
        assert f"and {2 if was_dropped else 3} hashes (--all)" in brief
        assert (pdq in full, trimmed in full, "--all" in full) == (True, True, False)
        (told,) = rows_of(here, row["uid"])
        assert told["columns"]["pdq_trimmed"] == "ab" * 32
        assert sorted(told["hashes"]) == ["caption_minhash", "pdq", "pdq_trimmed"]


def test_a_failed_fetch_says_how(job: Job) -> None:
    (row,) = rows_of(job, "bbbb0003")
    assert (row["status"], row["error_class"], row["error_message"]) == ("failed_to_download", "http-4xx", "HTTP 404")
    assert (row["steps"][0]["outcome"], row["steps"][0]["reason"]) == ("dropped", "http-4xx")
    shown = why(job, "bbbb0003").output
    assert "http-4xx (HTTP 404)" in shown
    assert "dropped by fetch: http-4xx" in shown


def test_every_row_of_a_uid_is_shown(job: Job) -> None:
    kept, dropped = rows_of(job, "dddd0005")
    assert (kept["kept"], dropped["kept"]) == (True, False)
    assert kept["steps"][3]["value"] == 0.7
    assert kept["steps"][3]["threshold"] == 0.6
    assert (dropped["steps"][4]["reason"], dropped["steps"][4]["duplicate_of"]) == ("same-bytes", "dddd0005")
    assert "a copy of dddd0005" in why(job, "dddd0005").output


def test_a_folder_that_is_no_job_is_told_so(tmp_path: Path) -> None:
    result = why(Job(str(tmp_path / "elsewhere")), "aaaa0002")
    assert result.exit_code == 1
    assert "elsewhere is no job (no job.json there)" in str(result.exception)


def test_a_url_that_is_none_finds_its_row(job: Job) -> None:
    assert [row["uid"] for row in rows_of(job, "n/a")] == ["bbbb0003"]


def test_a_prefix_and_a_url_find_the_row(job: Job) -> None:
    assert [row["uid"] for row in rows_of(job, "cccc")] == ["cccc0004"]
    assert [row["uid"] for row in rows_of(job, "http://host/3")] == ["cccc0004"]
    assert len(rows_of(job, "dddd00")) == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("aaaa", "'aaaa' is the start of 2 uids: aaaa0001, aaaa0002; give more of it"),
        ("ffff0000", "no row with the uid, URL or key 'ffff0000'; the ledger has 6 rows"),
        ("ccc", "no row with the uid, URL or key 'ccc'"),
        ("http://host/99", "no row with the uid, URL or key"),
    ],
)
def test_what_is_not_there_is_one_line(job: Job, query: str, message: str) -> None:
    result = why(job, query)
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_without_a_ledger_it_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"schema": 1}')
    result = why(Job(str(tmp_path)), "aaaa0001")
    assert result.exit_code == 1
    assert "run `headrace select` first" in str(result.exception)


def test_what_build_made_of_a_kept_row(job: Job) -> None:
    (row,) = rows_of(job, "aaaa0001")
    assert row["build"] == "not built yet"
    commit(job.dataset, row["out_shard"], {"ledger": latest_decision(job).summary.digest})
    (row,) = rows_of(job, "aaaa0001")
    assert row["build"] == "built"
    assert row["dataset_key"] == f"{row['out_shard']}{row['out_index']:06d}"
    failure = {"raw_shard": "00000", "key": "000000000", "reason": "sha256", "message": "sha256 is 1, not 2"}
    Path(job.build_failures()).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([failure]), f"{job.build_failures()}/{row['out_shard']}.parquet")
    (row,) = rows_of(job, "aaaa0001")
    assert (row["build"], row["build_reason"], row["build_message"]) == ("failed", "sha256", "sha256 is 1, not 2")
    assert "failed: sha256: sha256 is 1, not 2" in why(job, "aaaa0001").output


def test_a_key_that_a_batch_printed_leads_back_to_the_row(job: Job) -> None:
    (row,) = rows_of(job, "aaaa0001")
    assert rows_of(job, row["dataset_key"]) == [row]
    with_missing = row["dataset_key"][:-6] + "000999"
    assert "no row with the uid, URL or key" in str(why(job, with_missing).exception)


def test_it_says_which_ledger_and_dataset_it_speaks_of(job: Job) -> None:
    name = latest_decision(job).ledger.name
    assert f"ledger {name} (no dataset is built from it)" in " ".join(why(job, "aaaa0001").output.split())
    commit(job.dataset_named("other"), "00000", {"ledger": latest_decision(job).summary.digest})
    (row,) = rows_of(job, "aaaa0001")
    assert (row["ledger"], row["dataset"]) == (name, "datasets/other")


def test_text_from_the_web_cannot_speak_to_the_terminal(job: Job) -> None:
    shown = why(job, "aaaa0001").output
    assert "\x1b[31m" not in shown
    assert "[bold]house[/bold]" in shown


def test_it_ends_with_the_next_command(job: Job) -> None:
    assert why(job, "aaaa0001").output.splitlines()[-1] == f"next: headrace report {job.url}"


def test_signatures_of_urls_are_not_shown() -> None:
    assert _one_line("http://host/1.jpg?x-amz-signature=0123") == "http://host/1.jpg?x-amz-signature=***"


def test_an_imported_sample_is_told_its_input_and_its_place(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        folder = tmp_path / "folder" / f"class{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 24), (number * 80, 0, 0)).save(folder / f"{number}.png")
    runner = CliRunner()
    done = runner.invoke(app, ["import", str(tmp_path / "folder"), str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    answer = runner.invoke(app, ["why", str(tmp_path / "data"), "000000001", "--json"])
    assert answer.exit_code == 0, (answer.output, answer.exception)
    (sample,) = json.loads(answer.stdout)
    assert (sample["kind"], sample["imported_from"], sample["label"]) == ("imported", "class1/1.png", 1)
    assert (sample["shard"], sample["url"]) == ("00000", None)
    assert "imported from 3 inputs (folder)" in sample["comes_from"]
    shown = runner.invoke(app, ["why", str(tmp_path / "data"), sample["uid"]])
    assert "class1/1.png" in shown.output
    missing = runner.invoke(app, ["why", str(tmp_path / "data"), "nothing"])
    assert "none of its 3 samples has the url, uid, key 'nothing'" in str(missing.exception)


@pytest.fixture
def built(job: Job) -> list[str]:
    """The published dataset of the job, as build leaves it; its keys."""
    import io

    from PIL import Image

    from headrace.curation.ledger import dataset_key
    from headrace.shards.write import Sample, finish_dataset, write_shard

    decision = latest_decision(job)
    rows = [row for row in pq.read_table(decision.ledger.table).to_pylist() if row["kept"]]
    samples = []
    for row in sorted(rows, key=lambda row: int(row["out_index"])):
        sink = io.BytesIO()
        Image.new("RGB", (40, 30), (row["input_row"] * 40, 0, 0)).save(sink, "JPEG")
        key = dataset_key(row["out_shard"], row["out_index"])
        samples.append(Sample(key, sink.getvalue(), "jpg", {"uid": row["uid"], "url": row["url"]}))
    assert {row["out_shard"] for row in rows} == {"00000"}
    write_shard(job.dataset, "00000", samples)
    finish_dataset(job.dataset, recipe_digest="test", facts={"ledger": decision.summary.digest})
    return [sample.key for sample in samples]


def trace(folder: Path, dataset: str, *arguments: str) -> dict[str, Any]:
    mixture = folder / "mixture.yaml"
    source = f"{{name: web, url: {dataset}, chunk_samples: 1, shuffle_window: 1}}"
    mixture.write_text(f"lanes: 1\nimage_size: 16\nindex_cache: none\nsources: [{source}]\n")
    words = ["trace", str(mixture), "--global-batch", "2", "--step", "1", *arguments, "--json"]
    done = CliRunner().invoke(app, [*words, "--out", str(folder / "page.html")])
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_step_is_traced_to_the_rows_of_the_ledger_and_their_verdicts(
    job: Job, built: list[str], tmp_path: Path
) -> None:
    traced = trace(tmp_path, job.dataset)
    assert {sample["key"] for sample in traced["samples"]} == set(built)
    for sample in traced["samples"]:
        (row,) = rows_of(job, sample["key"])
        verdict = sample["verdict"]
        assert (verdict["uid"], verdict["input_row"], verdict["raw_key"]) == (row["uid"], row["input_row"], row["key"])
        assert verdict["steps"] == row["steps"]
        assert {step["outcome"] for step in verdict["steps"]} == {"passed"}
    page = (tmp_path / "page.html").read_text()
    assert "kept: size 300, top_fraction 0." in page
    assert "of list.csv" in page


def test_a_dataset_leads_to_its_job_and_one_that_was_copied_to_the_job_that_is_named(
    job: Job, built: list[str], tmp_path: Path
) -> None:
    shown = CliRunner().invoke(app, ["why", job.dataset, built[0], "--json"])
    assert json.loads(shown.stdout) == rows_of(job, built[0])
    copied = str(tmp_path / "copied")
    shutil.copytree(job.dataset, copied)
    traced = trace(tmp_path, copied)
    assert "its job is not there" in traced["origins"]["web"]
    assert {sample["verdict"] for sample in traced["samples"]} == {None}
    named = trace(tmp_path, copied, "--job", job.url)
    assert all(sample["verdict"]["kept"] for sample in named["samples"])
    Path(job.raw, "00000.parquet").unlink()
    without = trace(tmp_path, copied, "--job", job.url)["samples"][0]["verdict"]
    assert (without["kept"], without["steps"]) == (True, [])
    assert "00000.parquet" in without["note"]

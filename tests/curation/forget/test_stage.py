"""forget: what a job held of a row is gone, everything else stays as it was, and nothing brings it back."""

import hashlib
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.curation.build.config import LabelsConfig
from headrace.curation.datasets import Explained, explain_dataset
from headrace.curation.forget import stage
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, ForgetSummary, run_forget
from headrace.curation.forgotten import check_finished, read_tombstones
from headrace.curation.job import Job, own_job
from headrace.curation.ledger import latest_decision
from headrace.curation.recipe import Recipe
from headrace.curation.report.config import ReportConfig
from headrace.curation.select.steps import Rule
from headrace.curation.stages import build as run_build
from headrace.curation.stages import report_job
from headrace.curation.why import explain
from headrace.shards.commit import committed, remove_commit
from headrace.shards.dataset import open_dataset
from headrace.shards.tar import ShardWriter
from headrace.shards.verify import verify_dataset

sys.path.append(str(Path(__file__).parents[1] / "select"))
from select_jobs import ledger, make_row, run, write_job

MakeJob = Callable[..., Recipe]


def forget(recipe: Recipe, *urls: str, **options: Any) -> ForgetSummary:
    with own_job(Job(recipe.job), forgetting=True) as job:
        return run_forget(job, Texts(set(urls)), ForgetOptions(**options))


def digests(folder: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def index(recipe: Recipe, name: str = "") -> dict[str, dict[str, Any]]:
    dataset = open_dataset(Job(recipe.job).dataset_named(name))
    assert list(verify_dataset(dataset.url)) == []
    return {row["key"]: row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()}


def url_of(number: int) -> str:
    return f"http://host{number % 4}.test/{number}.img?a=1&b=<2>"


def holders(job: str, *texts: bytes) -> list[str]:
    """Return the files of a job that hold one of the texts, in the clear or in a column."""
    found = []
    for path in sorted(Path(job).rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data = repr(pq.read_table(path).to_pylist()).encode()
        if any(text in data for text in texts):
            found.append(str(path.relative_to(job)))
    return found


def test_only_the_touched_shards_are_rewritten_and_as_build_would_have_written_them(make_job: MakeJob) -> None:
    recipe = make_job(columns=("clip_embedding", "source"))
    run_build(recipe)
    before, rows = digests(Job(recipe.job).dataset), index(recipe)
    gone = next(row for row in rows.values() if row["key"].startswith("00001"))
    summary = forget(recipe, gone["url"], date="2026-11-26")
    assert (summary.rows, summary.samples, summary.datasets) == (1, 1, {"dataset": ["00001"]})
    after = digests(Job(recipe.job).dataset)
    changed = {name for name in before if after.get(name) != before[name]}
    assert {name for name in changed if name.startswith("shards/")} == {"shards/00001.tar", "shards/00001.parquet"}
    assert {key: row["uid"] for key, row in index(recipe).items()} == {
        key: row["uid"] for key, row in rows.items() if key != gone["key"]
    }
    again = replace(recipe, build=replace(recipe.build, dataset="again"))
    run_build(again)
    fresh = digests(Job(recipe.job).dataset_named("again"))
    assert {name: after[name] for name in after if name.startswith("shards")} == {
        name: fresh[name] for name in fresh if name.startswith("shards")
    }
    assert run_build(recipe).num_samples == len(rows) - 1  # it is what the ledger says: nothing is to be done
    assert digests(Job(recipe.job).dataset) == after


def test_no_file_of_the_job_holds_what_was_forgotten(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    job = Job(recipe.job)
    decision = latest_decision(job)
    row = next(row for row in pq.read_table(decision.ledger.table).to_pylist() if row["kept"])
    number = 8 * int(row["raw_shard"]) + int(row["key"][5:])
    report_job(Explained(decision, ""), ReportConfig(), job.report)
    Path(job.logs).mkdir()
    Path(job.logs, "build.jsonl").write_text(row["url"])
    texts = (row["url"].encode(), row["uid"].encode(), f"a picture, number {number} ".encode())
    assert len(holders(recipe.job, *texts)) > 6
    forget(recipe, row["url"])
    assert holders(recipe.job, *texts) == []
    revised = latest_decision(job).summary
    assert (revised.kept, revised.rows) == (decision.summary.kept - 1, decision.summary.rows)
    assert (revised.steps[-1].name, revised.steps[-1].dropped) == ("forgotten", {"forgotten": 1})
    forget(recipe, url_of(number + 1))
    assert latest_decision(job).summary.steps[-1].rows_out == latest_decision(job).summary.kept
    assert forget(recipe, row["url"]).request == ""


def test_a_kept_row_is_forgotten_after_a_dropped_one(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    decision = latest_decision(Job(recipe.job))
    rows = pq.read_table(decision.ledger.table).to_pylist()
    for kept, dropped in ((False, {}), (True, {"forgotten": 1})):
        forget(recipe, next(row["url"] for row in rows if row["kept"] == kept))
        last = latest_decision(Job(recipe.job)).summary.steps[-1]
        assert (last.rows_in, last.dropped) == (decision.summary.kept, dropped)


def test_a_killed_take_down_stops_every_other_stage_until_it_is_finished(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_job()
    run_build(recipe)
    url = next(iter(index(recipe).values()))["url"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "revise_ledger", stop)
    with pytest.raises(KeyboardInterrupt):
        forget(recipe, url)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="take-down 00000 was begun and is not finished"), own_job(Job(recipe.job)):
        pass
    summary = forget(recipe)
    assert (summary.request, summary.finished) == ("", ("00000",))
    assert url not in {row["url"] for row in index(recipe).values()}
    check_finished(recipe.job)


def test_raw_files_that_are_gone_are_no_hindrance(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    rows = list(index(recipe).values())
    Path(Job(recipe.job).raw, "00000.tar").unlink()
    for name in ("00001.tar", "00001.parquet"):
        Path(Job(recipe.job).raw, name).unlink()
    summary = forget(recipe, *(row["url"] for row in rows[:9]))
    assert summary.samples == 9
    assert "raw shards that cannot be read: 00001" in summary.held[0]
    check_finished(recipe.job)
    assert len(index(recipe)) == len(rows) - 9


def test_copies_with_the_same_bytes_go_too_and_near_ones_if_asked(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    summary = forget(recipe, url_of(18))  # rows 20 and 22 are near copies of it in the ledger
    assert (summary.rows, summary.near) == (1, 2)
    other = make_job("near")
    run_build(other)
    assert forget(other, url_of(22), copies="near").rows == 3
    assert url_of(18) not in {row["url"] for row in index(other).values()}


def test_what_is_nowhere_in_the_job_is_recorded_and_never_fetched(make_job: MakeJob) -> None:
    recipe = make_job()
    summary = forget(recipe, "https://example.org/elsewhere.jpg")
    assert (summary.request, summary.rows, summary.not_found) == ("00000", 0, 1)
    known = read_tombstones(recipe.job)
    assert known.has_row("https://example.org/elsewhere.jpg", None)
    assert not known.has_row("https://example.org/other.jpg", "0" * 32)
    assert forget(recipe, "https://example.org/elsewhere.jpg").request == ""


def test_rows_that_raw_shards_still_hold_are_dropped_by_the_next_selection(tmp_path: Path) -> None:
    rows = [[make_row(4 * shard + place) for place in range(4)] for shard in range(3)]
    job = write_job(tmp_path / "job", rows)
    Path(job.url, "job.json").write_text('{"schema": 2}\n')
    run(job, [])
    steps = [Rule(name="wide", keep="image_width > 1")]
    with own_job(job, forgetting=True):
        found = run_forget(job, Texts({"http://host/5"}), ForgetOptions(keep_raw=True))
    assert "annotations and the spilled list (--keep-raw, --dataset)" in found.held[0]
    summary = run(job, steps)
    mine = [row for row in ledger(job) if row["input_row"] == 5]
    assert [(row["step"], row["reason"], row["url"], row["kept"]) for row in mine] == [
        ("fetch", "forgotten", None, False)
    ]
    assert (summary.rows, summary.kept) == (12, 11)
    assert run(job, []).steps[-1].name == "forgotten"  # the ledger of before, without the row


def test_a_purged_job_selects_again_without_a_trace_of_the_row(tmp_path: Path) -> None:
    rows = [[make_row(4 * shard + place) for place in range(4)] for shard in range(3)]
    job = write_job(tmp_path / "job", rows)
    Path(job.url, "job.json").write_text('{"schema": 2}\n')
    for shard in range(3):
        with ShardWriter(Path(job.raw, f"{shard:05d}.tar")) as writer:
            for place in range(4):
                writer.write(f"{shard:05d}{place:04d}", {"jpg": b"x", "json": b"{}"})
    before = run(job, [])
    with own_job(job, forgetting=True):
        run_forget(job, Texts({"http://host/5", "http://host/6"}), ForgetOptions())
    assert run(job, []).inputs == before.inputs  # found again: nothing is selected anew
    summary = run(job, [Rule(name="wide", keep="image_width > 1")])
    assert (summary.rows, summary.kept, summary.steps[0].dropped) == (12, 10, {"forgotten": 2})
    assert not [path for path in holders(job.url, b"http://host/5", b"http://host/6") if "forgotten" not in path]


def test_a_take_down_that_met_a_full_disk_ends_with_the_same_bytes(
    make_job: MakeJob, no_more_than: Callable[[int], None]
) -> None:
    whole, full = make_job("whole"), make_job("full")
    for recipe in (whole, full):
        run_build(recipe)
    url = next(iter(index(whole).values()))["url"]
    forget(whole, url)
    no_more_than(20_000)  # of a shard's tar, and of nothing before it
    with pytest.raises(OSError, match="File too large"):
        forget(full, url)
    no_more_than(resource.RLIM_INFINITY)
    forget(full, url)
    assert digests(full.job) == digests(whole.job)


@pytest.mark.parametrize(
    "damaged",
    [
        *("raw/RAW.tar", "raw/RAW.parquet", "raw/commits/RAW.json", "annotations/clip-01234567/RAW.parquet"),
        *("dataset/shards/00001.tar", "dataset/commits/00001.json", "dataset/commits/00000.json"),
    ],
)
def test_a_damaged_file_never_locks_a_job_for_ever(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    recipe = make_job()
    run_build(recipe)
    ledger = pq.read_table(latest_decision(Job(recipe.job)).ledger.table).to_pylist()
    row = next(row for row in ledger if row["out_shard"] == "00001")
    damaged, url = damaged.replace("RAW", row["raw_shard"]), row["url"]
    path = Path(recipe.job, damaged)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(damaged)) as before:
        forget(recipe, url)
    check_finished(recipe.job)  # no request was written
    monkeypatch.setattr(stage, "check_files", lambda *_: None)  # it was damaged after that
    with pytest.raises(ValueError, match=rf"take-down 00000 is not finished: .*{damaged}.*run: headrace forget") as why:
        forget(recipe, url)
    advice = re.search(r"or (?:[^:]*: )?remove (?:the folder )?(\S+?);? ?(?:then|$)", str(why.value))
    assert advice is not None
    assert before.value.args[0] in str(why.value)
    there = path if advice[1] == "it" else Path(advice[1])
    (shutil.rmtree if there.is_dir() else Path.unlink)(there)
    assert forget(recipe).finished == ("00000",)
    check_finished(recipe.job)
    assert holders(recipe.job, url.encode(), row["uid"].encode()) == []


def test_what_was_taken_down_is_told_by_why_and_the_report_still_adds_up(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    row = next(iter(index(recipe).values()))
    forget(recipe, row["url"])
    job = Job(recipe.job)
    for query in (row["url"], row["uid"]):
        with pytest.raises(ValueError, match="was taken down"):
            explain(job, query)
    report_job(explain_dataset(job), ReportConfig(), job.report)
    assert "forgotten" in Path(job.report, "report.html").read_text()


@pytest.mark.parametrize("separator", ["", ","])
def test_a_class_that_has_lost_its_only_row_keeps_its_number_and_loses_its_name(
    make_job: MakeJob, separator: str
) -> None:
    recipe = make_job(labels=LabelsConfig(column="caption", separator=separator))
    run_build(recipe)
    classes, before = open_dataset(Job(recipe.job).dataset).classes, index(recipe)

    def labels(rows: dict[str, dict[str, Any]]) -> dict[str, object]:
        return {key: row["labels"] if separator else row["label"] for key, row in rows.items()}

    for take_down, gone in enumerate(list(before.values())[:2], 1):
        name = gone["caption"].split(separator or "\n")[-1].strip()
        number = classes.index(name)
        assert holders(recipe.job, name.encode())
        forget(recipe, gone["url"])
        run_build(recipe)  # everything is done: the records of the shards know the classes of now
        left = dict(list(before.items())[take_down:])
        assert labels(index(recipe)) == labels(left)
        now = open_dataset(Job(recipe.job).dataset).classes
        assert (now[number], len(now)) == (f"forgotten {number}", len(classes))
        assert holders(recipe.job, name.encode()) == []
    assert sum(one not in classes for one in now) == 2


def test_classes_that_the_recipe_names_stay_when_they_have_lost_their_only_row(make_job: MakeJob) -> None:
    names = tuple(sorted((f"a picture, number {number} <b>&" for number in range(24)), reverse=True))
    recipe = make_job(labels=LabelsConfig(column="caption", classes=names))
    run_build(recipe)
    forget(recipe, next(iter(index(recipe).values()))["url"])
    assert open_dataset(Job(recipe.job).dataset).classes == names


def test_an_unfinished_dataset_that_has_lost_a_class_is_refused(make_job: MakeJob) -> None:
    recipe = make_job(labels=LabelsConfig(column="caption"))
    run_build(recipe)
    first = min(index(recipe).values(), key=lambda row: row["label"])
    dataset = Path(Job(recipe.job).dataset)
    (dataset / "dataset.json").unlink()  # as if a build had been killed
    remove_commit(str(dataset), max(committed(str(dataset))))
    forget(recipe, first["url"])
    with pytest.raises(ValueError, match=r"begun with other classes .* --start-over"):
        run_build(recipe)


def test_what_killed_stages_left_uncommitted_goes_too(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    job, rows = Job(recipe.job), index(recipe)
    row = next(row for row in rows.values() if row["key"].startswith("00001"))
    raw = next(one for one in pq.read_table(latest_decision(job).ledger.table).to_pylist() if one["url"] == row["url"])
    dataset, shard = Path(job.dataset), raw["raw_shard"]
    left = {
        dataset / "shards/00009.tar": dataset / "shards/00001.tar",
        dataset / "shards/00009.parquet": dataset / "shards/00001.parquet",
        Path(job.build_failures(), "00009.parquet"): Path(job.build_failures(), "00001.parquet"),
        Path(job.raw, "00009.tar"): Path(job.raw, f"{shard}.tar"),
        Path(job.raw, "00009/000090000.jpg"): Path(job.raw, f"{shard}.tar"),
        Path(job.raw, "images/00009.parquet"): Path(job.raw, f"{shard}.parquet"),
        Path(job.raw, "00009.parquet"): Path(job.raw, f"{shard}.parquet"),
        Path(job.ledgers, "0123456789abcdef/ledger.parquet"): Path(latest_decision(job).ledger.table),
        Path(job.spool, "00009/data"): dataset / "shards/00001.tar",
    }
    for path, source in left.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
    theirs = Path(job.datasets, "theirs/shards/00001.tar")  # of a dataset that this job has not built, perhaps
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes((dataset / "shards/00001.tar").read_bytes())
    assert len(holders(recipe.job, row["url"].encode())) > len(left)
    summary = forget(recipe, row["url"])
    assert summary.rows == 1
    assert any("perhaps datasets/theirs" in held for held in summary.held)
    assert holders(recipe.job, row["url"].encode(), row["uid"].encode()) == ["datasets/theirs/shards/00001.tar"]
    assert not [path for path in left if path.exists()]
    assert set(index(recipe)) == set(rows) - {row["key"]}

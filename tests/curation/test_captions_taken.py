"""Promises of a caption that a kept row takes from a dropped copy: ledger, dataset and `why` all say it, and whose."""

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.cli.why import why_command
from headrace.curation.annotate.config import annotate_config
from headrace.curation.build.config import BuildConfig
from headrace.curation.fetch.config import InputConfig
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision, list_ledgers
from headrace.curation.raw.schema import uid_of
from headrace.curation.recipe import Recipe
from headrace.curation.select.rank import Captions
from headrace.curation.select.steps import NearDuplicates, Rule
from headrace.curation.stages import annotate, build, report, select
from headrace.curation.why import explain
from headrace.shards.dataset import open_dataset
from headrace.shards.units import EngineConfig
from headrace.shards.verify import verify_dataset
from tests.curation.listed_pictures import draw, write_listed

TAKEN = "a red house, two trees"
OTHER = "a boat"
URLS = ("http://a.test/original.png", "http://b.test/copy.jpg", "http://c.test/boat.png")


def _write_raw(job: Job) -> None:
    """Write an original without a caption, a smaller copy of it with one, and another picture."""
    images = [draw(1), draw(1, side=128, image_format="JPEG"), draw(2)]
    write_listed(job, images, {"url": URLS, "caption": pa.array([None, TAKEN, OTHER], pa.string())})


@dataclass(frozen=True)
class Built:
    """A finished job."""

    recipe: Recipe
    ledger: list[dict[str, Any]]
    index: list[dict[str, Any]]
    texts: dict[str, str]
    """Name of the `.txt` member -> what it holds."""


def _selected(folder: Path, captions: Captions, *, keep: str = "caption_words >= 2") -> Recipe:
    """Write a job up to its ledger; return its recipe."""
    job = Job(str(folder / "job"))
    _write_raw(job)
    recipe = Recipe(
        job=job.url,
        unsafe_images="off",
        input=InputConfig(urls=("list.csv",)),
        annotate=annotate_config(faces=None),
        select=(
            Rule(name="before", keep="true", value="caption_words"),
            NearDuplicates(captions=captions),
            Rule(name="after", keep=keep, value="caption_words", threshold=2.0),
        ),
        build=BuildConfig(blur_faces=False),
        engine=EngineConfig(executor="inline"),
    )
    annotate(recipe)
    select(recipe)
    return recipe


def _built(folder: Path, captions: Captions, *, keep: str = "caption_words >= 2") -> Built:
    recipe = _selected(folder, captions, keep=keep)
    job = Job(recipe.job)
    build(recipe)
    dataset = open_dataset(job.dataset)
    assert list(verify_dataset(job.dataset)) == []
    with tarfile.open(dataset.tar_url(0)) as tar:
        texts = {
            member.name: (tar.extractfile(member) or io.BytesIO()).read().decode()
            for member in tar
            if member.name.endswith(".txt")
        }
    ledger = pq.read_table(latest_decision(job).ledger.table).to_pylist()
    return Built(recipe, ledger, dataset.index(0).to_pylist(), texts)


@pytest.fixture
def filled(tmp_path: Path) -> Built:
    """The job whose original takes the caption of its copy."""
    return _built(tmp_path, "fill")


def test_the_ledger_says_which_caption_is_taken_and_whose(filled: Built) -> None:
    original, copy, other = filled.ledger
    assert (original["kept"], copy["kept"], other["kept"]) == (True, False, True)
    assert (copy["step"], copy["duplicate_of"]) == ("near_duplicates", original["uid"])
    assert original["caption_of"] == copy["uid"] == uid_of(TAKEN, URLS[1])
    facts = {"caption": TAKEN, "caption_chars": len(TAKEN), "caption_words": 5}
    assert facts.items() <= json.loads(original["caption_facts"]).items()
    assert (other["caption_of"], other["caption_facts"], copy["caption_of"]) == (None, None, None)


def test_the_dataset_holds_it_in_index_and_tar(filled: Built) -> None:
    rows = {row["url"]: row for row in filled.index}
    original, other = rows[URLS[0]], rows[URLS[2]]
    assert (original["caption"], original["caption_words"]) == (TAKEN, 5)
    assert original["caption_of"] == uid_of(TAKEN, URLS[1])
    assert (other["caption"], other["caption_of"]) == (OTHER, None)
    assert filled.texts == {f"{original['key']}.txt": TAKEN, f"{other['key']}.txt": OTHER}
    assert original["uid"] == uid_of(None, URLS[0])


def test_why_says_it_and_what_the_steps_saw(filled: Built, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(filled.recipe.job)
    (story,) = explain(job, URLS[0])
    assert (story.caption, story.caption_of, story.columns["caption_words"]) == (TAKEN, uid_of(TAKEN, URLS[1]), 5)
    values = {step.name: step.value for step in story.steps}
    assert (values["before"], values["after"]) == (None, 5)
    (copy,) = explain(job, URLS[1])
    assert (copy.kept, copy.caption, copy.caption_of) == (False, TAKEN, None)
    why_command(job.url, URLS[0], dataset="", ledger="", nearest=False, json=False)
    assert f"(of row {story.caption_of})" in " ".join(capsys.readouterr().out.split())


def test_the_report_counts_what_was_taken_as_kept(filled: Built) -> None:
    report(filled.recipe)
    words = json.loads(Path(filled.recipe.job, "report", "report.json").read_text())["histograms"]["caption_words"]
    assert words["cuts"] == [{"step": "after", "value": 2.0}]
    counted = [count for count, edge in zip(words["after"], words["edges"][1:], strict=True) if edge >= 2]
    assert sum(counted) == sum(words["after"]) == 2


def test_own_captions_stay_and_no_column_speaks_of_others(tmp_path: Path) -> None:
    own = _built(tmp_path, "own", keep="true")
    rows = {row["url"]: row for row in own.index}
    assert rows[URLS[0]]["caption"] is None
    assert all("caption_of" not in row for row in own.index)
    assert all(row["caption_of"] is None for row in own.ledger)


def test_captions_are_no_part_of_the_images(tmp_path: Path, filled: Built) -> None:
    own = _built(tmp_path / "own", "own", keep="true")
    assert [row["crc32"] for row in own.index] == [row["crc32"] for row in filled.index]


def _lay_as_schema_1(job: Job) -> Path:
    """Put the one ledger where schema 1 had it, with the columns that it had; return its table."""
    ledger = latest_decision(job).ledger
    table, summary = Path(job.ledgers, "ledger.parquet"), json.loads(Path(ledger.summary).read_text())
    pq.write_table(pq.read_table(ledger.table).drop_columns(["caption_of", "caption_facts"]), table)
    facts = {"schema": 1, "ledger_sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
    Path(job.ledgers, "summary.json").write_text(json.dumps({**summary, **facts}))
    shutil.rmtree(ledger.url)
    Path(job.ledgers, "latest.json").unlink()
    return table


def test_a_ledger_from_before_captions_were_taken_serves_every_stage(tmp_path: Path) -> None:
    recipe = _selected(tmp_path, "own", keep="true")
    job = Job(recipe.job)
    table = _lay_as_schema_1(job)
    written = table.read_bytes()
    annotate(recipe)
    assert select(recipe).schema == 1
    assert [ledger.url for ledger in list_ledgers(job)] == [job.ledgers]
    assert build(recipe).num_samples == 2
    assert {row["url"]: row["caption"] for row in open_dataset(job.dataset).index(0).to_pylist()} == {
        URLS[0]: None,
        URLS[2]: OTHER,
    }
    (story,) = explain(job, URLS[2], nearest=True)
    assert (story.caption, story.caption_of, story.build, story.steps[-1].value) == (OTHER, None, "built", 2)
    assert {item.kind for item in story.nearest} == {"kept row"}
    report(recipe)

    steps = tuple(
        replace(step, captions="fill") if isinstance(step, NearDuplicates) else step for step in recipe.select
    )
    filled = replace(recipe, select=steps, build=replace(recipe.build, dataset="filled"))
    assert select(filled).schema == 2
    build(filled)
    assert explain(job, URLS[0], dataset="filled")[0].caption == TAKEN
    assert explain(job, URLS[0])[0].caption is None
    assert table.read_bytes() == written

"""The card: Croissant 1.1 that mlcroissant takes and reads, a README with the funnel, no clock and no place."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.config import build_config
from headrace.curation.build.card.croissant import MAX_NAMED_SHARDS, croissant
from headrace.curation.build.config import BuildConfig, CardConfig, LabelsConfig
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.shards.dataset import open_dataset

MakeJob = Callable[..., Recipe]
CARD = CardConfig(
    title="Small pictures",
    description="For tests.",
    license="https://spdx.org/licenses/CC-BY-4.0.html",
    creator="Someone",
    url="https://example.org/small",
    date_published="2026-11-26",
    version="1.0.0",
    cite_as="@misc{small}",
)


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_takes_the_document_and_reads_rows_and_images(make_job: MakeJob) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    recipe = make_job(card=CARD, columns=("clip_embedding",))
    run_build(recipe)
    folder = Path(Job(recipe.job).dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
        issues = dataset.metadata.ctx.issues
        assert (list(issues.errors), list(issues.warnings)) == ([], [])
        rows = list(dataset.records("samples"))
        images = list(dataset.records("images"))
    opened = open_dataset(str(folder))
    index = [row for number in range(len(opened.shards)) for row in opened.index(number).to_pylist()]
    keys = sorted(row["samples/key"].decode() for row in rows)
    assert keys == sorted(row["key"] for row in index) == sorted(image["images/key"].decode() for image in images)
    sizes = {row["key"]: (row["width"], row["height"]) for row in index}
    assert all(image["images/content"].size == sizes[image["images/key"].decode()] for image in images)
    document = json.loads((folder / "croissant.json").read_text())
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    for file in document["distribution"]:
        if file["@type"] == "cr:FileObject":
            data = (folder / file["contentUrl"]).read_bytes()
            assert (file["sha256"], file["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")


def test_the_readme_tells_sources_funnel_models_and_limits(make_job: MakeJob) -> None:
    recipe = make_job(card=CARD, labels=LabelsConfig(column="caption"))
    Path(recipe.job, "annotations", "faces-01234567", "annotator.json").write_text(
        json.dumps({"name": "faces", "version": 1, "settings": {"detector": "haar"}, "files": {"model": "ab" * 32}})
    )
    run_build(recipe)
    text = Path(Job(recipe.job).dataset, "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["pretty_name"], head["license"]) == ("Small pictures", CARD.license)
    assert "| samples | 17 |" in text
    assert "- urls.parquet" in text
    assert "| top_fraction |" in text
    assert "0.1 |" in text  # its threshold
    assert f"`{'ab' * 32}`" in text
    assert "Measured recall" in text
    assert "robots_txt" in text
    assert "clip_score" in text
    assert "classes: `a picture, number " in text  # what the data call a class is no markup


def test_the_card_changes_no_shard_and_follows_no_place_and_no_clock(make_job: MakeJob) -> None:
    plain, told = make_job("plain"), make_job("told", card=CARD, dataset="other")
    for recipe in (plain, told):
        run_build(recipe)
    first, second = Path(Job(plain.job).dataset), Path(Job(told.job).dataset_named("other"))
    for name in ("shards/00000.tar", "commits/00000.json", "dataset.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    again = make_job("elsewhere")
    run_build(again)
    for name in ("card.json", "croissant.json", "README.md"):
        assert (first / name).read_bytes() == Path(Job(again.job).dataset, name).read_bytes()
        assert plain.job.encode() not in (first / name).read_bytes()
    changed = dataclasses.replace(plain, build=dataclasses.replace(plain.build, card=CARD))
    run_build(changed)  # no shard is built again: the card alone is another
    assert "Small pictures" in (first / "README.md").read_text()


def test_a_take_down_is_told_by_the_card(make_job: MakeJob) -> None:
    recipe = make_job()
    run_build(recipe)
    folder = Path(Job(recipe.job).dataset)
    url = open_dataset(str(folder)).index(0)["url"][0].as_py()
    with own_job(Job(recipe.job), forgetting=True) as job:
        run_forget(job, Texts({url}), ForgetOptions())
    text = (folder / "README.md").read_text()
    assert "| samples | 16 |" in text
    assert "| taken down since | 1 samples, 1 times |" in text
    assert "| forgotten | 17 | forgotten 1 | 16 |" in text
    document = json.loads((folder / "croissant.json").read_text())
    tar = next(file for file in document["distribution"] if file["@id"] == "00000.tar")
    assert tar["sha256"] == hashlib.sha256((folder / "shards/00000.tar").read_bytes()).hexdigest()
    before = (folder / "README.md").read_bytes()
    run_build(recipe)  # nothing is left to build, and the card keeps what was taken down
    assert (folder / "README.md").read_bytes() == before


def test_large_datasets_name_their_tars_by_a_glob() -> None:
    shard = {"num_bytes": 1, "sha256": "0" * 64, "num_samples": 1}
    numbers: dict[str, Any] = {
        "num_shards": MAX_NAMED_SHARDS + 1,
        "num_samples": 9,
        "manifest_bytes": 1,
        "manifest_sha256": "0" * 64,
        "columns": [],
        "shards": [{**shard, "name": f"{number:05d}"} for number in range(MAX_NAMED_SHARDS + 1)],
    }
    about = {"card": {**vars_of(CARD)}, "sources": [], "remarks": [], "ledger": {"rows": 9, "steps": []}}
    assert [file["@id"] for file in croissant(about, numbers)["distribution"]] == [
        "manifest",
        "indexes",
        "archives",
        "image-files",
    ]


def vars_of(card: CardConfig) -> dict[str, str]:
    return {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected YYYY-MM-DD"):
        build_config(BuildConfig, {"card": {"date_published": "yesterday"}})

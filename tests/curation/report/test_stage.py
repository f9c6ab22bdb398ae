"""The report counts what the ledger says, shows nothing that must not be seen, and is the same bytes every time."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision, write_summary
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.stage import report_dataset
from headrace.curation.select.steps import Rule
from headrace.curation.stages import build as run_build
from headrace.curation.stages import plan_report
from headrace.curation.stages import report as run_report
from headrace.shards.commit import commit

MakeJob = Callable[..., Recipe]


@pytest.fixture
def built(make_job: MakeJob) -> Recipe:
    recipe = make_job()
    Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
    run_build(recipe)
    return recipe


def read(recipe: Recipe) -> tuple[dict[str, Any], str]:
    folder = Path(Job(recipe.job).report)
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(item)))) for item in found]


def uid_of(number: int) -> str:
    caption, url = f"a picture, number {number} <b>&", f"http://host{number % 4}.test/{number}.img?a=1&b=<2>"
    return hashlib.md5((caption + url).encode()).hexdigest()


def test_the_numbers_are_those_of_the_ledger(built: Recipe) -> None:
    run_report(built)
    report, html = read(built)
    ledger = pq.read_table(latest_decision(Job(built.job)).ledger.table).to_pylist()
    kept = sum(row["kept"] for row in ledger)
    assert report["facts"]["input_rows"] == len(ledger) == 24
    assert report["facts"]["kept"] == report["facts"]["num_samples"] == kept == 17
    assert report["facts"]["fetched"] == 23
    assert report["facts"]["distinct_hosts"] == 4
    assert report["facts"]["distinct_images"] == 23
    assert report["fetch_errors"] == {"http-4xx": 1}
    assert {step["name"]: step["rows_out"] for step in report["funnel"]} == {
        "fetch": 23,
        "decode": 23,
        "unsafe": 22,
        "near_duplicates": 20,
        "rule": 20,
        "top_fraction": 17,
    }
    assert report["duplicates"] == {"num_groups": 1, "num_dropped": 2, "group_sizes": {"3": 1}}
    for text in ("17 left", "http-4xx", "near_duplicates", "host0.test", "Recipe", "clip_score"):
        assert text in html


def test_what_a_step_cuts_at_has_a_histogram_though_no_annotator_made_it(built: Recipe) -> None:
    decision = latest_decision(Job(built.job))
    summary = decision.summary
    rule = next(step for step in summary.steps if step.name == "rule")
    # A carried column, an expression, and one that fails on some of the rows: select may never have evaluated it there.
    for text in ("input_row", "least(image_width, 100)", "caption::INTEGER"):
        steps = [
            replace(step, settings={"name": "rule", "keep": "true", "value": text}, threshold=80.0)
            if step is rule
            else step
            for step in summary.steps
        ]
        write_summary(decision.ledger, replace(summary, steps=steps))
        run_report(built)
        report, html = read(built)
        histogram = report["histograms"].get(text)
        if text == "caption::INTEGER":
            assert histogram is None
        else:
            assert text in html
            assert (sum(histogram["before"]), sum(histogram["after"])) == (23, 17)
            assert histogram["cuts"] == [{"step": "rule", "value": 80.0}]


def test_the_command_with_the_job_gives_the_page_that_its_recipe_asks_for(built: Recipe) -> None:
    recipe = replace(built, report=ReportConfig(title="Pool of May", samples=2))
    Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
    run_report(recipe)
    expected = read(recipe)
    shutil.rmtree(Job(recipe.job).report)
    assert CliRunner().invoke(app, ["report", recipe.job]).exit_code == 0
    assert read(recipe) == expected
    assert "<h1>Pool of May</h1>" in expected[1]


def test_raw_shards_that_the_ledger_does_not_know_are_left_out(built: Recipe) -> None:
    run_report(built)
    before = read(built)
    commit(Job(built.job).raw, "00009", {"rows": 0})
    run_report(built)
    assert read(built) == before


def test_a_row_without_a_host_is_no_host(built: Recipe) -> None:
    path = Path(latest_decision(Job(built.job)).ledger.table)
    table = pq.read_table(path)
    urls = ["not a url", *table["url"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("url"), "url", pa.array(urls)), path)
    run_report(built)
    report, _ = read(built)
    assert report["facts"]["distinct_hosts"] == len(report["hosts"]) == 4


def test_histograms_count_every_row_before_and_after(built: Recipe) -> None:
    run_report(built)
    report, _ = read(built)
    scores = report["histograms"]["clip_score"]
    assert sum(scores["before"]) == 23
    assert sum(scores["after"]) == 17
    assert len(scores["edges"]) == len(scores["before"]) + 1
    assert scores["cuts"] == [{"step": "top_fraction", "value": 0.1}]
    assert report["histograms"]["unsafe_image_score"]["cuts"] == [{"step": "unsafe", "value": 0.5}]
    # Nothing that is kept lies under the cut.
    under = [count for edge, count in zip(scores["edges"][1:], scores["after"], strict=True) if edge <= 0.1]
    assert sum(under) == 0


def test_hosts_are_counted_with_their_distinct_images(built: Recipe) -> None:
    run_report(built)
    report, _ = read(built)
    assert {item["host"]: (item["rows"], item["failed"], item["images"]) for item in report["hosts"]} == {
        "host0.test": (6, 0, 6),
        "host1.test": (6, 0, 6),
        "host2.test": (6, 0, 6),
        "host3.test": (6, 1, 5),
    }


def test_the_galleries_stand_around_the_cut(built: Recipe) -> None:
    run_report(built)
    report, html = read(built)
    (cut,) = report["galleries"]["cuts"]
    assert cut["kept"][:3] == [uid_of(number) for number in (3, 4, 6)]
    assert cut["dropped"] == [uid_of(number) for number in (2, 1, 0)]
    (group,) = report["galleries"]["near_duplicates"]
    assert group["best"] == uid_of(18)
    assert set(group["shown"]) == {uid_of(18), uid_of(20), uid_of(22)}
    assert group["shown"][0] == uid_of(18)
    shown = pictures(html)
    assert len(shown) == html.count("<figure>") > 20
    assert all(max(item.shape[:2]) <= 160 for item in shown)


def test_no_face_is_shown_unblurred_and_nothing_unsafe_at_all(built: Recipe) -> None:
    run_report(built)
    report, html = read(built)
    listed = json.dumps(report["galleries"])
    assert uid_of(5) not in listed
    # Every third picture has a face; its middle is smooth wherever it comes from, dataset or raw shard (number 0).
    assert uid_of(0) in listed
    figures = re.findall(r'base64,([^"]+)" alt="a picture, number (\d+)', html)
    assert {int(number) % 3 for _, number in figures} == {0, 1, 2}
    for data, number in figures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(float)
        height, width = pixels.shape
        inside = pixels[int(0.35 * height) : int(0.55 * height), int(0.35 * width) : int(0.5 * width)]
        assert (inside.std() < 25) == (int(number) % 3 == 0), number


def _replace(path: Path, table: pa.Table) -> None:
    """Write another annotation table in a shard's place, with its commit record."""
    (path.parent / "commits" / f"{path.stem}.json").unlink()
    write_annotations(str(path.parent), path.stem, table, {})


def test_the_report_says_how_many_faces_the_detector_was_measured_to_find(built: Recipe) -> None:
    folder = Path(Job(built.job).url, "annotations", "faces-01234567")
    (folder / "annotator.json").write_text('{"name": "faces", "settings": {"detector": "haar"}}')
    run_report(built)
    for name in ("report.html", "report.json"):
        text = Path(Job(built.job).report, name).read_text()
        assert "Faces were found by haar" in text
        assert "28 % of YuNet" in text.replace("&#x27;", "'")


def test_without_face_boxes_no_raw_picture_is_shown(built: Recipe) -> None:
    for path in Path(built.job, "annotations").glob("faces-*/*.parquet"):
        table = pq.read_table(path)
        _replace(path, table.set_column(2, "face_boxes", pa.nulls(table.num_rows, table["face_boxes"].type)))
    run_report(built)
    report, _ = read(built)
    assert report["galleries"]["cuts"][0]["dropped"] == []
    assert report["galleries"]["cuts"][0]["kept"]


def test_a_dataset_published_with_faces_shows_only_pictures_without(make_job: MakeJob) -> None:
    recipe = make_job(blur_faces=False)
    run_build(recipe)
    run_report(recipe)
    report, _ = read(recipe)
    shown = set(report["galleries"]["kept"])
    assert shown
    assert not shown & {uid_of(number) for number in range(0, 24, 3)}


def test_a_score_that_is_unknown_counts_as_unsafe(built: Recipe) -> None:
    for path in Path(built.job, "annotations").glob("unsafe_image-*/*.parquet"):
        table = pq.read_table(path)
        missing = pa.nulls(table.num_rows, pa.float32())
        _replace(path, table.set_column(1, "unsafe_image_score", missing))
    run_report(built)
    report, _ = read(built)
    (cut,) = report["galleries"]["cuts"]
    assert cut["dropped"] == []


def test_hostile_text_stays_text(built: Recipe) -> None:
    run_report(built)
    _, html = read(built)
    assert "number 3 <b>&" not in html
    assert "number 3 &lt;b&gt;&amp;" in html
    assert html.count("<script>") == 1


def test_two_reports_of_two_folders_are_the_same_bytes(make_job: MakeJob) -> None:
    texts = []
    for name in ("one", "two"):
        recipe = make_job(name)
        Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
        run_build(recipe)
        run_report(recipe)
        folder = Path(Job(recipe.job).report)
        texts.append([(folder / file).read_bytes() for file in ("report.html", "report.json")])
        run_report(recipe)
        assert texts[-1] == [(folder / file).read_bytes() for file in ("report.html", "report.json")]
    assert texts[0] == texts[1]
    assert name.encode() + b"/dataset" not in texts[0][0]


def test_the_report_says_so_if_its_recipe_did_not_decide_the_ledger(built: Recipe) -> None:
    run_report(built)
    assert not [note for note in read(built)[0]["notes"] if "recipe" in note]
    path = Path(built.job, "recipe.yaml")
    other = dataclasses.replace(built, select=(Rule(name="none", keep="num_faces < 3"),))
    for text in (recipe_text(other), "seed: 1\n"):
        path.write_text(text)
        run_report(built)
        report, html = read(built)
        (note,) = [note for note in report["notes"] if "recipe" in note]
        assert "is not the one that decided this ledger" in note
        assert note in html


def test_a_job_without_a_dataset_reports_its_ledger(make_job: MakeJob) -> None:
    recipe = make_job()
    run_report(recipe)
    report, html = read(recipe)
    assert report["facts"]["kept"] == 17
    assert "num_samples" not in report["facts"]
    assert "not built from this ledger yet" in html
    assert report["galleries"]["kept"] == []
    assert len(report["galleries"]["cuts"][0]["dropped"]) == 3


def test_a_dataset_of_another_ledger_is_not_shown(built: Recipe, write_ledger_again: Any) -> None:
    write_ledger_again(built, drop=(4,))
    run_report(built)
    report, _ = read(built)
    assert report["galleries"]["kept"] == []
    assert report["facts"]["kept"] == 16
    assert report["notes"]


def test_build_failures_are_listed(make_job: MakeJob) -> None:
    recipe = make_job()
    tar = Path(Job(recipe.job).raw, "00001.tar")
    tar.write_bytes(tar.read_bytes()[:20_000])
    run_build(recipe)
    run_report(recipe)
    report, html = read(recipe)
    assert report["facts"]["build_failures"] == report["build_failures"]["by_reason"]["missing"] > 0
    assert "truncated" in html


def test_without_raw_tars_the_numbers_and_the_published_pictures_stay(built: Recipe) -> None:
    for tar in Path(Job(built.job).raw).glob("*.tar"):
        tar.unlink()
    run_report(built)
    report, _ = read(built)
    assert report["facts"]["kept"] == 17
    assert report["galleries"]["cuts"][0]["dropped"] == []
    assert len(report["galleries"]["kept"]) == 12


def test_any_indexed_dataset_is_reported_without_a_ledger(built: Recipe, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(Job(built.job).dataset, alone)
    summary = report_dataset(str(alone), ReportConfig(title="Mine"), str(tmp_path / "out"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    html = (tmp_path / "out" / "report.html").read_text()
    assert summary.num_pictures == 0
    assert "<h1>Mine</h1>" in html
    assert report["facts"]["num_samples"] == 17
    assert sum(report["histograms"]["clip_score"]["before"]) == 17
    assert sum(report["dataset"]["format"].values()) == 17
    assert "Funnel" not in html


def test_without_a_ledger_the_user_is_told_to_select(make_job: MakeJob) -> None:
    recipe = make_job()
    shutil.rmtree(Job(recipe.job).ledgers)
    with pytest.raises(ValueError, match="headrace select"):
        run_report(recipe)
    assert plan_report(recipe)

"""What a report shows beside counts: every copy beside its original, dropped rows, nothing that may not be seen."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.config import config_to_dict
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision, write_summary
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.stage import report_dataset
from headrace.curation.select.evaluation import EvaluationSet
from headrace.curation.select.steps.decontaminate import Decontaminate
from headrace.curation.stages import build as run_build
from headrace.curation.stages import report as run_report


@pytest.fixture
def built(make_job: Callable[..., Recipe]) -> Recipe:
    recipe = make_job()
    Path(recipe.job, "recipe.yaml").write_text(recipe_text(recipe))
    run_build(recipe)
    return recipe


def report_of(recipe: Recipe, **config: Any) -> tuple[dict[str, Any], str]:
    run_report(dataclasses.replace(recipe, report=ReportConfig(**config)))
    folder = Path(Job(recipe.job).report)
    return json.loads((folder / "report.json").read_text()), (folder / "report.html").read_text()


def test_every_copy_stands_beside_what_it_was_dropped_for(built: Recipe) -> None:
    report, html = report_of(built)
    (found,) = report["galleries"]["pairs"]
    ledger = {row["uid"]: row for row in report["dropped_rows"][2]["rows"]}
    assert found["step"] == "near_duplicates"
    assert found["dropped"] == len(found["shown"]) == 2
    for dropped, kept, note in found["shown"]:
        assert ledger[dropped]["duplicate_of"] == kept
        assert note == "near, 4"
    assert html.count('<div class="pair">') == 2


def test_dropped_rows_are_listed_by_step_and_those_of_an_unsafe_step_without_words(built: Recipe) -> None:
    report, html = report_of(built)
    steps = {item["step"]: item for item in report["dropped_rows"]}
    assert {name: len(item["rows"]) for name, item in steps.items()} == {
        "fetch": 1,
        "unsafe": 1,
        "near_duplicates": 2,
        "top_fraction": 3,
    }
    assert all(row["caption"].startswith("a picture, number") for row in steps["top_fraction"]["rows"])
    (unsafe,) = steps["unsafe"]["rows"]
    assert (unsafe["caption"], unsafe["url"], unsafe["reason"]) == (None, None, "image")
    assert "number 5 &lt;b&gt;" not in html


@pytest.mark.parametrize(
    ("config", "pictures", "rows"), [({"pairs": 1, "samples": 3, "rows": 2}, 3, 2), ({"pictures": "none"}, 0, 200)]
)
def test_a_page_is_no_larger_than_the_recipe_says(
    built: Recipe, config: dict[str, Any], pictures: int, rows: int
) -> None:
    report, html = report_of(built, **config)
    galleries = report["galleries"]
    assert len(galleries["kept"]) == pictures
    assert all(len(item["shown"]) <= config.get("pairs", 0) for item in galleries["pairs"])
    assert all(len(item["rows"]) <= rows for item in report["dropped_rows"])
    assert ("data:image/jpeg" in html) == (pictures > 0)
    assert any(f"{pictures} pictures in a gallery" in text for text in report["limits"])


def test_all_pictures_are_shown_only_where_the_recipe_says_that_there_are_no_people(
    make_job: Callable[..., Recipe],
) -> None:
    recipe = make_job(blur_faces=False)
    run_build(recipe)
    hidden, _ = report_of(recipe)
    shown, _ = report_of(recipe, pictures="all")
    assert len(hidden["galleries"]["kept"]) < len(shown["galleries"]["kept"]) == 12
    # What an unsafe step dropped is not shown even so.
    unsafe = [row["uid"] for item in shown["dropped_rows"] if item["step"] == "unsafe" for row in item["rows"]]
    assert unsafe
    assert not [uid for uid in unsafe if uid in json.dumps(shown["galleries"])]


def test_a_dataset_shows_pictures_only_if_all_may_be_shown(built: Recipe, tmp_path: Path) -> None:
    dataset = Job(built.job).dataset
    plain = report_dataset(dataset, ReportConfig(), str(tmp_path / "a"))
    shown = report_dataset(dataset, ReportConfig(pictures="all"), str(tmp_path / "b"))
    assert plain.num_pictures == 0 < shown.num_pictures
    found = json.loads((tmp_path / "a" / "report.json").read_text())
    (score,) = (item for item in found["galleries"]["extremes"] if item["what"] == "Lowest scores")
    assert len(score["rows"]) == 12
    assert [value for _, value in score["rows"]] == sorted(value for _, value in score["rows"])


def test_failures_are_crossed_by_host_and_class_and_each_step_tells_what_it_changed(built: Recipe) -> None:
    report, _ = report_of(built)
    assert report["host_failures"] == {
        "classes": ["http-4xx"],
        "hosts": [{"host": "host3.test", "failed": 1, "rows": 6, "classes": [1]}],
    }
    effects = {item["step"]: {number["number"]: number for number in item["numbers"]} for item in report["effects"]}
    cut = effects["top_fraction"]["clip_score"]
    assert (sum(cut["before"]), sum(cut["after"])) == (20, 17)
    assert cut["median"][0] < cut["median"][1]
    assert set(effects["unsafe"]) >= {"unsafe_image_score"}


def test_a_ledger_of_an_unknown_step_is_reported_without_its_pictures(built: Recipe) -> None:
    decision = latest_decision(Job(built.job))
    steps = [
        dataclasses.replace(step, step="of-an-extension") if step.name == "near_duplicates" else step
        for step in decision.summary.steps
    ]
    write_summary(decision.ledger, dataclasses.replace(decision.summary, steps=steps))
    report, _ = report_of(built)
    assert report["galleries"]["pairs"] == []
    assert report["facts"]["kept"] == 17


def test_distances_of_dropped_copies_are_counted(built: Recipe) -> None:
    decision = latest_decision(Job(built.job))
    table = pq.read_table(decision.ledger.table)
    near = pc.equal(table["step"], "near_duplicates")
    limits = pc.if_else(pc.fill_null(near, False), 20.0, table["threshold"])
    pq.write_table(
        table.set_column(table.schema.get_field_index("threshold"), "threshold", limits), decision.ledger.table
    )
    steps = [
        dataclasses.replace(step, threshold=20.0) if step.name == "near_duplicates" else step
        for step in decision.summary.steps
    ]
    write_summary(decision.ledger, dataclasses.replace(decision.summary, steps=steps))
    (found,) = report_of(built)[0]["distances"]
    assert found["counts"] == [[4.0, 2]]
    assert (found["measured"], found["exact"], found["rows_in"]) == ("distance", False, 22)


@pytest.mark.parametrize("detector", [True, False])
def test_an_evaluation_image_is_shown_beside_its_copy_once_faces_were_looked_for(
    built: Recipe, tmp_path: Path, detector: bool
) -> None:
    decision = latest_decision(Job(built.job))
    sets = tmp_path / "held"
    sets.mkdir()
    Image.effect_noise((64, 48), 90).convert("RGB").save(sets / "a.png")
    step = Decontaminate(against=(EvaluationSet(name="held", url=str(sets)),))
    table = pq.read_table(decision.ledger.table)
    near = pc.fill_null(pc.equal(table["step"], "near_duplicates"), False)
    for name, value in (("step", "decontaminate"), ("duplicate_of", "held/a.png"), ("threshold", 31.0)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pc.if_else(near, value, table[name]))
    pq.write_table(table, decision.ledger.table)
    steps = [
        dataclasses.replace(
            old, name="decontaminate", step="decontaminate", settings=config_to_dict(step), threshold=31.0
        )
        if old.name == "near_duplicates"
        else old
        for old in decision.summary.steps
    ]
    write_summary(decision.ledger, dataclasses.replace(decision.summary, steps=steps))
    if not detector:
        Path(built.job, "recipe.yaml").unlink()
    report, html = report_of(built)
    (found,) = report["galleries"]["pairs"]
    assert [pair[1] for pair in found["shown"]] == ["held/a.png"] * 2
    pairs = html[html.index(">Pairs: decontaminate</h2>") :].split("</section>")[0]
    assert pairs.count("data:image/jpeg") == (4 if detector else 2)
    assert pairs.count("not shown") == (0 if detector else 2)
    (distances,) = report["distances"]
    assert (distances["exact"], distances["counts"]) == (True, [[4.0, 2]])

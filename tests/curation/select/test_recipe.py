"""Select as a recipe asks for it: the plan, and the check of the steps before anything is fetched."""

from pathlib import Path

import pytest
from select_jobs import make_row, write_job

from headrace.curation.annotate.tables import annotation_folders
from headrace.curation.job import Job
from headrace.curation.needs import check_recipe
from headrace.curation.recipe import Recipe, load_recipe
from headrace.curation.stages import plan_select
from headrace.curation.stages import select as run_select
from headrace.shards.progress import Progress

RECIPE = """
job: {job}
unsafe_images: off
input: {{urls: [list.csv], columns: [year]}}
build: {{blur_faces: false, samples_per_shard: 4}}
annotate: {{caption: null, faces: null}}
select:
  - {{step: rule, name: size, keep: "least(image_width, image_height) >= 60"}}
  - {{step: exact_duplicates}}
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(job=folder / "job"))
    return load_recipe(path, overrides)


def test_the_steps_are_checked_before_anything_is_fetched(tmp_path: Path) -> None:
    check_recipe(recipe(tmp_path))
    check_recipe(recipe(tmp_path, "select.0.keep=year > 2000 and image_width > 3", "input.urls=[list.jsonl]"))
    with pytest.raises(ValueError, match="rule 'size': unknown column 'yaer'"):
        check_recipe(recipe(tmp_path, "select.0.keep=yaer > 2000"))
    with pytest.raises(ValueError, match=r"rule 'size'.*must be true or false"):
        check_recipe(recipe(tmp_path, "select.0.keep=image_width"))
    with pytest.raises(ValueError, match=r"unknown column 'caption_words'; add annotate.caption and run"):
        check_recipe(recipe(tmp_path, "select.0.keep=caption_words > 2"))
    with pytest.raises(ValueError, match="subquery is not accepted"):
        check_recipe(recipe(tmp_path, "select.0.keep=year > (select 1)", "input.urls=[list.jsonl]"))
    check_recipe(recipe(tmp_path, "input={raw: somewhere}", "select.0.keep=anything > 2000"))


def test_steps_that_look_for_copies_are_checked_against_what_annotators_will_make(tmp_path: Path) -> None:
    def asked(step: str, *overrides: str) -> None:
        check_recipe(recipe(tmp_path, f"select.1={step}", *overrides))

    variants = "{step: near_duplicates, flips: true, crops: true, chains: cut, order: [image_width desc]}"
    asked(variants, "annotate.hash_variants={crops: true}")
    with pytest.raises(ValueError, match=r"'pdq_crop_0'.*add annotate.hash_variants, `\{crops: true\}`"):
        asked(variants, "annotate.hash_variants={}")
    asked("{step: caption_duplicates, threshold: 0.7, most: 3}", "annotate.caption_minhash={}")
    with pytest.raises(ValueError, match=r"'caption_minhash'.*add annotate\.caption_minhash"):
        asked("{step: caption_duplicates}")
    with pytest.raises(ValueError, match=r"'clip_embedding'.*add annotate\.clip"):
        asked("{step: semantic, eps: 0.05}")
    with pytest.raises(ValueError, match=r"'copy_embedding'.*add annotate\.copy_embedding"):
        asked("{step: embedding_duplicates, threshold: 0.75}")
    asked("{step: semantic, eps: 0.05, clusters: {embedding: year, number: 9}}", "input.urls=[list.parquet]")
    with pytest.raises(ValueError, match="must be a list of floats a row, but it is of type VARCHAR"):
        asked("{step: semantic, eps: 0.05, clusters: {embedding: year}}")
    asked("{step: quota, by: \"regexp_extract(url, '^https?://([^/:]+)', 1)\", most: 100, order: [image_width desc]}")
    asked("{step: soft_cap, score: image_width / 100, fraction: 0.5}")


def test_columns_of_a_csv_are_text_before_anything_is_fetched(tmp_path: Path) -> None:
    ranked = "select.1={step: top_fraction, score: year, fraction: 0.5}"
    with pytest.raises(ValueError, match=r"number, but it is of type VARCHAR; .*try_cast\(COLUMN as double\)"):
        check_recipe(recipe(tmp_path, ranked))
    with pytest.raises(ValueError, match=r"Cannot compare .*try_cast\(COLUMN as double\)"):
        check_recipe(recipe(tmp_path, "select.0.keep=year > 2000"))
    check_recipe(recipe(tmp_path, ranked.replace("score: year", "score: try_cast(year as double)")))
    check_recipe(recipe(tmp_path, ranked, "input.urls=[list.parquet]"))
    check_recipe(recipe(tmp_path, ranked, "input.urls=[list.csv, list.parquet]"))
    with pytest.raises(ValueError, match="VARCHAR"):
        check_recipe(recipe(tmp_path, ranked, "input.urls=[lists/*.tsv.gz, list.csv]"))


def test_a_text_that_is_no_number_is_told_of_try_cast(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "select.0.keep=cast(caption as double) > 3")
    job = write_job(tmp_path / "job", [[make_row(0), make_row(1)]], annotators=["image", "hashes", "quality"])
    for name, url in annotation_folders(asked.annotate, job).items():
        (tmp_path / "job" / "annotations" / f"{name}-00000000").rename(url)
    with pytest.raises(ValueError, match=r"step 'size': .*no value for a row.*try_cast\(COLUMN as double\)"):
        run_select(asked)


def test_the_plan_names_steps_and_says_what_is_missing(tmp_path: Path) -> None:
    lines = plan_select(recipe(tmp_path))
    assert "size (rule): keep='least(image_width, image_height) >= 60'" in lines[1]
    assert "no raw shards; run `headrace fetch` first" in lines[-1]
    lines = plan_select(recipe(tmp_path), annotate_first=True)
    assert lines[-1] == "from the rows that fetch and annotate will write"
    assert not (tmp_path / "job").exists()


def test_run_select_reads_the_recipes_own_annotations(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    made = [make_row(number, image_width=50 if number < 3 else 100) for number in range(9)]
    job = write_job(tmp_path / "job", [made], annotators=["image", "hashes", "quality"])
    with pytest.raises(ValueError, match="is missing; run `headrace annotate` first"):
        run_select(recipe(tmp_path, "input.columns=[]"))
    for name, url in annotation_folders(asked.annotate, job).items():
        (tmp_path / "job" / "annotations" / f"{name}-00000000").rename(url)
    asked = recipe(tmp_path, "input.columns=[]")
    seen: list[tuple[int, int]] = []
    rows: list[int] = []

    def on_progress(progress: Progress) -> None:
        seen.append((progress.done, progress.total))
        rows.append(progress.counts["rows"])

    summary = run_select(asked, on_progress=on_progress)
    assert rows[-1] == 9, "the progress counts more rows than there are"
    assert str(summary).startswith("kept 6 of 9 rows (66.7 %) in 2 shards; dropped: size 3; ledger ")
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert "from 1 raw shards with the columns aspect" in plan_select(asked)[-1]
    assert Job(asked.job).ledgers == job.ledgers


def test_a_carried_column_that_is_empty_at_first_takes_its_later_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    asked = recipe(tmp_path, "select.0.keep=year is null or year > 2000")
    job = write_job(
        tmp_path / "job", [[make_row(0)], [make_row(1), make_row(2)]], annotators=["image", "hashes", "quality"]
    )
    for name, url in annotation_folders(asked.annotate, job).items():
        (tmp_path / "job" / "annotations" / f"{name}-00000000").rename(url)
    for shard, values in (("00000", pa.nulls(1)), ("00001", pa.array([1999, 2001]))):
        path = tmp_path / "job" / "raw" / f"{shard}.parquet"
        pq.write_table(pq.read_table(path).append_column("year", values), path)
    assert run_select(asked).kept == 2

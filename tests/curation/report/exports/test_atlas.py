"""The table for Embedding Atlas: one row a sample, a map that follows from the data, exact neighbours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.curation.datasets import explain_dataset
from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.report.compare.side import Side
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.exports.atlas import write_atlas
from headrace.curation.report.exports.projection import nearest, project
from headrace.curation.report.stage import built_dataset
from headrace.curation.stages import build as run_build
from headrace.shards.dataset import open_dataset
from headrace.shards.payloads import read_sample
from headrace.shards.write import Sample, finish_dataset, write_shard


def test_every_row_that_may_be_seen_has_a_place_a_text_and_neighbours(
    make_job: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_job()
    run_build(recipe)
    explained = explain_dataset(Job(recipe.job))
    side = Side(name=recipe.job, dataset=built_dataset(explained), explained=explained)
    paths = [tmp_path / f"{name}.parquet" for name in "ab"]
    summary = write_atlas(str(paths[0]), side, ReportConfig())
    write_atlas(str(paths[1]), side, ReportConfig())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert summary.projected_from == "clip_embedding"
    rows = pq.read_table(paths[0]).to_pylist()
    # 24 rows, one not fetched, one unsafe.
    assert len(rows) == summary.rows == 22
    assert {row["kept"] for row in rows} == {True, False}
    assert not [row for row in rows if "number 5 " in row["text"]]
    assert all(row["image"]["bytes"][:2] == b"\xff\xd8" for row in rows)
    numbers = {place: int(row["text"].split("number ")[1].split()[0]) for place, row in enumerate(rows)}
    for place, row in enumerate(rows):
        assert len(row["neighbors"]["ids"]) == 10
        assert place not in row["neighbors"]["ids"]
    # Embeddings lie on a line that is ordered by the number, so the first axis must be too.
    ordered = [rows[place]["x"] for place in sorted(numbers, key=lambda place: numbers[place])]
    assert np.all(np.diff(ordered) > 0)


def test_a_dataset_without_embeddings_is_placed_by_its_numbers(make_job: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_job()
    run_build(recipe)
    dataset = built_dataset(explain_dataset(Job(recipe.job)))
    summary = write_atlas(str(tmp_path / "a.parquet"), Side(name="x", dataset=dataset, explained=None), ReportConfig())
    assert (summary.rows, summary.projected_from, summary.pictures, summary.neighbours) == (17, "numbers", 0, False)
    assert np.isfinite(pq.read_table(tmp_path / "a.parquet")["x"].to_numpy()).all()


def test_a_carried_number_may_have_the_name_of_a_column_of_the_map(
    make_job: Callable[..., Recipe], tmp_path: Path
) -> None:
    run_build(make_job())
    dataset = open_dataset(str(tmp_path / "job/dataset"))
    images = [read_sample(dataset, 0, row) for row in range(2)]
    samples = [Sample(f"{row}", image, "jpg", {"step": row, "neighbors": row}) for row, image in enumerate(images)]
    fields = pa.schema([("step", pa.int64()), ("neighbors", pa.int64())])
    write_shard(str(tmp_path / "set"), "0", samples, fields)
    finish_dataset(str(tmp_path / "set"), recipe_digest="")
    side = Side(name="x", dataset=open_dataset(str(tmp_path / "set")), explained=None)
    assert write_atlas(str(tmp_path / "a.parquet"), side, ReportConfig()).rows == 2
    assert pq.read_table(tmp_path / "a.parquet")["step"].to_pylist() == [None, None]


def test_the_projection_is_that_of_all_rows_at_once_and_neighbours_are_exact() -> None:
    rows = np.random.default_rng(1).normal(size=(300, 12)) * np.arange(1, 13)
    found = project(lambda: np.array_split(rows, 7), 12, standardise=False)
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    np.testing.assert_allclose(np.abs(found.of(rows)), np.abs(expected), atol=1e-6)
    ids, apart = nearest(rows.astype(np.float32), 5, block=64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(ids, np.argsort(distances, axis=1)[:, :5])
    np.testing.assert_allclose(apart, np.sort(distances, axis=1)[:, :5], atol=1e-5)

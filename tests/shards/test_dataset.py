"""Opening a dataset: every wrong folder gives one clear sentence."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.index import read_index, write_index
from headrace.shards.manifest import MANIFEST_SCHEMA
from headrace.shards.parquet import read_table


def test_a_dataset_names_its_shards(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    assert [shard.name for shard in dataset.shards] == ["00000", "00001"]
    assert dataset.num_samples == 10
    assert dataset.tar_url(1) == f"{dataset_url}/shards/00001.tar"
    assert dataset.index(1)["key"].to_pylist() == [f"{number:05d}" for number in range(5, 10)]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nix is not a dataset: .*dataset\.json is missing"):
        open_dataset(str(tmp_path / "nix"))


def test_tars_without_an_index_say_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    with pytest.raises(ValueError, match=rf"run: headrace index {tmp_path}$"):
        open_dataset(str(tmp_path))
    with pytest.raises(ValueError, match=rf"run: headrace index {tmp_path} --index-dir /elsewhere"):
        open_dataset(str(tmp_path), index_dir="/elsewhere")


def test_a_file_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "0.tar").touch()
    with pytest.raises(ValueError, match=r"0\.tar is a file; a dataset is a folder: headrace import"):
        open_dataset(str(tmp_path / "0.tar"))


def test_an_unfinished_dataset_is_named_as_such(dataset_url: str) -> None:
    Path(dataset_url, "dataset.json").unlink()
    with pytest.raises(ValueError, match="unfinished dataset"):
        open_dataset(dataset_url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema version None"),
        ('{"schema": 3}', "schema version 3, this headrace reads 1 and 2"),
        ('{"schema": 1, "layout": "other"}', "unknown layout 'other'"),
    ],
)
def test_a_damaged_summary_is_refused(dataset_url: str, text: str, message: str) -> None:
    Path(dataset_url, "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(dataset_url)


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/b", "", None, "a\0", ".hidden"])
def test_a_manifest_cannot_lead_out_of_the_folder(dataset_url: str, name: str | None) -> None:
    row = {"name": name, "num_samples": 1, "num_bytes": 1, "sha256": "0" * 64, "index_sha256": "0" * 64}
    write_index(f"{dataset_url}/shards.parquet", pa.Table.from_pylist([row], schema=MANIFEST_SCHEMA))
    with pytest.raises(ShardError, match="may not name a shard"):
        open_dataset(dataset_url)


def test_a_manifest_that_is_none_is_refused(dataset_url: str) -> None:
    manifest = Path(dataset_url, "shards.parquet")
    write_index(str(manifest), pa.table({"name": ["a"]}))
    with pytest.raises(ShardError, match="not a manifest"):
        open_dataset(dataset_url)
    manifest.write_bytes(b"junk")
    with pytest.raises(ShardError, match="not a manifest"):
        open_dataset(dataset_url)
    manifest.unlink()
    with pytest.raises(ShardError, match="missing"):
        open_dataset(dataset_url)


def test_an_index_of_another_length_is_refused(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    write_index(dataset.index_url(0), read_index(dataset.index_url(0)).slice(1))
    with pytest.raises(ShardError, match="has 4 rows, the manifest says 5"):
        dataset.index(0)


def _rewrite_manifest(url: str, change: Callable[[list[dict[str, Any]]], object], *, fix: bool) -> None:
    """Change the rows of the manifest; `fix` makes its sum in dataset.json right again."""
    manifest, summary = Path(url, "shards.parquet"), Path(url, "dataset.json")
    rows = read_table(str(manifest)).to_pylist()
    change(rows)
    write_index(str(manifest), pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    if fix:
        facts = json.loads(summary.read_text())
        facts["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        summary.write_text(json.dumps(facts))


@pytest.mark.parametrize("fix", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "num_shards is 2 in dataset.json, 1 by the rows of shards.parquet"),
        (lambda rows: rows.extend(list(rows)), "names shard '00000' twice"),
        (lambda rows: rows[1].update(name="00002x", num_samples=4), "num_samples is 10 in dataset.json, 9 by the rows"),
        (lambda rows: rows[0].update(num_bytes=1), "num_bytes is"),
        (lambda rows: rows[0].update(num_samples=-5), "num_samples of shard '00000' is -5"),
        (lambda rows: rows[0].update(num_bytes=None), "num_bytes of shard '00000' is None"),
        (lambda rows: rows[0].update(sha256=None), "sha256 of shard '00000' is None, expected 64 hex digits"),
        (lambda rows: rows[1].update(index_sha256=None), "index_sha256 of shard '00001' is None"),
        (lambda rows: rows[1].update(index_sha256="x"), "index_sha256 of shard '00001' is 'x'"),
    ],
)
def test_a_manifest_that_lost_or_gained_something_is_refused(
    dataset_url: str, change: Callable[[list[dict[str, Any]]], object], message: str, fix: bool
) -> None:
    _rewrite_manifest(dataset_url, change, fix=fix)
    with pytest.raises(ShardError, match=message):
        open_dataset(dataset_url)


def test_a_manifest_of_other_shards_is_refused_by_its_sum(dataset_url: str) -> None:
    _rewrite_manifest(dataset_url, lambda rows: rows[0].update(name="other"), fix=False)
    with pytest.raises(
        ShardError, match=r"shards\.parquet: sha256 is .* dataset\.json says .* run the command that wrote"
    ):
        open_dataset(dataset_url)


@pytest.mark.parametrize("value", ["10", None, 10.0, True])
def test_totals_that_are_no_whole_numbers_are_refused(dataset_url: str, value: object) -> None:
    summary = Path(dataset_url, "dataset.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "num_samples": value}))
    with pytest.raises(ShardError, match="num_samples is"):
        open_dataset(dataset_url)


def test_a_dataset_of_schema_1_still_opens_and_its_totals_are_compared(dataset_url: str) -> None:
    summary = Path(dataset_url, "dataset.json")
    facts = json.loads(summary.read_text())
    del facts["manifest_sha256"]
    summary.write_text(json.dumps(facts))
    with pytest.raises(ShardError, match="does not hold the sha256 of this manifest"):
        open_dataset(dataset_url)
    summary.write_text(json.dumps({**facts, "schema": 1}))
    dataset = open_dataset(dataset_url)
    assert (dataset.num_samples, dataset.not_held) == (10, ())
    assert dataset.index(1).num_rows == 5
    _rewrite_manifest(dataset_url, lambda rows: rows.pop(), fix=False)
    with pytest.raises(ShardError, match="num_shards is 2"):
        open_dataset(dataset_url)


def test_another_valid_index_in_its_place_is_refused(dataset_url: str) -> None:
    dataset = open_dataset(dataset_url)
    table = dataset.index(0)
    other = table.set_column(table.column_names.index("label"), "label", pa.array([9] * 5, pa.int64()))
    write_index(dataset.index_url(0), other)
    with pytest.raises(ShardError, match=r"sha256 of the index is .* the manifest says"):
        dataset.index(0)


def test_the_summary_is_small_and_exact(dataset_url: str) -> None:
    summary = json.loads(Path(dataset_url, "dataset.json").read_text())
    size = sum(path.stat().st_size for path in Path(dataset_url, "shards").glob("*.tar"))
    assert summary == {
        "schema": 2,
        "manifest_sha256": hashlib.sha256(Path(dataset_url, "shards.parquet").read_bytes()).hexdigest(),
        "layout": "headrace",
        "num_shards": 2,
        "num_samples": 10,
        "num_bytes": size,
        "recipe_digest": "test",
    }


@pytest.mark.parametrize("column", ["key", "offset", "size"])
def test_a_row_without_a_place_is_refused(dataset_url: str, column: str) -> None:
    """Also where all sums were made to fit it."""
    dataset = open_dataset(dataset_url)
    rows = dataset.index(0).to_pylist()
    rows[2][column] = None
    path = Path(dataset.index_url(0))
    write_index(str(path), pa.Table.from_pylist(rows, schema=dataset.index(0).schema))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _rewrite_manifest(dataset_url, lambda rows: rows[0].update(index_sha256=digest), fix=True)
    with pytest.raises(ShardError, match=f"1 rows have no {column}"):
        open_dataset(dataset_url).index(0)

"""Opening a dataset: every wrong folder gives one clear sentence."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from headrace.shards.dataset import MANIFEST_SCHEMA, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.index import read_index, write_index


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
        ('{"schema": 2}', "schema version 2, this headrace reads 1"),
        ('{"schema": 1, "layout": "other"}', "unknown layout 'other'"),
    ],
)
def test_a_damaged_summary_is_refused(dataset_url: str, text: str, message: str) -> None:
    Path(dataset_url, "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(dataset_url)


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/b", "", None, "a\0", ".hidden"])
def test_a_manifest_cannot_lead_out_of_the_folder(dataset_url: str, name: str | None) -> None:
    row = {"name": name, "num_samples": 1, "num_bytes": 1, "sha256": None, "index_sha256": None}
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


def test_the_summary_is_small_and_exact(dataset_url: str) -> None:
    summary = json.loads(Path(dataset_url, "dataset.json").read_text())
    size = sum(path.stat().st_size for path in Path(dataset_url, "shards").glob("*.tar"))
    assert summary == {
        "schema": 1,
        "layout": "headrace",
        "num_shards": 2,
        "num_samples": 10,
        "num_bytes": size,
        "recipe_digest": "test",
    }

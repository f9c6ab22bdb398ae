"""A folder as inputs: tables beside the images, links, what cannot be listed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.imports.folder import open_folder
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source

Encode = Callable[..., bytes]


def _import(source: object, out: Path, **settings: Any) -> ImportSummary:
    config = ImportConfig(**settings)
    return import_images(open_source(str(source), config), str(out), config)


def _rows(out: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(str(out))
    return [row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()]


@pytest.fixture
def folder(tmp_path: Path, encode_image: Encode) -> Path:
    root = tmp_path / "in"
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode_image("png"))
    return root


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    if path.suffix == ".csv":
        lines = [names, *([str(row[name]) if row[name] is not None else "" for name in names] for row in rows)]
        path.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_table_beside_the_images_gives_captions_and_columns(folder: Path, tmp_path: Path, name: str) -> None:
    rows = [
        {"file_name": "a/1.png", "text": "one, two", "split": "x"},
        {"file_name": "./b/3.png", "text": None, "split": "y"},
        {"file_name": "b/gone.png", "text": "lost", "split": "z"},
        {"file_name": "a/1.png", "text": "again", "split": "z"},
    ]
    _write_table(folder / name, rows)
    summary = _import(folder, tmp_path / "out")
    assert (summary.num_inputs, summary.num_samples, summary.rejects) == (3, 3, {})
    assert summary.leftovers == {"row-twice": 1, "row-without-file": 1, "table": 1}
    assert [(row["source"], row["label"], row["caption"], row["split"]) for row in _rows(tmp_path / "out")] == [
        ("a/1.png", 0, "one, two", "x"),
        ("a/2.png", 0, None, None),
        ("b/3.png", 1, None, "y"),
    ]
    assert open_source(str(folder), ImportConfig()).remarks == (f"2 of 3 files have a row in {name}",)


def test_the_nearest_table_wins_and_labels_of_a_table_win_over_folders(folder: Path, tmp_path: Path) -> None:
    _write_table(folder / "metadata.jsonl", [{"file_name": f"a/{n}.png", "label": "far"} for n in (1, 2)])
    _write_table(folder / "a" / "metadata.jsonl", [{"file_name": "2.png", "label": "near"}])
    _import(folder, tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).classes == ("far", "near")
    assert [row["label"] for row in _rows(tmp_path / "out")] == [0, 1, None]
    _write_table(folder / "metadata.jsonl", [{"file_name": "a/1.png", "label": 7}])
    _import(folder, tmp_path / "numbers")
    assert open_dataset(str(tmp_path / "numbers")).classes == ()
    assert [row["label"] for row in _rows(tmp_path / "numbers")] == [7, None, None]
    assert [row["label_text"] for row in _rows(tmp_path / "numbers")] == [None, "near", None]


def test_a_cell_that_is_not_understood_is_named_with_its_table(folder: Path, tmp_path: Path) -> None:
    _write_table(folder / "metadata.csv", [{"file_name": "a/1.png", "label": "1.5", "text": "one"}])
    summary = _import(folder, tmp_path / "out")
    assert (summary.num_samples, summary.notes) == (3, 1)
    notes = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    (message,) = [row["message"] for row in notes if row["reason"] == "bad-text"]
    assert message == "metadata.csv: label: expected int or the name of a class, got '1.5'"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,text\na/1.png,x,y\n", r"metadata\.csv: line 2: 3 cells, the header has 2"),
        ("metadata.csv", 'file_name,text\na/1.png,"x" y\n', r"metadata\.csv: line 2: "),
        ("metadata.csv", 'file_name,text\na/1.png,"x\n', r"metadata\.csv: line 2: "),
        ("metadata.csv", "file_name,a,a\n", "line 1: two columns have one name"),
        ("metadata.csv", "name,text\nx,y\n", "line 2: no text in the column file_name; it has name, text"),
        ("metadata.jsonl", '{"file_name": "a"}\n{', "line 2: not JSON"),
        ("metadata.jsonl", "[]", "line 1: expected a mapping, got list"),
        ("metadata.jsonl", '{"file_name": 5}', "line 1: no text in the column file_name"),
        ("metadata.parquet", "junk", "not a parquet file"),
    ],
)
def test_a_table_that_cannot_be_read_row_by_row_is_refused(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(str(folder), ImportConfig())


def test_only_import_reads_tables(folder: Path) -> None:
    (folder / "metadata.csv").write_text("junk")
    assert "metadata.csv" in open_folder(str(folder)).paths


def test_a_folder_of_links_alone_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x").symlink_to(folder)
    with pytest.raises(ValueError, match="no file there; 1 links out of it or hidden files were left out"):
        open_folder(str(tmp_path / "links"))
    assert open_folder(str(tmp_path / "links"), follow_links=True).num_inputs == 3


def test_a_folder_that_cannot_be_read_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.scandir

    def refused(path: str) -> object:  # the tests may run as root, who may read every folder
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        open_folder(str(folder))


@pytest.mark.parametrize("name", ["my [data] (v1)", "what?", "st*r", "{0..1}", "sp ace"])
def test_a_folder_may_have_any_name(folder: Path, tmp_path: Path, name: str) -> None:
    renamed = folder.rename(tmp_path / name)
    assert _import(renamed, tmp_path / f"out {name}").num_samples == 3
    assert open_dataset(str(tmp_path / f"out {name}")).num_samples == 3

"""Parquet as people write it: categoricals, doubled names, text that is none, no rows."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source

Encode = Callable[..., bytes]


def _import(table: pa.Table, folder: Path) -> ImportSummary:
    pq.write_table(table, folder / "in.parquet")
    config = ImportConfig()
    return import_images(open_source(str(folder / "in.parquet"), config), str(folder / "out"), config)


def test_categoricals_of_pandas_are_the_text_they_stand_for(tmp_path: Path, encode_image: Encode) -> None:
    table = pa.table(
        {
            "jpg": [encode_image()] * 3,
            "label": pa.array(["dog", "cat", None]).dictionary_encode(),
            "caption": pa.array(["a", None, "c"]).dictionary_encode(),
        }
    )
    _import(table, tmp_path)
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.classes == ("cat", "dog")
    assert dataset.index(0)["label"].to_pylist() == [1, 0, None]
    assert dataset.index(0)["caption"].to_pylist() == ["a", None, "c"]


def test_text_that_is_no_utf8_costs_that_text_and_is_listed(tmp_path: Path, encode_image: Encode) -> None:
    raw = pa.array([b"good", b"caf\xe9", None])
    captions = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    summary = _import(pa.table({"jpg": [encode_image()] * 3, "caption": captions, "label": [1, 2, 3]}), tmp_path)
    assert (summary.num_samples, summary.rejects, summary.notes) == (3, {}, 1)
    index = open_dataset(str(tmp_path / "out")).index(0)
    assert index["caption"].to_pylist() == ["good", None, None]
    assert index["label"].to_pylist() == [1, 2, 3]
    (note,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (note["name"], note["reason"], note["message"], note["imported"]) == (
        "in.parquet:1",
        "bad-text",
        "no UTF-8: caption",
        True,
    )


@pytest.mark.parametrize("name", ["jpg", "caption", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, encode_image: Encode, name: str) -> None:
    image = pa.array([encode_image()])
    table = pa.table([image, image, image], names=["jpg", name, name])
    with pytest.raises(ValueError, match=f"columns are named {name}; rename all but one"):
        _import(table, tmp_path)


def test_nothing_to_import_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in\.parquet: nothing in it to import"):
        _import(pa.table({"jpg": pa.array([], pa.binary())}), tmp_path)
    assert not (tmp_path / "out").exists()

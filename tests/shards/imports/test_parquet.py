"""Parquet as people write it: categoricals, doubled names, text that is none, no rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source
from headrace.shards.payloads import read_sample

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


HF = {"_type": "ClassLabel", "names": ["airplane", "bird", "cat"]}


def _huggingface(**features: object) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def test_names_of_a_class_label_are_the_classes(tmp_path: Path, encode_image: Encode) -> None:
    table = pa.table({"image": [encode_image()] * 5, "label": [0, 2, 1, -1, 7]})
    summary = _import(table.replace_schema_metadata(_huggingface(label=HF)), tmp_path)
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.classes == ("airplane", "bird", "cat")
    assert dataset.index(0)["label"].to_pylist() == [0, 2, 1, None, None]
    assert summary.notes == 1  # -1 is how `datasets` spells none; 7 is a mistake
    (note,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert note["message"] == "label 7 is none of the 3 classes"


@pytest.mark.parametrize(
    "footer", [b"{", b"[]", b"{}", b'{"info": null}', b'{"info": {"features": {"label": {"names": [1]}}}}']
)
def test_a_footer_that_means_nothing_is_left_alone(tmp_path: Path, encode_image: Encode, footer: bytes) -> None:
    table = pa.table({"image": [encode_image()], "label": [5]}).replace_schema_metadata({b"huggingface": footer})
    _import(table, tmp_path)
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.classes, dataset.index(0)["label"].to_pylist()) == ((), [5])


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("bytes", pa.large_binary())]),
    ],
    ids=str,
)
def test_an_image_column_of_every_type(tmp_path: Path, encode_image: Encode, kind: pa.DataType) -> None:
    data = [encode_image(seed=seed) for seed in range(2)]
    values = [{"bytes": one, "path": "p"} for one in data] if pa.types.is_struct(kind) else data
    if pa.types.is_dictionary(kind):
        column = pa.array([*values, None], pa.binary()).dictionary_encode()
    else:
        column = pa.array([*values, None], kind)
    assert _import(pa.table({"image": column}), tmp_path).rejects == {"no-image": 1}
    dataset = open_dataset(str(tmp_path / "out"))
    assert [read_sample(dataset, 0, row) for row in range(2)] == data


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_text_of_every_type(tmp_path: Path, encode_image: Encode, kind: pa.DataType) -> None:
    texts = pa.array(["a", None, ""], kind)
    table = pa.table({"image": [encode_image()] * 3, "caption": texts, "label": texts, "more": texts})
    _import(table, tmp_path)
    index = open_dataset(str(tmp_path / "out")).index(0)
    assert index["caption"].to_pylist() == ["a", None, None]
    assert index["label"].to_pylist() == [1, None, 0]
    assert index["more"].to_pylist() == ["a", None, ""]


def test_columns_of_plain_values_are_carried_and_others_named(tmp_path: Path, encode_image: Encode) -> None:
    table = pa.table(
        {
            "image": [encode_image()],
            "Caption": ["by another case"],
            "text": ["t"],
            "small": pa.array([1], pa.int8()),
            "huge": pa.array([1 << 63], pa.uint64()),
            "half": pa.array([0.5], pa.float32()),
            "nan": [float("nan")],
            "ok": [True],
            "day": pa.array([0], pa.date32()),
            "nested": [{"a": 1}],
            "list": [[1]],
            "width": [9],
            "source": ["web"],
        }
    )
    summary = _import(table, tmp_path)
    source = open_source(str(tmp_path / "in.parquet"), ImportConfig())
    assert source.left_out == ("Caption", "day", "nested", "list", "width", "source")
    (row,) = open_dataset(str(tmp_path / "out")).index(0).to_pylist()
    carried = {name: row[name] for name in ("small", "huge", "half", "nan", "ok")}
    assert carried == {"small": 1, "huge": None, "half": 0.5, "nan": None, "ok": True}
    assert row["caption"] == "t"
    assert (row["source"], row["width"]) == ("in.parquet:0", 24)
    assert summary.notes == 1


def test_several_captions_are_kept_and_the_first_is_the_caption(tmp_path: Path, encode_image: Encode) -> None:
    captions = [["a", "b"], ["only"], [], None, [None, "", "c"]]
    _import(pa.table({"image": [encode_image()] * 5, "caption": captions}), tmp_path)
    index = open_dataset(str(tmp_path / "out")).index(0)
    assert index["caption"].to_pylist() == ["a", "only", None, None, "c"]
    assert index["captions"].to_pylist() == [["a", "b"], None, None, None, None]


def test_a_file_that_is_only_named_says_so(tmp_path: Path, encode_image: Encode) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": encode_image(), "path": "a"}, {"bytes": None, "path": "/data/b.jpg"}]
    _import(pa.table({"image": pa.array(images, kind)}), tmp_path)
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert reject["message"] == "bytes are null; the file '/data/b.jpg' that it names is not read"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[b"x"]]), r"column image is list<.*>, expected bytes"),
        (pa.array([{"path": "x"}]), r"column image is struct<path: string>, expected bytes"),
        (pa.array([1]), "column image is int64, expected bytes"),
    ],
)
def test_an_image_column_without_bytes_is_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _import(pa.table({"image": column}), tmp_path)


def test_files_whose_columns_differ_name_the_first_that_does(tmp_path: Path, encode_image: Encode) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [encode_image()], "n": [1]}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"image": [encode_image()], "n": ["x"]}), tmp_path / "in" / "b.parquet")
    with pytest.raises(
        ValueError, match=r"b\.parquet: its columns differ from those of .*a\.parquet: n is string, there int64"
    ):
        open_source(str(tmp_path / "in"), ImportConfig())

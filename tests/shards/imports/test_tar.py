"""Tars as inputs: webdatasets keep what their members say, loose images are one each, and the rest is named."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.group import GroupConfig
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source
from headrace.shards.verify import verify_dataset

Encode = Callable[..., bytes]


def _tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def _import(source: object, out: Path, **settings: Any) -> ImportSummary:
    config = ImportConfig(**settings)
    return import_images(open_source(str(source), config), str(out), config)


def _rows(out: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(str(out))
    return [row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()]


def _names(out: Path) -> list[tuple[str, str]]:
    return [(row["name"], row["reason"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()]


def test_captions_by_other_names_come_along(tmp_path: Path, encode_image: Encode) -> None:
    members = [
        item
        for number, extension in enumerate(("txt", "text", "caption", "caption.txt", "TXT"))
        for item in ((f"{number}.jpg", encode_image()), (f"{number}.{extension}", b"c%d" % number))
    ]
    assert _import(_tar(tmp_path / "a.tar", members), tmp_path / "out").num_samples == 5
    assert [row["caption"] for row in _rows(tmp_path / "out")] == [f"c{number}" for number in range(5)]
    members = [
        (f"s{n}.{part}", data) for n in range(2) for part, data in (("in.jpg", encode_image()), ("out.txt", b"o"))
    ]
    _import(_tar(tmp_path / "b.tar", members), tmp_path / "parts")
    assert [(row["source"], row["caption"]) for row in _rows(tmp_path / "parts")] == [("s0", "o"), ("s1", "o")]


def test_names_with_dots_are_samples_each(tmp_path: Path, encode_image: Encode) -> None:
    members = []
    for number in range(4):
        members += [(f"p.{number:03d}.jpg", encode_image(seed=number)), (f"p.{number:03d}.txt", b"c%d" % number)]
    source = open_source(_tar(tmp_path / "a.tar", members), ImportConfig())
    assert source.remarks == ("keys end at the last dot in 1 of 1 tars; --keys first-dot takes webdataset's rule",)
    _import(tmp_path / "a.tar", tmp_path / "out")
    assert [(row["source"], row["caption"]) for row in _rows(tmp_path / "out")] == [
        (f"p.{number:03d}", f"c{number}") for number in range(4)
    ]


def test_views_are_one_sample_whose_image_is_named(tmp_path: Path, encode_image: Encode) -> None:
    members = [(f"{n}.{side}.jpg", encode_image(seed=n)) for n in range(3) for side in ("left", "right")]
    url = _tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=r"3 ambiguous-image .*--image-extension"):
        open_source(url, ImportConfig())
    summary = _import(url, tmp_path / "out", group=GroupConfig(image="right.jpg"))
    assert (summary.num_inputs, summary.num_samples, summary.leftovers) == (3, 3, {"other-image": 3})
    assert _names(tmp_path / "out") == [(f"{n}.left.jpg", "other-image") for n in range(3)]


def test_labels_that_are_text_become_classes(tmp_path: Path, encode_image: Encode) -> None:
    for tar, names in {"a": [b"dog", b"cat"], "b": [b"ant", b""]}.items():
        members = []
        for number, name in enumerate(names):
            members += [(f"{number}.jpg", encode_image()), (f"{number}.cls", name)]
        _tar(tmp_path / f"{tar}.tar", members)
    summary = _import(tmp_path, tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).classes == ("ant", "cat", "dog")
    assert [row["label"] for row in _rows(tmp_path / "out")] == [2, 1, 0, None]
    assert summary.notes == 1


def test_scalars_of_json_are_columns(tmp_path: Path, encode_image: Encode) -> None:
    records = [{"score": 1, "source": "web", "boxes": [1]}, {"score": 0.5, "ok": True}, {"caption": ["a", "b"]}]
    members = []
    for number, record in enumerate(records):
        members += [(f"{number}.jpg", encode_image()), (f"{number}.json", json.dumps(record).encode())]
    url = _tar(tmp_path / "a.tar", members)
    source = open_source(url, ImportConfig())
    assert source.columns == {"captions": "texts", "ok": "bool", "score": "float"}
    assert source.left_out == ("boxes", "source")
    _import(url, tmp_path / "out")
    assert [(row["score"], row["ok"], row["caption"], row["captions"]) for row in _rows(tmp_path / "out")] == [
        (1.0, None, None, None),
        (0.5, True, None, None),
        (None, None, "a", ["a", "b"]),
    ]
    assert list(verify_dataset(str(tmp_path / "out"), decode=True)) == []


def test_a_column_of_several_kinds_is_the_same_text_imported_and_indexed(tmp_path: Path, encode_image: Encode) -> None:
    members = []
    for number, value in enumerate([True, 1, 0.5, None, "x"]):
        members += [(f"{number}.jpg", encode_image()), (f"{number}.json", json.dumps({"mixed": value}).encode())]
    url = _tar(tmp_path / "a.tar", members)
    _import(url, tmp_path / "out")
    index_folder(str(tmp_path), ["a.tar"], IndexConfig())
    expected = ["true", "1", "0.5", None, "x"]
    assert [row["mixed"] for row in _rows(tmp_path / "out")] == [row["mixed"] for row in _rows(tmp_path)] == expected


def test_a_value_that_its_column_cannot_hold_is_named(tmp_path: Path, encode_image: Encode) -> None:
    """The columns are those of the first hundred samples of a tar."""
    members = []
    for number in range(102):
        value = "much" if number == 101 else number
        members += [(f"{number:03d}.jpg", encode_image()), (f"{number:03d}.json", json.dumps({"n": value}).encode())]
    summary = _import(_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert (summary.num_samples, summary.notes) == (102, 1)
    (note,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (note["name"], note["reason"], note["message"]) == ("101", "bad-text", "column n holds int64, got 'much'")


def test_a_text_that_belongs_to_no_image_does_not_make_a_tar_a_webdataset(tmp_path: Path, encode_image: Encode) -> None:
    members = [("cat/a.1.jpg", encode_image()), ("cat/a.2.jpg", encode_image()), ("README.txt", b"about")]
    summary = _import(_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert (summary.num_samples, summary.rejects) == (2, {"not-image": 1})
    assert [row["label"] for row in _rows(tmp_path / "out")] == [0, 0]


def test_links_hidden_files_and_other_files_are_named(tmp_path: Path, encode_image: Encode) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "c.jpg", "._a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(encode_image())
            tar.addfile(info, io.BytesIO(encode_image()))
        for name, kind in (("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE), ("dir", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
    (tmp_path / "in" / "notes.md").write_text("x")
    (tmp_path / "in" / "b.tar.gz").write_bytes(b"x")
    summary = _import(tmp_path / "in", tmp_path / "out")
    assert (summary.num_inputs, summary.num_samples) == (3, 3)
    assert summary.leftovers == {"hidden": 1, "link": 2, "other-file": 2}
    assert _names(tmp_path / "out") == [
        ("._a.jpg", "hidden"),
        ("hard.jpg", "link"),
        ("soft.jpg", "link"),
        ("b.tar.gz", "other-file"),
        ("notes.md", "other-file"),
    ]


def test_many_tars_are_read_with_few_files_open(tmp_path: Path, encode_image: Encode) -> None:
    for number in range(40):
        _tar(tmp_path / f"{number:02d}.tar", [(f"{n}.jpg", encode_image(seed=n)) for n in range(3)])
    assert _import(tmp_path, tmp_path / "out", shuffle=3).num_samples == 120
    assert [row["source"] for row in _rows(tmp_path / "out")] != [row["source"] for row in _rows(tmp_path / "out")][
        ::-1
    ]

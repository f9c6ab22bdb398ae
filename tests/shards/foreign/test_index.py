"""An index over tars as people make them: one schema for all, classes by name, what is left over named and limited."""

import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.dataset import open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.foreign.index import IndexConfig, IndexSummary, index_folder
from headrace.shards.group import GroupConfig
from headrace.shards.verify import verify_dataset

Encode = Callable[..., bytes]
Members = list[tuple[str, bytes]]


def _tar(path: Path, members: Members) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _index(folder: Path, **config: Any) -> IndexSummary:
    return index_folder(str(folder), sorted(path.name for path in folder.glob("*.tar")), IndexConfig(**config))


def _rows(folder: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(str(folder))
    return [row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()]


def _pairs(image: bytes, extension: str, texts: list[bytes], first: int = 0) -> Members:
    return [
        item
        for number, text in enumerate(texts, start=first)
        for item in ((f"{number}.jpg", image), (f"{number}.{extension}", text))
    ]


def test_a_column_of_one_tar_is_null_in_the_others_and_fits_all(tmp_path: Path, encode_image: Encode) -> None:
    records = [[{"score": 1, "a": "x"}, {}], [{"score": 0.5, "b": True}], [{"score": 2}]]
    for number, some in enumerate(records):
        texts = [json.dumps(record).encode() for record in some]
        _tar(tmp_path / f"{number}.tar", _pairs(encode_image(), "json", texts))
    assert _index(tmp_path).columns == ("a", "b", "score")
    dataset = open_dataset(str(tmp_path))
    assert len({dataset.index(shard).schema for shard in range(3)}) == 1
    assert [(row["a"], row["b"], row["score"]) for row in _rows(tmp_path)] == [
        ("x", None, 1.0),
        (None, None, None),
        (None, True, 0.5),
        (None, None, 2.0),
    ]
    assert list(verify_dataset(str(tmp_path), decode=True)) == []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert _index(tmp_path).repaired == ()
    assert {path: path.read_bytes() for path in before} == before


def test_fewer_tars_agree_on_what_they_hold(tmp_path: Path, encode_image: Encode) -> None:
    """What an index looks like depends on the tars it is asked for, not on those it once was made with."""
    for number, record in enumerate([{"score": 1}, {"score": 0.5, "b": 1}, {"score": "x"}]):
        _tar(tmp_path / f"{number}.tar", _pairs(encode_image(), "json", [json.dumps(record).encode()]))
    index_folder(str(tmp_path), ["0.tar"], IndexConfig())
    alone = (tmp_path / "index" / "0.parquet").read_bytes()
    for names in (["0.tar", "1.tar"], ["0.tar", "1.tar", "2.tar"], ["0.tar", "2.tar"]):
        index_folder(str(tmp_path), names, IndexConfig())
        assert open_dataset(str(tmp_path)).index(0)["score"].to_pylist() == (
            [1.0] if len(names) == 2 and "1.tar" in names else ["1"]
        )
    index_folder(str(tmp_path), ["0.tar"], IndexConfig())
    assert (tmp_path / "index" / "0.parquet").read_bytes() == alone


def test_labels_that_are_text_are_the_classes_of_all_tars(tmp_path: Path, encode_image: Encode) -> None:
    _tar(tmp_path / "0.tar", _pairs(encode_image(), "cls", [b"dog", b"cat\n"]))
    _tar(tmp_path / "1.tar", _pairs(encode_image(), "cls", [b"ant", b"dog"]))
    assert _index(tmp_path).classes == ("ant", "cat", "dog")
    assert open_dataset(str(tmp_path)).classes == ("ant", "cat", "dog")
    assert [row["label"] for row in _rows(tmp_path)] == [2, 1, 0, 2]
    assert list(verify_dataset(str(tmp_path))) == []
    _tar(tmp_path / "2.tar", _pairs(encode_image(), "cls", [b"7"]))
    summary = _index(tmp_path)
    assert (summary.classes, summary.unnumbered) == ((), 3)
    assert [(row["label"], row["label_text"]) for row in _rows(tmp_path)] == [
        (None, "dog"),
        (None, "cat"),
        (None, "ant"),
        (None, "dog"),
        (7, None),
    ]
    (tmp_path / "2.tar").unlink()
    _index(tmp_path)
    assert [row["label"] for row in _rows(tmp_path)] == [2, 1, 0, 2]


def test_the_table_beside_a_tar_says_what_no_member_says(tmp_path: Path, encode_image: Encode) -> None:
    members = [("0.jpg", encode_image()), ("0.txt", b"txt"), ("1.jpg", encode_image()), ("2.jpg", encode_image())]
    _tar(tmp_path / "a.tar", members)
    table = {
        "key": ["1", "0", "gone"],
        "caption": ["one", "table", "x"],
        "url": ["u1", None, "x"],
        "similarity": [0.25, float("nan"), 1.0],
        "status": pa.array(["success"] * 3).dictionary_encode(),
        "boxes": [[1], [2], [3]],
        "label": [4, 5, 6],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    _tar(tmp_path / "b.tar", members[:2])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    assert _index(tmp_path).columns == ("similarity", "status")
    assert [
        (row["caption"], row["url"], row["label"], row["similarity"], row["status"]) for row in _rows(tmp_path)
    ] == [
        ("txt", None, 5, None, "success"),
        ("one", "u1", 4, 0.25, "success"),
        (None, None, None, None, None),
        ("txt", None, None, None, None),
    ]
    assert list(verify_dataset(str(tmp_path))) == []


def test_a_fault_in_the_table_beside_a_tar_names_the_table(tmp_path: Path, encode_image: Encode) -> None:
    _tar(tmp_path / "a.tar", [("0.jpg", encode_image())])
    pq.write_table(pa.table({"key": ["0"], "label": [1.5]}), tmp_path / "a.parquet")
    ((shard, key, _, message),) = _index(tmp_path).faults
    assert (shard, key) == ("a", "0")
    assert message == "a.parquet: label: expected int or the name of a class, got '1.5'"


@pytest.mark.parametrize("key", [b"0", ["0"], 0, None])
def test_a_table_whose_keys_are_no_text_is_someone_elses(
    tmp_path: Path, encode_image: Encode, caplog: pytest.LogCaptureFixture, key: object
) -> None:
    caplog.set_level(logging.INFO)
    _tar(tmp_path / "a.tar", [("0.jpg", encode_image())])
    pq.write_table(pa.table({"key": [key], "caption": ["c"]}), tmp_path / "a.parquet")
    assert _index(tmp_path).num_samples == 1
    assert _rows(tmp_path)[0]["caption"] is None
    assert f"{tmp_path}/a.parquet: not read beside the tar: no column key of text" in caplog.text


def test_what_is_left_over_is_named_beside_the_index(tmp_path: Path, encode_image: Encode) -> None:
    members = [*_pairs(encode_image(), "seg.png", [encode_image("png")] * 2), ("x.txt", b"x"), ("README", b"")]
    _tar(tmp_path / "a.tar", [*members, ("1.txt", b"\xff"), ("1.npy", b"")])
    _tar(tmp_path / "b.tar", [("0.jpg", encode_image())])
    summary = _index(tmp_path)
    assert summary.members == {"image": 3, "text": 1, "not-read": 1, "no-image": 1, "no-key": 1, "other-image": 2}
    assert summary.not_read == {"npy": 1}
    assert summary.rejects == f"{tmp_path}/index/rejects"
    rows = pq.read_table(tmp_path / "index" / "rejects" / "a.parquet").to_pylist()
    assert [(row["name"], row["key"], row["reason"], row["indexed"]) for row in rows] == [
        ("0.seg.png", None, "other-image", False),
        ("1.seg.png", None, "other-image", False),
        ("x.txt", None, "no-image", False),
        ("README", None, "no-key", False),
        (None, "1", "fault", True),
    ]
    assert not (tmp_path / "index" / "rejects" / "b.parquet").exists()
    facts = json.loads((tmp_path / "dataset.json").read_text())
    assert (facts["members"], facts["not_read"]) == (summary.members, summary.not_read)
    (tmp_path / "index" / "rejects" / "a.parquet").unlink()
    assert _index(tmp_path).repaired == ("a: its list of rejects is missing",)
    assert (tmp_path / "index" / "rejects" / "a.parquet").exists()


def test_more_left_over_than_declared_ends_the_run(tmp_path: Path, encode_image: Encode) -> None:
    views = [(f"{number}.{side}.jpg", encode_image()) for number in range(3) for side in ("left", "right")]
    _tar(tmp_path / "a.tar", views)
    with pytest.raises(ShardError, match=r"3 ambiguous-image, named in .*rejects: 3 of 6 samples .*--image-extension"):
        _index(tmp_path)
    assert not (tmp_path / "dataset.json").exists()
    assert _index(tmp_path, max_unused=0.5).num_samples == 3
    assert _index(tmp_path, group=GroupConfig(image="right.jpg")).num_samples == 3
    assert open_dataset(str(tmp_path)).group == GroupConfig(image="right.jpg")
    assert list(verify_dataset(str(tmp_path))) == []
    assert _index(tmp_path, group=GroupConfig(keys="last-dot")).num_samples == 6
    assert list(verify_dataset(str(tmp_path))) == []


def test_the_share_is_judged_from_a_hundred_on(tmp_path: Path, encode_image: Encode) -> None:
    pairs = _pairs(encode_image(), "txt", [b"x"] * 98)
    _tar(tmp_path / "a.tar", [*pairs, ("lost.txt", b"")])
    assert _index(tmp_path).without_image == 1
    _tar(tmp_path / "a.tar", [*pairs, ("lost.txt", b""), ("more.txt", b"")])
    with pytest.raises(ShardError, match="2 of 100 samples or images"):
        _index(tmp_path, rebuild=True)


def test_an_index_of_an_older_headrace_is_made_again(tmp_path: Path, encode_image: Encode) -> None:
    _tar(tmp_path / "a.tar", [(f"p.{number}.jpg", encode_image()) for number in range(3)])
    _index(tmp_path, max_unused=1.0, group=GroupConfig(keys="first-dot"))
    (record,) = (tmp_path / "index" / "commits").iterdir()
    facts = json.loads(record.read_text())
    assert facts.pop("version") == 2
    record.write_text(json.dumps(facts))
    summary = _index(tmp_path)
    assert (summary.num_samples, summary.repaired) == (3, ())


def test_a_damaged_dataset_can_be_indexed_again(tmp_path: Path, encode_image: Encode) -> None:
    _tar(tmp_path / "a.tar", [("0.jpg", encode_image())])
    _index(tmp_path)
    (tmp_path / "shards.parquet").write_bytes(b"junk")
    with pytest.raises(ShardError, match="run headrace index again"):
        open_dataset(str(tmp_path))
    _index(tmp_path)
    assert open_dataset(str(tmp_path)).num_samples == 1


_NAME = st.builds(
    lambda folder, parts, extension: folder + ".".join([*parts, extension]),
    st.sampled_from(["", "./", "v1.0/", "._"]),
    st.lists(st.sampled_from(["a", "b", "000", "001", "left", "x y", "\u00e4"]), min_size=1, max_size=3),
    st.sampled_from(["jpg", "JPG", "png", "txt", "text", "json", "cls", "npy", ""]),
)
_CONTENT = st.sampled_from(["image", "cut", "empty", "label", "name", "json", "latin"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tars=st.lists(st.lists(st.tuples(_NAME, _CONTENT), max_size=8), min_size=1, max_size=3),
    keys=st.sampled_from(["auto", "first-dot", "last-dot"]),
)
def test_any_tars_are_accounted_for_and_verify_agrees(
    tmp_path: Path, encode_image: Encode, tars: list[list[tuple[str, str]]], keys: str
) -> None:
    contents = {
        "image": encode_image(),
        "cut": encode_image("jpeg", (32, 32))[:-100],
        "empty": b"",
        "label": b"3",
        "name": b"cat",
        "json": b'{"label": "dog", "score": 1, "more": [1]}',
        "latin": b"caf\xe9",
    }
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    for number, members in enumerate(tars):
        _tar(folder / f"{number}.tar", [(name, contents[kind]) for name, kind in members])
    config: dict[str, Any] = {"max_unused": 1.0, "group": GroupConfig(keys=keys)}  # type: ignore[arg-type]
    summary = _index(folder, **config)
    assert sum(summary.members.values()) == sum(map(len, tars))
    assert summary.members["image"] == summary.num_samples
    rows = _rows(folder)
    # A member is a row, a text of one, named, or counted by its extension.
    named = list((folder / "index" / "rejects").glob("*.parquet")) if summary.rejects else []
    rejects = [row for path in named for row in pq.read_table(path).to_pylist() if not row["indexed"]]
    used = summary.members["image"] + summary.members["text"] + summary.members["not-read"]
    assert len(rejects) == sum(map(len, tars)) - used
    broken = sum(row["width"] is None for row in rows)
    damages = verify_dataset(str(folder))
    cut = [damage for damage in damages if "truncated" in damage.message]
    assert len(damages) == broken + len(cut)
    assert _index(folder, **config).repaired == ()
    dataset = open_dataset(str(folder))
    assert len({dataset.index(shard).schema for shard in range(len(dataset.shards))}) == 1

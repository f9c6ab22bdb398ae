"""Indexes of tars that others wrote: webdataset's grouping, typed facts, and no row lost."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.errors import ShardError
from headrace.shards.group import split_name
from headrace.shards.index import INDEX_SCHEMA, build_index, index_shard, read_index, write_index

Encode = Callable[..., bytes]


def _tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return str(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_shards_of_webdatasets_own_writer_are_read(tmp_path: Path, encode_image: Encode) -> None:
    import webdataset

    images = [encode_image("png", (8 + number, 5), seed=number) for number in range(7)]
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=4, verbose=0) as writer:
        for number, image in enumerate(images):
            facts = {"caption": f"c{number}", "url": f"u{number}", "uid": "f" * 32, "label": 9}
            writer.write({"__key__": f"dir/key{number}", "png": image, "json": facts, "cls": number})
    tables = [index_shard(str(tmp_path / f"{shard:03d}.tar")) for shard in range(2)]
    assert [table.schema for table in tables] == [INDEX_SCHEMA, INDEX_SCHEMA]
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["key"] for row in rows] == [f"dir/key{number}" for number in range(7)]
    for number, row in enumerate(rows):
        assert (row["width"], row["height"], row["format"], row["orientation"]) == (8 + number, 5, "png", 1)
        assert (row["label"], row["caption"], row["url"], row["uid"]) == (number, f"c{number}", f"u{number}", "f" * 32)
        data = (tmp_path / f"{number // 4:03d}.tar").read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert data == images[number]
        assert row["crc32"] == zlib.crc32(data)


@settings(max_examples=300, deadline=None)
@given(name=st.text(st.sampled_from("ab._/-A"), max_size=12))
def test_keys_are_webdatasets(name: str) -> None:
    from headrace.shards.tar import webdataset_module

    base, extension = webdataset_module("tariterators").base_plus_ext(name)
    if "__" in name:
        return
    assert split_name(name) == (None if base is None else (base, extension.lower()))


@pytest.mark.parametrize("name", ["__meta__/a.jpg", "__info__", "._a.jpg", "noextension", ".jpg"])
def test_names_that_are_no_samples(name: str) -> None:
    assert split_name(name) is None


def test_the_image_is_the_first_with_a_known_extension(tmp_path: Path, encode_image: Encode) -> None:
    mask, photo = encode_image("png", (5, 5)), encode_image("jpeg", (9, 9))
    url = _tar(tmp_path / "a.tar", [("k.seg.png", mask), ("k.JPG", photo), ("k.png", mask)])
    assert index_shard(url).to_pylist()[0]["format"] == "jpeg"
    url = _tar(tmp_path / "b.tar", [("k.txt", b"x"), ("k.seg.png", mask)])
    assert index_shard(url).to_pylist()[0]["format"] == "png"


def test_text_members_win_over_json(tmp_path: Path, encode_image: Encode) -> None:
    facts = json.dumps({"caption": "json", "label": 1}).encode()
    for order in (1, -1):
        members = [("k.cls", b"2\n"), ("k.jpg", encode_image()), ("k.json", facts), ("k.txt", b"txt")][::order]
        row = index_shard(_tar(tmp_path / "a.tar", members)).to_pylist()[0]
        assert (row["caption"], row["label"]) == ("txt", 2)


@pytest.mark.parametrize(
    ("member", "payload", "message"),
    [
        ("json", b"{", ".json:"),
        ("json", b"[1]", "expected a mapping, got list"),
        ("json", b"[" * 100_000, "nested too deep"),
        ("json", b"\xff\xfe", "utf-8"),
        ("json", b'{"label": 1.5}', "label: expected int or the name of a class, got '1.5'"),
        ("json", b'{"label": [1]}', "label: expected int"),
        ("json", b'{"label": true}', "label: expected int"),
        ("json", b'{"label": 99999999999999999999}', "over 64 bits"),
        ("json", b'{"caption": [1]}', "caption: expected str"),
        ("json", b'{"caption": {"en": "a"}}', "caption: expected str"),
        ("json", b'{"caption": "\\ud800"}', "caption"),
        ("cls", b"", ".cls:"),
        ("cls", b"1 5 7", ".cls:"),
        ("cls", b"nan", ".cls:"),
        ("cls", b"9" * 30, "over 64 bits"),
        ("txt", b"\xff", ".txt:"),
    ],
)
def test_what_cannot_be_understood_is_a_fault_and_null(
    tmp_path: Path, encode_image: Encode, caplog: pytest.LogCaptureFixture, member: str, payload: bytes, message: str
) -> None:
    url = _tar(
        tmp_path / "s.tar", [("good.jpg", encode_image()), ("bad.jpg", encode_image()), (f"bad.{member}", payload)]
    )
    indexed = build_index(url)
    assert [row["key"] for row in indexed.table.to_pylist()] == ["good", "bad"]
    assert indexed.table["label"].null_count == 2
    assert indexed.table["caption"].null_count == 2
    (fault,) = indexed.faults
    assert fault.key == "bad"
    assert fault.offset > 0
    assert message in fault.message
    index_shard(url)
    assert "sample 'bad' at byte" in caplog.text


def test_a_damaged_image_keeps_its_row(tmp_path: Path, encode_image: Encode) -> None:
    indexed = build_index(_tar(tmp_path / "s.tar", [("a.jpg", b"<html>"), ("b.jpg", encode_image()), ("c.txt", b"x")]))
    rows = indexed.table.to_pylist()
    assert [(row["key"], row["width"], row["format"]) for row in rows] == [("a", None, None), ("b", 24, "jpeg")]
    assert rows[0]["crc32"] == zlib.crc32(b"<html>")
    assert len(indexed.faults) == 1
    assert indexed.without_image == 1


def test_fast_reads_headers_only(tmp_path: Path, encode_image: Encode) -> None:
    url = _tar(tmp_path / "s.tar", [("a.jpg", encode_image()), ("a.txt", b"caption")])
    fast, full = index_shard(url, fast=True).to_pylist()[0], index_shard(url).to_pylist()[0]
    assert (fast["key"], fast["offset"], fast["size"]) == (full["key"], full["offset"], full["size"])
    assert fast["crc32"] is fast["width"] is fast["caption"] is None


def test_fast_does_not_read_payloads_over_http(tmp_path: Path, encode_image: Encode, folder_server: Any) -> None:
    big = encode_image() + bytes(20_000_000)
    _tar(tmp_path / "s.tar", [("a.jpg", big), ("b.jpg", big)])
    url = f"{folder_server.url}/s.tar"
    full = index_shard(url)
    assert full.drop(["uid"]).equals(index_shard(str(tmp_path / "s.tar")).drop(["uid"]))
    whole = len(folder_server.requests)
    assert index_shard(url, fast=True).select(["key", "offset", "size"]).equals(full.select(["key", "offset", "size"]))
    assert len(folder_server.requests) - whole < whole


def test_the_same_member_twice_is_the_first_and_the_other_is_named(tmp_path: Path, encode_image: Encode) -> None:
    images = [encode_image(seed=seed) for seed in range(2)]
    indexed = build_index(_tar(tmp_path / "s.tar", [("a.jpg", images[0]), ("a.JPG", images[1])]))
    assert [row["crc32"] for row in indexed.table.to_pylist()] == [zlib.crc32(images[0])]
    assert [(item.member.name, item.reason) for item in indexed.grouped.unused] == [("a.JPG", "duplicate")]


def test_labels_and_captions_that_mean_something_are_read(tmp_path: Path, encode_image: Encode) -> None:
    """A number with a point, a class by name, NaN for none, several captions, a mark of byte order, an empty text."""
    texts = [
        ("cls", b"3.0"),
        ("cls", b"cat"),
        ("json", b'{"label": "dog", "caption": ["one", "two"]}'),
        ("json", b'{"label": "7", "caption": NaN, "text": "other"}'),
        ("txt", b"\xef\xbb\xbfmark"),
        ("txt", b""),
    ]
    members = []
    for number, (extension, data) in enumerate(texts):
        members += [(f"{number}.jpg", encode_image()), (f"{number}.{extension}", data)]
    indexed = build_index(_tar(tmp_path / "s.tar", members))
    assert indexed.faults == ()
    rows = indexed.table.to_pylist()
    assert [row["label"] for row in rows] == [3, None, None, 7, None, None]
    assert [row["label_text"] for row in rows] == [None, "cat", "dog", None, None, None]
    assert [row["caption"] for row in rows] == [None, None, "one", "other", "mark", None]
    assert [row["captions"] for row in rows] == [None, None, ["one", "two"], None, None, None]


def test_scalars_of_json_are_columns_and_the_rest_is_named(tmp_path: Path, encode_image: Encode) -> None:
    facts = [
        {"score": 1, "ok": True, "note": "x", "boxes": [1], "exif": {}, "width": 9, "none": None},
        {"score": 0.5, "big": 1 << 62},
    ]
    members = []
    for number, record in enumerate(facts):
        members += [(f"{number}.jpg", encode_image()), (f"{number}.json", json.dumps(record).encode())]
    indexed = build_index(_tar(tmp_path / "s.tar", members))
    assert indexed.extras == {"big": "bigint", "note": "text", "ok": "bool", "score": "float"}
    assert indexed.left_out == {"boxes": 1, "exif": 1}
    rows = [{name: row[name] for name in indexed.extras} for row in indexed.table.to_pylist()]
    assert rows == [
        {"big": None, "note": "x", "ok": True, "score": 1.0},
        {"big": 1 << 62, "note": None, "ok": None, "score": 0.5},
    ]
    assert indexed.table["width"].to_pylist() == [24, 24]


def test_an_index_comes_back_and_its_bytes_repeat(tmp_path: Path, encode_image: Encode) -> None:
    table = index_shard(_tar(tmp_path / "s.tar", [("a.jpg", encode_image())]))
    for name in ("x", "y"):
        write_index(str(tmp_path / name), table)
    assert read_index(str(tmp_path / "x")).equals(table)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"PAR1junk")
    with pytest.raises(ShardError, match="not a parquet file"):
        read_index(str(tmp_path / "junk"))
    write_index(str(tmp_path / "other"), pa.table({"key": ["a"]}))
    with pytest.raises(ShardError, match="lacks the columns uid"):
        read_index(str(tmp_path / "other"))
    wrong = INDEX_SCHEMA.empty_table().set_column(2, "offset", pa.array([], pa.string()))
    write_index(str(tmp_path / "wrong"), wrong)
    with pytest.raises(ShardError, match="the columns offset have other types"):
        read_index(str(tmp_path / "wrong"))
    with pytest.raises(FileNotFoundError):
        read_index(str(tmp_path / "missing"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c/d"]),
            st.sampled_from(["jpg", "png", "txt", "json", "cls"]),
            st.binary(max_size=40),
        ),
        max_size=8,
    )
)
def test_any_members_give_rows_and_are_accounted_for(tmp_path: Path, members: list[tuple[str, str, bytes]]) -> None:
    url = _tar(tmp_path / "any.tar", [(f"{key}.{extension}", payload) for key, extension, payload in members])
    indexed = build_index(url)
    table = indexed.table
    assert sum(indexed.grouped.count().values()) == len(members)
    data = Path(url).read_bytes()
    for row in table.to_pylist():
        assert zlib.crc32(data[row["offset"] : row["offset"] + row["size"]]) == row["crc32"]

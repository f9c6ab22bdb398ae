"""Whatever people hand to `headrace import`, what went in is what came out and what is named, whatever its kind."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.dataset import open_dataset
from headrace.shards.imports.run import ImportConfig, ImportSummary, import_images, open_source
from headrace.shards.verify import verify_dataset

Encode = Callable[..., bytes]
COUNTER = iter(range(1_000_000))
PROMISE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PART = st.sampled_from(
    ["a", "b", "photo", "000", "001", "left", "seg", "x y", "\u00e4\u4e2d", "", "n01440764_5", "caption"]
)
EXTENSION = st.sampled_from(["jpg", "JPG", "png", "txt", "text", "json", "cls", "npy", "md", ""])
NAME = st.builds(
    lambda folder, parts, extension: folder + ".".join([*parts, extension]) or "x",
    st.sampled_from(["", "d/", "v1.0/", "__MACOSX/", "._"]),
    st.lists(PART, min_size=1, max_size=3),
    EXTENSION,
)
CONTENT = st.sampled_from(["jpeg", "png", "cut", "text", "label", "json", "empty", "junk"])
SETTINGS = st.fixed_dictionaries(
    {"samples_per_shard": st.integers(1, 4), "shuffle": st.sampled_from([None, 0, 5]), "max_unused": st.just(1.0)}
)


def _content(kind: str, encode_image: Encode) -> bytes:
    return {
        "jpeg": encode_image("jpeg", (8, 8)),
        "png": encode_image("png", (8, 8)),
        "cut": encode_image("jpeg", (32, 32))[:-100],
        "text": b"caf\xe9",
        "label": b"3",
        "json": b'{"label": "cat", "score": 0.5, "boxes": [1]}',
        "empty": b"",
        "junk": b"<html>",
    }[kind]


def _import(source: Path, config: dict[str, Any], out: Path) -> ImportSummary | None:
    """Import, or return None where the source is refused before anything is written."""
    made = ImportConfig(**config)
    try:
        opened = open_source(str(source), made)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None
    if not opened.num_inputs:
        return None
    return import_images(opened, str(out), made)


def _reconcile(summary: ImportSummary, out: Path) -> Counter[str]:
    """Check the summary against the dataset and its rejects; return names by what became of them."""
    dataset = open_dataset(str(out))
    rows = [row for shard in range(len(dataset.shards)) for row in dataset.index(shard).to_pylist()]
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    refused = [row for row in rejects if row["position"] is not None and not row["imported"]]
    assert summary.num_inputs == summary.num_samples + sum(summary.rejects.values())
    assert summary.num_samples == len(rows)
    assert Counter(row["reason"] for row in refused) == summary.rejects
    assert sum(row["position"] is None for row in rejects) == sum(summary.leftovers.values())
    places = sorted([int(row["key"]) for row in rows] + [row["position"] for row in refused])
    assert places == list(range(summary.num_inputs))
    assert list(verify_dataset(str(out), decode=True)) == []
    return Counter([*(row["source"] for row in rows), *(row["name"] for row in rejects if not row["imported"])])


@PROMISE
@given(
    tars=st.lists(st.lists(st.tuples(NAME, CONTENT, st.booleans()), max_size=8), min_size=1, max_size=2),
    config=SETTINGS,
)
def test_tars(
    tmp_path: Path, encode_image: Encode, tars: list[list[tuple[str, str, bool]]], config: dict[str, Any]
) -> None:
    here = tmp_path / f"{next(COUNTER)}"
    (here / "in").mkdir(parents=True)
    num_members = 0
    for number, members in enumerate(tars):
        with tarfile.open(here / "in" / f"{number}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name, kind, link in members:
                info = tarfile.TarInfo(name)
                if link:
                    info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
                    tar.addfile(info)
                else:
                    data = _content(kind, encode_image)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                num_members += not name.endswith("/")
    source = here / "in"
    summary = _import(source, config, here / "out")
    if summary is None:
        return
    _reconcile(summary, here / "out")
    opened: Any = open_source(str(source), ImportConfig(**config))
    members_of_inputs = sum(
        (item.sample.image is not None) + len(item.sample.texts) for _, inputs in opened.tars for item in inputs
    )
    without_image = [item.name for _, inputs in opened.tars for item in inputs if item.sample.image is None]
    accounted = members_of_inputs + len(opened.leftovers) + sum(opened.not_read.values())
    # Members of a key without an image stand in rejects.parquet as that key.
    assert accounted <= num_members
    assert accounted == num_members or without_image


@PROMISE
@given(
    entries=st.lists(st.tuples(NAME.filter(lambda name: not name.endswith(("/", "."))), CONTENT), max_size=8),
    config=SETTINGS,
)
def test_folders(tmp_path: Path, encode_image: Encode, entries: list[tuple[str, str]], config: dict[str, Any]) -> None:
    here = tmp_path / f"{next(COUNTER)}"
    (here / "in").mkdir(parents=True)
    names = {}
    for name, kind in entries:
        path = here / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(kind, encode_image))
        names[name] = 1
    summary = _import(here / "in", config, here / "out")
    if summary is not None:
        assert _reconcile(summary, here / "out") == Counter(names)


IMAGE_TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
]
OTHER_COLUMNS: dict[str, list[Any]] = {
    "label": [pa.int8(), pa.uint64(), pa.string(), pa.string_view(), pa.float64(), pa.bool_(), pa.null()],
    "caption": [
        pa.string(),
        pa.large_string(),
        pa.list_(pa.string()),
        pa.int64(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    "url": [pa.string(), pa.binary()],
    "nested": [pa.struct([("a", pa.list_(pa.int32()))])],
    "odd \x1b name": [pa.float32(), pa.bool_(), pa.string_view()],
}
CELL = {
    "i": [0, 1, None],
    "f": [0.5, float("nan"), None],
    "s": ["a", "", None, "\u202e"],
    "b": [True, None],
}


def _column(kind: pa.DataType, choices: list[int]) -> pa.Array:
    if pa.types.is_null(kind):
        return pa.nulls(len(choices))
    if pa.types.is_dictionary(kind):
        return pa.array([CELL["s"][n % 4] for n in choices], pa.string()).dictionary_encode()
    if pa.types.is_list(kind):
        return pa.array([[CELL["s"][n % 4]] * (n % 3) for n in choices], kind)
    if pa.types.is_struct(kind):
        return pa.array([{"a": [n]} for n in choices], kind)
    if pa.types.is_binary(kind):
        return pa.array([b"\xff"] * len(choices), kind)
    letter = (
        "b"
        if pa.types.is_boolean(kind)
        else "i"
        if pa.types.is_integer(kind)
        else "f"
        if pa.types.is_floating(kind)
        else "s"
    )
    return pa.array([CELL[letter][n % len(CELL[letter])] for n in choices], kind)


@PROMISE
@given(data=st.data(), config=SETTINGS)
def test_parquet_files(tmp_path: Path, encode_image: Encode, data: st.DataObject, config: dict[str, Any]) -> None:
    here = tmp_path / f"{next(COUNTER)}"
    (here / "in").mkdir(parents=True)
    kind = data.draw(st.sampled_from(IMAGE_TYPES))
    columns = {
        name: data.draw(st.sampled_from(kinds)) for name, kinds in OTHER_COLUMNS.items() if data.draw(st.booleans())
    }
    total = 0
    for number in range(data.draw(st.integers(1, 2))):
        contents = data.draw(st.lists(st.none() | CONTENT, max_size=6))
        images = [None if content is None else _content(content, encode_image) for content in contents]
        values = [{"bytes": image, "path": None} for image in images] if pa.types.is_struct(kind) else images
        choices = data.draw(st.lists(st.integers(0, 11), min_size=len(images), max_size=len(images)))
        table = {"image": pa.array(values, kind), **{name: _column(one, choices) for name, one in columns.items()}}
        group = data.draw(st.integers(1, 4))
        pq.write_table(pa.table(table), here / "in" / f"{number}.parquet", row_group_size=group)
        total += len(images)
    summary = _import(here / "in", config, here / "out")
    if summary is not None:
        assert summary.num_inputs == total
        names = _reconcile(summary, here / "out")
        assert sum(names.values()) == total
    elif total:
        assert pa.types.is_floating(columns["label"]) or pa.types.is_boolean(columns["label"])


@pytest.mark.parametrize("seed", [None, 3])
def test_the_counts_are_written_beside_the_dataset(tmp_path: Path, encode_image: Encode, seed: int | None) -> None:
    import json

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_image("png"))
    (tmp_path / "in" / "b.png").write_bytes(b"")
    (tmp_path / "in" / ".c").write_bytes(b"")
    config = ImportConfig(shuffle=seed)
    import_images(open_source(str(tmp_path / "in"), config), str(tmp_path / "out"), config)
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())["import"]
    assert facts == {"inputs": 2, "rejects": {"empty": 1}, "leftovers": {"hidden": 1}, "not_read": {}}

"""Columns of every type of Arrow in a batch: what is an array, what is a list, and what a missing value is."""

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline import Batch, Mixture, Source, Stream, open_stream
from headrace.pipeline.collate import collate, collate_column, kind_of
from headrace.shards.dataset import open_dataset
from headrace.shards.write import Sample, finish_dataset, write_shard

NOON = datetime.datetime(2026, 1, 2, 12, 0, 0, 5)
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int8": (pa.int8(), [1, None, 3]),
    "uint32": (pa.uint32(), [2**32 - 1, None, 0]),
    "uint64": (pa.uint64(), [2**63, None, 0]),
    "float16": (pa.float16(), [0.5, None, 2.0]),
    "float64": (pa.float64(), [0.1, None, 1e300]),
    "flag": (pa.bool_(), [True, None, False]),
    "text": (pa.string(), ["a", None, ""]),
    "large": (pa.large_string(), ["b", None, "c"]),
    "blob": (pa.binary(), [b"\x00", None, b""]),
    "words": (pa.list_(pa.string()), [["x", "y"], None, []]),
    "boxes": (pa.list_(pa.list_(pa.float32())), [[[0.5, 1.0]], None, []]),
    "vector": (pa.list_(pa.float32(), 2), [[0.5, 1.5], None, [2.0, None]]),
    "grid": (pa.list_(pa.list_(pa.int16(), 2), 2), [[[1, 2], [3, 4]], None, [None, [7, None]]]),
    "bits": (pa.list_(pa.bool_(), 3), [[True, False, True], None, [False, None, True]]),
    "names": (pa.list_(pa.string(), 2), [["p", "q"], None, ["r", None]]),
    "record": (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": "z"}, None, {"a": None, "b": ""}]),
    "price": (pa.decimal128(10, 2), [decimal.Decimal("1.50"), None, decimal.Decimal("0.00")]),
    "seen": (pa.timestamp("us"), [NOON, None, NOON]),
    "zoned": (pa.timestamp("us", tz="UTC"), [NOON.replace(tzinfo=datetime.UTC), None, None]),
    "day": (pa.date32(), [NOON.date(), None, NOON.date()]),
    "took": (pa.duration("ms"), [datetime.timedelta(seconds=2), None, None]),
    "kind": (pa.dictionary(pa.int8(), pa.string()), ["cat", None, "dog"]),
    "class": (pa.dictionary(pa.int8(), pa.int64()), [7, None, 9]),
    "view": (pa.string_view(), ["a", None, "b"]),
    "hash": (pa.binary(3), [b"abc", None, b"def"]),
    "pairs": (pa.map_(pa.string(), pa.int32()), [[("a", 1)], None, []]),
    "hours": (pa.time64("us"), [datetime.time(1, 2, 3, 4), None, datetime.time(0)]),
    "never": (pa.null(), [None, None, None]),
}
NAN = float("nan")
ARRAYS: dict[str, tuple[Any, list[Any]]] = {
    "int8": (np.int64, [1, -1, 3]),
    "uint32": (np.int64, [2**32 - 1, -1, 0]),
    "float16": (np.float64, [0.5, NAN, 2.0]),
    "float64": (np.float64, [0.1, NAN, 1e300]),
    "flag": (np.bool_, [True, False, False]),
    "vector": (np.float32, [[0.5, 1.5], [NAN, NAN], [2.0, NAN]]),
    "grid": (np.int64, [[[1, 2], [3, 4]], [[-1, -1], [-1, -1]], [[-1, -1], [7, -1]]]),
    "bits": (np.bool_, [[True, False, True], [False] * 3, [False, False, True]]),
    "class": (np.int64, [7, -1, 9]),
}


def _open(folder: Path, columns: dict[str, tuple[pa.DataType, list[Any]]], image: bytes, **keys: Any) -> Stream:
    """Write a dataset with the columns and open a finite pass over it, four rows a batch."""
    url = write(folder, columns, image)
    mixture = Mixture(sources=(Source(name="s", url=url),), image_size=8, index_cache="none", decode_threads=1)
    return open_stream(mixture, global_batch=4, once=True, columns=list(columns), **keys)


def write(folder: Path, columns: dict[str, tuple[pa.DataType, list[Any]]], image: bytes, name: str = "0") -> str:
    """Write a dataset of one shard, with as many samples as the columns have values."""
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    rows = len(next(iter(columns.values()))[1])
    samples = [
        Sample(f"k{row}", image, "jpg", {name: values[row] for name, (_, values) in columns.items()})
        for row in range(rows)
    ]
    write_shard(str(folder), name, samples, schema)
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


@pytest.fixture(scope="module")
def image(datasets: tuple[str, str]) -> bytes:
    """A picture."""
    dataset = open_dataset(datasets[0])
    table = dataset.index(0)
    offset, size = (table.column(name)[0].as_py() for name in ("offset", "size"))
    return Path(dataset.tar_url(0)).read_bytes()[offset : offset + size]


def test_every_type_comes_through_a_stream(tmp_path: Path, image: bytes) -> None:
    """The fourth row is padding: missing, as the second is."""
    with _open(tmp_path, COLUMNS, image) as stream:
        batch = next(stream)
    assert batch.valid.tolist() == [True, True, True, False]
    for name, (_, values) in COLUMNS.items():
        column = batch.columns[name]
        if name in ARRAYS:
            dtype, expected = ARRAYS[name]
            assert isinstance(column, np.ndarray)
            assert column.dtype == dtype
            assert np.array_equal(column, np.array([*expected, expected[1]], dtype), equal_nan=column.dtype.kind == "f")
        else:
            assert column == [*values, None], name


def test_a_tensor_keeps_its_shape() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3])
    rows = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    column = collate_column(pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(rows)]))
    assert kind_of(kind).shape == (2, 3)
    assert isinstance(column, np.ndarray)
    assert np.array_equal(column, rows)


def test_nanoseconds_are_numpys_and_no_other_packages() -> None:
    """Arrow's own would be those of pandas, where that is installed, and an error where not."""
    times = collate_column(pa.chunked_array([pa.array([1, None], pa.timestamp("ns"))]))
    assert (times, type(times[0])) == ([np.datetime64(1, "ns"), None], np.datetime64)
    spans = collate_column(pa.chunked_array([pa.array([3], pa.duration("ns"))]))
    assert (spans, type(spans[0])) == ([np.timedelta64(3, "ns")], np.timedelta64)


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-99, 99)), min_size=3, max_size=3))),
    st.integers(0, 4),
)
def test_fixed_size_lists_are_what_a_slow_loop_says(rows: list[Any], start: int) -> None:
    """Of a slice too: its values begin in the middle of Arrow's buffer."""
    column = pa.chunked_array([pa.array(rows, pa.list_(pa.int32(), 3))]).slice(start)
    slow = [[-1] * 3 if row is None else [-1 if item is None else item for item in row] for row in rows[start:]]
    found = collate_column(column)
    assert isinstance(found, np.ndarray)
    assert found.shape == (len(slow), 3)
    assert found.tolist() == slow


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        (pa.int32(), pa.int64(), True),
        (pa.string(), pa.large_string(), True),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), True),
        (pa.float32(), pa.float64(), True),
        (pa.list_(pa.field("item", pa.string())), pa.list_(pa.field("element", pa.string())), True),
        (pa.decimal128(10, 2), pa.decimal128(12, 3), True),
        (pa.int64(), pa.float64(), False),
        (pa.int64(), pa.uint64(), False),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3), False),
        (pa.list_(pa.float32(), 2), pa.list_(pa.float32()), False),
        (pa.string(), pa.binary(), False),
    ],
)
def test_sources_may_spell_a_column_otherwise_that_comes_out_alike(
    one: pa.DataType, two: pa.DataType, alike: bool
) -> None:
    assert (kind_of(one) == kind_of(two)) == alike


def test_two_sources_with_another_column_are_named(tmp_path: Path, image: bytes) -> None:
    first = write(tmp_path / "a", {"x": (pa.int64(), [1])}, image)
    second = write(tmp_path / "b", {"x": (pa.string(), ["1"])}, image)
    mixture = Mixture(sources=(Source(name="a", url=first), Source(name="b", url=second)), index_cache="none", lanes=1)
    with pytest.raises(ValueError, match="column x is int64 in source 'a' and text in source 'b'"):
        open_stream(mixture, global_batch=2, columns=["x"])


def test_a_shard_with_another_type_is_named(tmp_path: Path, image: bytes) -> None:
    write(tmp_path, {"x": (pa.list_(pa.float32(), 2), [[1.0, 2.0]] * 4)}, image)
    url = write(tmp_path, {"x": (pa.list_(pa.float32(), 3), [[1.0, 2.0, 3.0]])}, image, name="1")
    mixture = Mixture(sources=(Source(name="a", url=url),), index_cache="none", image_size=8, lanes=1)
    with open_stream(mixture, global_batch=4, columns=["x"], once=True) as stream:
        assert next(stream).columns["x"].shape == (4, 2)  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"column x is float32\[3\] in .*1.parquet and float32\[2\] in the first"):
            next(stream)


def test_names_of_a_batchs_own_fields_and_names_given_twice_are_columns_too(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, columns=["key", "size", "label", "label", "position"][:4]) as stream:
        batch = next(stream)
    assert list(batch.columns) == ["key", "size", "label"]
    assert batch.columns["key"] == batch.key
    assert min(batch.columns["size"]) > 0


@pytest.mark.parametrize(
    ("name", "said"), [("txt", "is the column caption"), ("cls", "the column label"), ("json", "a column of its own")]
)
def test_a_member_of_the_tar_is_told_where_it_is_in_the_index(mixture: Mixture, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"has no column {name}.*{said}"):
        open_stream(mixture, global_batch=8, columns=[name])


def test_a_column_that_one_source_lacks_is_missing_there(tmp_path: Path, image: bytes) -> None:
    first = write(tmp_path / "a", {"v": (pa.list_(pa.float32(), 2), [[1.0, 2.0]])}, image)
    second = write(tmp_path / "b", {"w": (pa.string(), ["1"])}, image)
    mixture = Mixture(sources=(Source(name="a", url=first), Source(name="b", url=second)), index_cache="none", lanes=1)
    with open_stream(mixture, global_batch=2, columns=["v", "w"], once=True) as stream:
        batch = next(stream)
    assert np.array_equal(batch.columns["v"], np.array([[1, 2], [NAN, NAN]], np.float32), equal_nan=True)
    assert batch.columns["w"] == [None, "1"]


def test_columns_of_types_resume_exactly(tmp_path: Path, image: bytes, check_resumes: Callable[..., None]) -> None:
    url = write(tmp_path, {name: (kind, values * 8) for name, (kind, values) in COLUMNS.items()}, image)
    mixture = Mixture(sources=(Source(name="s", url=url, chunk_samples=2),), image_size=8, lanes=2, decode_threads=2)
    check_resumes(lambda: open_stream(mixture, global_batch=4, columns=list(COLUMNS)), steps=5)


def test_numbers_that_are_missing_have_their_own_value() -> None:
    assert collate([1, None], kind_of(pa.int32())).tolist() == [1, -1]  # type: ignore[union-attr]
    assert collate([2**63, None], kind_of(pa.uint64())) == [2**63, None]
    assert collate(["a", None], kind_of(pa.string())) == ["a", None]


def test_parquet_keeps_what_a_column_is(tmp_path: Path) -> None:
    """What parquet's own schema cannot say lies in its metadata; a reader that lost it would give lists."""
    for name, (kind, values) in COLUMNS.items():
        pq.write_table(pa.table({name: pa.array(values, kind)}), tmp_path / "one.parquet")
        assert kind_of(pq.read_schema(tmp_path / "one.parquet").field(name).type) == kind_of(kind)


def test_batches_of_columns_split(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as stream:
        batch = next(stream)
    parts: list[Batch] = list(batch.split(3))
    assert [len(part.key) for part in parts] == [3, 3, 2]
    assert [key for part in parts for key in part.key] == batch.key
    assert all(np.shares_memory(part.images, batch.images) for part in parts)
    assert all(np.shares_memory(part.columns["label"], batch.columns["label"]) for part in parts)  # type: ignore[arg-type]
    assert [caption for part in parts for caption in part.columns["caption"]] == batch.columns["caption"]
    assert batch.split(8)[0] is batch
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least 1 row"):
            batch.split(size)

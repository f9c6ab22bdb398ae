"""A column of every type that parquet holds, three rows each: what is carried, and what is refused."""

import datetime
import decimal
import math
import uuid
from typing import Any

import numpy as np
import pyarrow as pa

_DAYS = [datetime.date(2020, 1, 2), None, datetime.date(1900, 12, 31)]
_HOURS = [datetime.time(1, 2, 3), None, datetime.time(4)]
_MOMENTS = [datetime.datetime(2020, 1, 2, 3), None, datetime.datetime(1900, 1, 1)]
_NUMBERS = [decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")]
_BYTES = [b"\x00\xff", None, b""]
_TEXTS = ["a", None, "\u00e9"]
_IDS = [uuid.UUID(int=5).bytes, None, uuid.UUID(int=6).bytes]
_LISTS = [[1, None], None, []]


def _extension(kind: Any, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, storage)


CARRIED: dict[str, pa.Array] = {
    "null": pa.nulls(3),
    "bool": pa.array([True, None, False]),
    "int8": pa.array([1, None, -128], pa.int8()),
    "int16": pa.array([1, None, -3], pa.int16()),
    "int32": pa.array([1, None, -3], pa.int32()),
    "int64": pa.array([1, None, -(2**63)], pa.int64()),
    "uint8": pa.array([1, None, 255], pa.uint8()),
    "uint16": pa.array([1, None, 3], pa.uint16()),
    "uint32": pa.array([1, None, 2**32 - 1], pa.uint32()),
    "uint64": pa.array([1, None, 2**64 - 1], pa.uint64()),
    "float16": pa.array([np.float16(1.5), None, np.float16(0.1)], pa.float16()),
    "float32": pa.array([0.1, None, math.inf], pa.float32()),
    "float64": pa.array([0.1, None, -math.inf]),
    "decimal32": pa.array(_NUMBERS, pa.decimal32(7, 2)),
    "decimal64": pa.array(_NUMBERS, pa.decimal64(17, 2)),
    "decimal128": pa.array(_NUMBERS, pa.decimal128(30, 2)),
    "date32": pa.array(_DAYS),
    "date64": pa.array(_DAYS, pa.date64()),
    "time32": pa.array(_HOURS, pa.time32("ms")),
    "time64": pa.array(_HOURS, pa.time64("us")),
    "time64_ns": pa.array(_HOURS, pa.time64("ns")),
    "timestamp_s": pa.array(_MOMENTS, pa.timestamp("s")),
    "timestamp": pa.array(_MOMENTS, pa.timestamp("us")),
    "timestamp_ns": pa.array(_MOMENTS, pa.timestamp("ns")),
    "timestamp_tz": pa.array(_MOMENTS, pa.timestamp("us", "Europe/Berlin")),
    "timestamp_offset": pa.array(_MOMENTS, pa.timestamp("ms", "+02:00")),
    "duration": pa.array([5, None, -6], pa.duration("s")),
    "duration_ns": pa.array([5000, None, -6000], pa.duration("ns")),
    "binary": pa.array(_BYTES),
    "large_binary": pa.array(_BYTES, pa.large_binary()),
    "binary_view": pa.array(_BYTES, pa.binary_view()),
    "fixed_binary": pa.array([b"ab", None, b"\xff\x00"], pa.binary(2)),
    "string": pa.array(_TEXTS),
    "large_string": pa.array(_TEXTS, pa.large_string()),
    "string_view": pa.array(_TEXTS, pa.string_view()),
    "dictionary": pa.array(_TEXTS).dictionary_encode(),
    "dictionary_int": pa.array([5, None, 6]).dictionary_encode(),
    "list": pa.array(_LISTS, pa.list_(pa.int32())),
    "large_list": pa.array(_LISTS, pa.large_list(pa.int32())),
    "list_view": pa.array(_LISTS, pa.list_view(pa.int32())),
    "large_list_view": pa.array(_LISTS, pa.large_list_view(pa.int32())),
    "fixed_list": pa.array([[1.5, 2.5], None, [3, 4]], pa.list_(pa.float32(), 2)),
    "list_of_float16": pa.array([[np.float16(1.5)], None, []], pa.list_(pa.float16())),
    "list_of_text": pa.array([["a", None], None, []], pa.list_(pa.string_view())),
    "list_of_dictionary": pa.array([["a"], None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "list_of_lists": pa.array([[[1], None], None, []], pa.list_(pa.large_list(pa.int8()))),
    "list_of_structs": pa.array([[{"a": 1}], None, []]),
    "list_of_timestamps": pa.array([[_MOMENTS[0]], None, []], pa.list_(pa.timestamp("ns", "UTC"))),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
    "struct_of_all": pa.array(
        [{"h": np.float16(1.5), "d": decimal.Decimal("1.5"), "m": [("k", 1)], "b": b"\xff"}, None, None],
        pa.struct(
            [
                ("h", pa.float16()),
                ("d", pa.decimal128(5, 1)),
                ("m", pa.map_(pa.string(), pa.int8())),
                ("b", pa.binary()),
            ]
        ),
    ),
    "map": pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), pa.int32())),
    "uuid": pa.array(_IDS, pa.uuid()),
    "json": pa.array(['{"a": 1}', None, "2"], pa.json_()),
    "bool8": _extension(pa.bool8(), pa.array([1, None, 0], pa.int8())),
    "opaque": _extension(pa.opaque(pa.int32(), "type", "vendor"), pa.array([1, None, 0], pa.int32())),
    "tensor": pa.FixedShapeTensorArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2))
    ),
}
"""What is carried, with its values."""

REFUSED: dict[str, tuple[pa.Array, str]] = {
    "decimal256": (pa.array(_NUMBERS, pa.decimal256(60, 2)), "cast it to a decimal of at most 38 digits"),
    "struct_of_decimal256": (pa.array([{"x": 1}, None, None], pa.struct([("x", pa.decimal256(60, 2))])), "38 digits"),
    "struct_by_case": (pa.array([{"a": 1, "A": 2}, None, None]), "differ by more than case"),
}
"""What its type alone tells to be refused, and what the message advises."""

REFUSED_VALUES: dict[str, pa.Array] = {
    "nanoseconds": pa.array([5, None, 6], pa.timestamp("ns")),
    "nanoseconds_in_a_list": pa.array([[5], None, []], pa.list_(pa.duration("ns"))),
    "year_20000": pa.array([568971820800, None, 0], pa.timestamp("s")),
    "unknown_zone": pa.array([5, None, 6], pa.timestamp("us", "Mars/Olympus")),
    "broken_text_in_a_list": pa.ListArray.from_arrays(
        pa.array([0, 1, 1, 1], pa.int32()), pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    ),
}
"""What a value tells to be refused."""

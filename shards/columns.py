"""More columns than the index must have: what the `.json` members and tables of others say, typed.

Two shards may spell one column differently (a score of 1 and one of 0.5), so types form an order that a whole dataset
agrees on: int and float give float, anything else that differs gives text.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_EXTRAS = 200
"""More names in one tar are data, not columns."""

TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "bigint": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
}
"""`bigint` does not fit a float exactly; `texts` are the captions of one image."""

_EXACT = 1 << 53


def type_of(value: Any) -> str:
    """Return the name of the type that holds one scalar."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) <= _EXACT:
            return "int"
        return "bigint" if -(1 << 63) <= value < 1 << 63 else "text"
    if isinstance(value, list):
        return "texts"
    return "float" if isinstance(value, float) else "text"


def join_types(one: str, other: str) -> str:
    """Return the name of the type that holds what both hold."""
    if one == other:
        return one
    if {one, other} == {"int", "bigint"}:
        return "bigint"
    return "float" if {one, other} == {"int", "float"} else "text"


def agree(shards: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the columns of all shards, each with the type that holds it everywhere, sorted by name."""
    agreed: dict[str, str] = {}
    for columns in shards:
        for name, kind in columns.items():
            agreed[name] = join_types(agreed.get(name, kind), kind)
    return dict(sorted(agreed.items()))


def extras_table(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[pa.Array]]:
    """Return (name -> type, arrays) of the scalars that rows hold; what a row lacks is null."""
    types: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kind = type_of(value)
            types[name] = join_types(types.get(name, kind), kind)
    types = dict(sorted(types.items()))
    return types, [
        pa.array([as_type(row.get(name), kind) for row in rows], TYPES[kind]) for name, kind in types.items()
    ]


def cast_column(column: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Return a column of one of TYPES as another that holds it."""
    wanted = TYPES[kind]
    if column.type == wanted:
        return column
    if wanted == pa.string():
        return pa.chunked_array([pa.array([as_type(value, "text") for value in column.to_pylist()], pa.string())])
    if pa.types.is_string(column.type) and wanted == pa.bool_():
        return pc.equal(column, "true")
    return column.cast(wanted)


def as_type(value: Any, kind: str) -> Any:
    """Return a scalar as a value of a type that holds it."""
    if value is None or (isinstance(value, str) and kind == "text"):
        return value
    if kind == "text":
        return json.dumps(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
    return float(value) if kind == "float" else value


def kind_of(column: pa.DataType) -> str | None:
    """Return the name of the type that holds a column of Arrow; None for times, decimals, bytes and nested ones."""
    column = value_type(column)
    if is_text(column):
        return "text"
    if pa.types.is_boolean(column):
        return "bool"
    if pa.types.is_integer(column):
        return "bigint"
    return "float" if pa.types.is_floating(column) else None


def is_text(column: pa.DataType) -> bool:
    """True for the spellings of text, also as a categorical."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(value_type(column)) for test in tests)


def value_type(column: pa.DataType) -> pa.DataType:
    """Return the type of the values: of a categorical of pandas, what it stands for."""
    return column.value_type if pa.types.is_dictionary(column) else column


def with_own_values(column: pa.DataType) -> pa.DataType:
    """Return a type whose values lie in it, wherever they are nested: no categoricals, no views of texts or bytes."""
    column = value_type(column)
    if pa.types.is_string_view(column) or pa.types.is_binary_view(column):
        return pa.string() if pa.types.is_string_view(column) else pa.binary()
    if pa.types.is_struct(column):
        return pa.struct([field.with_type(with_own_values(field.type)) for field in column])
    if pa.types.is_fixed_size_list(column):
        return pa.list_(column.value_field.with_type(with_own_values(column.value_type)), column.list_size)
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        make = pa.list_ if pa.types.is_list(column) else pa.large_list
        return make(column.value_field.with_type(with_own_values(column.value_type)))
    return column


def plain_numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers without nulls, as it lies in memory.

    Arrow's own `to_numpy` imports pandas where it is installed: 60 MB and 0.2 s that no stream wants.
    """
    array = column.combine_chunks()
    kind = np.dtype(str(array.type))
    data = array.buffers()[1]
    if not len(array) or data is None:
        return np.zeros(0, kind)
    return np.frombuffer(data, kind, count=len(array), offset=array.offset * kind.itemsize)

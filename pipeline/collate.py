"""Columns of an index as columns of a batch: what becomes an array, and what a missing value is there.

| values | in a batch | missing |
| --- | --- | --- |
| integers up to 64 bits, signed | int64 [B] | -1 |
| floats | float64 [B] | NaN |
| truth values | bool [B] | False |
| fixed-size lists, `arrow.fixed_shape_tensor` | [B, D, ...], floats as wide as in the index | as above |
| uint64 and everything else | a list of Python values | None |

uint64 is a list, as no array type holds it beside a -1. Times of nanoseconds are numpy's: Python's have none.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.shards.columns import is_text, value_type

Column: TypeAlias = NDArray[np.generic] | list[Any]
"""One column of a batch."""

MISSING: dict[str, Any] = {"i": -1, "f": np.nan, "b": False}
"""By the kind of a numpy dtype."""

_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a column is delivered. Sources may spell it differently, as int32 and int64, if it comes out alike."""

    name: str
    """What messages call it; equal names may stand in one column."""
    dtype: np.dtype[Any] | None = None
    """None = a list."""
    shape: tuple[int, ...] = ()
    """Of one value."""
    numpy_unit: str = ""
    """`datetime64` or `timedelta64`, where Python's own types lack nanoseconds."""


def kind_of(column: pa.DataType) -> Kind:
    """Return how a column of a type of Arrow is delivered."""
    column = value_type(column)
    shape: tuple[int, ...] = ()
    while isinstance(column, pa.BaseExtensionType):
        if isinstance(column, pa.FixedShapeTensorType):
            # Of one whose axes stand in another order the values come flat.
            shape = tuple(column.shape) if list(column.permutation or ()) in ([], [*range(len(column.shape))]) else ()
        column = column.storage_type
    sizes: list[int] = []
    item = column
    while pa.types.is_fixed_size_list(item):
        sizes.append(item.list_size)
        item = item.value_type
    dtype = _dtype_of(item, nested=bool(sizes))
    if dtype is None:
        return _list_kind(column)
    shape = shape or tuple(sizes)
    return Kind(f"{dtype.name}{list(shape) if shape else ''}", dtype, shape)


def value_of(scalar: pa.Scalar, kind: Kind) -> Any:
    """Return one value of a column: an array where the kind has a shape, None where it is missing."""
    if not scalar.is_valid:
        return None
    if kind.shape:
        return _array_of(scalar.value if isinstance(scalar, pa.ExtensionScalar) else scalar, kind)
    if kind.numpy_unit:
        return getattr(np, kind.numpy_unit)(scalar.value, "ns")
    return scalar.as_py()


def collate(values: Sequence[Any], kind: Kind) -> Column:
    """Return one column of a batch from what `value_of` gave for each row, None for what is missing."""
    if kind.dtype is None:
        return list(values)
    missing = MISSING[kind.dtype.kind]
    if not kind.shape:
        return np.array([missing if value is None else value for value in values], kind.dtype)
    rows: NDArray[np.generic] = np.full((len(values), *kind.shape), missing, kind.dtype)
    for row, value in enumerate(values):
        if value is not None:
            rows[row] = value
    return rows


def collate_column(column: pa.ChunkedArray) -> Column:
    """Return a whole column of an index as a batch of all its rows would have it."""
    kind = kind_of(column.type)
    return collate([value_of(scalar, kind) for scalar in column], kind)


def _dtype_of(item: pa.DataType, *, nested: bool) -> np.dtype[Any] | None:
    if pa.types.is_boolean(item):
        return np.dtype(np.bool_)
    if pa.types.is_integer(item) and not pa.types.is_uint64(item):
        return np.dtype(np.int64)
    if pa.types.is_floating(item):
        return np.dtype(item.to_pandas_dtype() if nested else np.float64)
    return None


def _list_kind(column: pa.DataType) -> Kind:
    """Return the kind of a column that is a list in a batch; its name leaves out how Arrow lays the values out."""
    if pa.types.is_timestamp(column) or pa.types.is_duration(column):
        numpy = ("datetime64" if pa.types.is_timestamp(column) else "timedelta64") if column.unit == "ns" else ""
        name = "duration" if pa.types.is_duration(column) else f"timestamp{' with a zone' if column.tz else ''}"
        return Kind(f"{name}{'[ns]' if numpy else ''}", numpy_unit=numpy)
    return Kind(_name_of(column))


def _name_of(column: pa.DataType) -> str:
    column = value_type(column)
    if is_text(column):
        return "text"
    if any(test(column) for test in _BYTES):
        return "bytes"
    if pa.types.is_decimal(column):
        return "decimal"
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        return f"list of {_name_of(column.value_type)}"
    if pa.types.is_fixed_size_list(column):
        return f"list of {column.list_size} {_name_of(column.value_type)}"
    if pa.types.is_map(column):
        return f"map of {_name_of(column.key_type)} to {_name_of(column.item_type)}"
    if pa.types.is_struct(column):
        return f"struct of {', '.join(f'{field.name}: {_name_of(field.type)}' for field in column)}"
    return str(column)


def _array_of(scalar: pa.Scalar, kind: Kind) -> NDArray[np.generic]:
    """Return one fixed-size list as an array of its own: it holds nothing of the index."""
    assert kind.dtype is not None
    values = scalar.values
    whole = not values.null_count
    while whole and pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
        whole = not values.null_count
    if not whole or pa.types.is_boolean(values.type):
        flat = list(_leaves(scalar.as_py(), kind.shape and _sizes(scalar.type), MISSING[kind.dtype.kind]))
        return np.array(flat, kind.dtype).reshape(kind.shape)
    stored = np.dtype(values.type.to_pandas_dtype())
    data = np.frombuffer(values.buffers()[1] or b"", stored, len(values), values.offset * stored.itemsize)
    return data.astype(kind.dtype).reshape(kind.shape)


def _sizes(column: pa.DataType) -> tuple[int, ...]:
    return (column.list_size, *_sizes(column.value_type)) if pa.types.is_fixed_size_list(column) else ()


def _leaves(value: Iterable[Any] | None, shape: tuple[int, ...], missing: Any) -> Iterator[Any]:
    """Yield the numbers of nested lists; of one that is missing, as many as it would have."""
    if not shape:
        yield missing if value is None else value
    elif value is None:
        yield from [missing] * math.prod(shape)
    else:
        for item in value:
            yield from _leaves(item, shape[1:], missing)

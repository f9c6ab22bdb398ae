"""The carried column `label`: it becomes the label of the dataset, so it is a whole number or null from here on."""

import math
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.fetch.lists.carried import plain_text
from headrace.text import shown

LABEL = "label"

_DIGITS = re.compile(r"[+-]?[0-9]{1,19}")
_ADVICE = "it becomes the label of the dataset, a whole number: write numbers there, or give the column another name"


def check_label_type(kind: pa.DataType, where: str) -> None:
    """Raise ValueError if no value of a parquet column can be a label."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_null(inner) or pa.types.is_integer(inner) or pa.types.is_floating(inner) or _is_text(inner)):
        raise ValueError(f"{where}: column 'label' is of type {kind}; {_ADVICE}")


def label_column(column: pa.Array, url: str, start: int) -> pa.Array:
    """Return a column of a parquet list, whose first row is `start`, as labels. Raises ValueError naming the value."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type):
        return labels(plain_text(column)[0].to_pylist(), lambda row: f"{url}: row {start + row}")
    if pa.types.is_floating(column.type):  # of whole numbers with gaps pandas makes floats
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{url}: rows from {start}: column 'label': {error}; {_ADVICE}") from error


def labels(values: list[Any], where: Callable[[int], str]) -> pa.Array:
    """Return values as labels. Raises ValueError naming the value and its place, by its number in `values`."""
    found: list[int | None] = []
    for value in values:
        try:
            found.append(_label(value))
        except ValueError as error:
            raise ValueError(f"{where(len(found))}: {error}") from None
    return pa.array(found, pa.int64())


def _label(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        number = int(text) if _DIGITS.fullmatch(text) else None
    elif isinstance(value, float) and not math.isnan(value):
        text, number = str(value), int(value) if value.is_integer() else None
    else:
        text = "" if value is None or value != value else str(value)
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if not text:
        return None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"column 'label' holds {shown(value)}; {_ADVICE}")
    return number


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

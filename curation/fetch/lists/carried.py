"""Carried columns of a parquet list: which types go through to the index of the dataset, and as what.

What a later stage could not hold is refused here, before anything is fetched. Types that are two spellings of one
become the plain one (string_view is string); nanoseconds become microseconds, which loses nothing or is refused.
"""

import pyarrow as pa
import pyarrow.compute as pc

from headrace.text import one_line

KEPT_EXTENSIONS = ("arrow.uuid", "arrow.json")

_KEPT = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_date,
    pa.types.is_decimal32,
    pa.types.is_decimal64,
    pa.types.is_decimal128,
)


def carried_type(field: pa.Field, url: str) -> pa.DataType:
    """Return the type under which a column is carried. Raises ValueError naming the column, its type and what to do."""
    try:
        return _plain(field.type)
    except _CannotBeCarriedError as error:
        raise ValueError(
            f"{url}: column {field.name!r} is of type {field.type}, which cannot be carried: {error}"
        ) from None


class _CannotBeCarriedError(ValueError):
    """What to do instead."""


def _plain(kind: pa.DataType, *, nested: bool = False) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name in KEPT_EXTENSIONS and not nested:
            return kind
        return pa.bool_() if kind.extension_name == "arrow.bool8" else _plain(kind.storage_type, nested=nested)
    if pa.types.is_float16(kind) and nested:
        return pa.float32()  # the database of select knows no half floats inside of others
    if any(is_kept(kind) for is_kept in _KEPT):
        return kind
    if pa.types.is_null(kind):
        return kind
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain(kind.value_type, nested=nested)
    if pa.types.is_temporal(kind):
        return _micro(kind)
    return _nested(kind)


def _micro(kind: pa.DataType) -> pa.DataType:
    """Return a type of times without nanoseconds, which Python's own times do not have."""
    if pa.types.is_interval(kind):
        raise _CannotBeCarriedError("cast it to duration or text")
    if kind.unit != "ns":
        return kind
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def _nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type, nested=not pa.types.is_float16(kind.value_type)), kind.list_size)
    if any(
        is_list(kind)
        for is_list in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    ):
        return pa.list_(_plain(kind.value_type, nested=not pa.types.is_float16(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type, nested=True), _plain(kind.item_type, nested=True))
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        if not names or len({name.lower() for name in names}) != len(names):
            raise _CannotBeCarriedError("give its fields names that differ by more than case, or cast it to text")
        return pa.struct([(name, _plain(kind.field(name).type, nested=True)) for name in names])
    if pa.types.is_decimal256(kind):
        raise _CannotBeCarriedError("cast it to a decimal of at most 38 digits, to double or to text")
    raise _CannotBeCarriedError("cast it to text")


def carry(column: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    """Return a column of a list under its carried type. Raises ValueError naming `where` if a value does not fit."""
    if pa.types.is_string(kind):
        return plain_text(column)[0]
    try:
        found = _cast(column, kind)
        found.validate(full=True)  # bytes inside of lists that are no UTF-8
        _check_times(found)
        return found
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
        raise ValueError(
            f"{where}: a value of type {column.type} cannot be carried as {kind}: {one_line(str(error))}; cast the "
            "column to text (times may be cast to microseconds, years 1 to 9999)"
        ) from error


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if "list_view" in str(column.type):  # Arrow 26 casts those of a file to lists with a wrong end
        return pa.array(column.to_pylist(), kind)
    return (column.storage if isinstance(column, pa.ExtensionArray) else column).cast(kind)


def _check_times(column: pa.Array) -> None:
    """Raise if a time is none that Python knows; the samples' JSON is written through it."""
    if pa.types.is_temporal(column.type):
        numbers = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
        for number in pc.min_max(numbers).as_py().values():
            pa.scalar(number, numbers.type).cast(column.type).as_py()
    elif pa.types.is_nested(column.type):
        column.to_pylist()


def plain_text(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return a column as text, null where it means none, and the rows whose bytes were not UTF-8."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):  # what pandas writes where all captions are missing
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), None, column)
    # Parquet holds any bytes as text; only a cast from binary looks at them.
    raw = (column if _is_bytes(column.type) else column.cast(pa.string())).cast(pa.binary())
    try:
        return raw.cast(pa.string()), []
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
        broken = [row for row, text in enumerate(texts) if text is not None and text.encode() != values[row]]
        return pa.array(texts, pa.string()), broken


def is_plain_text(kind: pa.DataType) -> bool:
    """True if `plain_text` takes columns of this type."""
    try:
        plain_text(pa.nulls(0, kind))
    except pa.ArrowException:
        return False
    return True


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )

"""The rows of all lists as arrow tables of one schema.

Two passes: `scan` counts rows and finds the types of carried columns, `tables` gives the rows. The one thing a reader
would get wrong: the same row number means the same row in both, so nothing may be skipped in either.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import (
    BLOCK_ROWS,
    MAX_KNOWN_COLUMNS,
    ListFile,
    Row,
    check_columns,
    clean,
    open_parquet_list,
    opened,
    text_rows,
    wanted_columns,
)

_OWN = (("url", pa.string()), ("caption", pa.string()), ("problem", pa.string()))
_PLACE = (("input_file", pa.string()), ("input_row", pa.int64()))


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the lists found."""

    rows: tuple[int, ...]
    """Rows of each file."""
    schema: pa.Schema
    """Of the tables: url, caption, problem, input_file, input_row, expected_sha256 if configured, carried columns."""


def scan(files: Sequence[ListFile], config: InputConfig) -> Scan:
    """Count the rows and fix the schema. Raises ValueError for missing columns and types that do not go together."""
    counts, carried = [], pa.schema([])
    for file in files:
        count, schema = _scan_parquet(file, config) if file.format == "parquet" else _scan_text(file, config)
        counts.append(count)
        try:
            carried = pa.unify_schemas([carried, schema], promote_options="permissive") if count else carried
        except pa.ArrowException as error:
            raise ValueError(
                f"{file.url}: a carried column has another type than in the lists before: {error} (a csv column is "
                "text; make it text in all lists, then a recipe may say try_cast(COLUMN as double))"
            ) from error
    kinds = {field.name: field.type for field in carried}
    expected = (("expected_sha256", pa.string()),) if config.sha256_column else ()
    columns = ((name, kinds.get(name, pa.string())) for name in config.columns)
    return Scan(tuple(counts), pa.schema([*_OWN, *_PLACE, *expected, *columns]))


def _scan_parquet(file: ListFile, config: InputConfig) -> tuple[int, pa.Schema]:
    with opened(file) as stream:
        parquet = open_parquet_list(stream, file, config)
        schema = parquet.schema
        fields = [schema.field(name) for name in config.columns]
        return parquet.num_rows, pa.schema([_plain(field) for field in fields])


def _plain(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, kind)


def _scan_text(file: ListFile, config: InputConfig) -> tuple[int, pa.Schema]:
    count, known = 0, dict[str, None]()
    kinds: dict[str, set[str]] = {name: set() for name in config.columns}
    for row in text_rows(file, config):
        count += 1
        for name, value in row.values.items():
            if value is not None:
                kinds[name].add(_kind(value))
        if len(known) < MAX_KNOWN_COLUMNS:
            known.update(dict.fromkeys(row.known))
    if file.format == "txt":
        _check_txt(file, config)
    elif count:
        check_columns(file, known, config)
    return count, pa.schema([(name, _arrow_type(found)) for name, found in kinds.items() if found])


def _check_txt(file: ListFile, config: InputConfig) -> None:
    if config.sha256_column or config.columns:
        raise ValueError(f"{file.url}: a txt list has no columns, but the input names some to carry")


def check_list(file: ListFile, config: InputConfig) -> None:
    """Raise ValueError if a list lacks a column that the config names; no more of it is read than that takes."""
    if file.format == "parquet":
        with opened(file) as stream:
            open_parquet_list(stream, file, config)
        return
    if file.format == "txt":
        _check_txt(file, config)
    wanted, known = set(wanted_columns(config).values()), dict[str, None]()
    with contextlib.closing(text_rows(file, config)) as rows:
        row = None
        for row in rows:
            known.update(dict.fromkeys(row.known))
            if file.format not in ("json", "jsonl") or wanted <= known.keys():
                return
    if row is not None:
        check_columns(file, known, config)


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 63:
        return "other"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else "other"


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    return pa.float64() if kinds <= {"int", "float"} else pa.string()


def tables(files: Sequence[ListFile], config: InputConfig, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of all lists in order, some thousand at a time."""
    for file in files:
        blocks = _parquet_blocks(file, config) if file.format == "parquet" else _text_blocks(file, config, schema)
        start = 0
        for block in blocks:
            rows = len(block["url"])
            block["input_file"] = pa.repeat(pa.scalar(file.name), rows)
            block["input_row"] = pa.array(range(start, start + rows), pa.int64())
            try:
                yield pa.table([_cast(block[field.name], field, rows) for field in schema], schema=schema)
            except pa.ArrowException as error:
                raise ValueError(f"{file.url}: rows from {start}: {error}") from error
            start += rows


def _cast(column: Any, field: pa.Field, rows: int) -> Any:
    if column is None:
        return pa.nulls(rows, field.type)
    if not pa.types.is_string(field.type):
        return pc.cast(column, field.type)
    # Parquet holds any bytes as text; only a cast from binary looks at them.
    raw = pc.cast(column if _is_bytes(column.type) else pc.cast(column, field.type), pa.binary())
    try:
        return pc.cast(raw, field.type)
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return pa.array(texts, field.type)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _parquet_blocks(file: ListFile, config: InputConfig) -> Iterator[dict[str, Any]]:
    sources = {"url": config.url_column, "caption": config.caption_column, "expected_sha256": config.sha256_column}
    sources |= {name: name for name in config.columns}
    with opened(file) as stream:
        parquet = open_parquet_list(stream, file, config)
        wanted = sorted({name for name in sources.values() if name is not None})
        for batch in parquet.batches(BLOCK_ROWS, wanted):
            block = {name: None if source is None else batch.column(source) for name, source in sources.items()}
            yield {**block, "problem": None}


def _text_blocks(file: ListFile, config: InputConfig, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    rows = text_rows(file, config)
    while block := list(islice(rows, BLOCK_ROWS)):
        own = {
            name: pa.array([getattr(row, name) for row in block], pa.string())
            for name in ("url", "caption", "expected_sha256", "problem")
        }
        yield {**own, **{name: _carried(block, schema.field(name)) for name in config.columns}}


def _carried(block: list[Row], field: pa.Field) -> pa.Array:
    values = [row.values.get(field.name) for row in block]
    if pa.types.is_string(field.type):
        return pa.array([clean(value) for value in values], field.type)
    return pa.array(values, field.type)

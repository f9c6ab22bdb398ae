"""The rows of all lists as arrow tables of one schema.

Two passes: `scan` counts rows and finds the types of carried columns, `tables` gives the rows. The same row is the
same row in both, so nothing may be skipped in either.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.carried import carried_type, carry, is_plain_text, plain_text
from headrace.curation.fetch.lists.columns import check_columns, wanted_columns
from headrace.curation.fetch.lists.inputs import ListFile, open_parquet_list, opened, text_blocks
from headrace.curation.fetch.lists.kinds import CarriedKinds
from headrace.curation.fetch.lists.label import LABEL, check_label_type, label_column, labels
from headrace.curation.fetch.lists.rows import (
    BLOCK_ROWS,
    BOXES,
    NO_TEXT,
    URL_NO_TEXT,
    Block,
    Tally,
    problem_column,
    settle,
    to_text,
)

_OWN = (("url", pa.string()), ("caption", pa.string()), ("problem", pa.string()))
_PLACE = (("input_file", pa.string()), ("input_row", pa.int64()))


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the lists found."""

    rows: tuple[int, ...]
    """Rows of each file."""
    schema: pa.Schema
    """Of the tables: url, caption, problem, input_file, input_row, listed columns, carried columns."""


def scan(files: Sequence[ListFile], config: InputConfig) -> Scan:
    """Count the rows and fix the schema. Raises ValueError for missing columns and types that do not go together."""
    counts, carried = [], pa.schema([])
    for file in files:
        count, schema = _scan_parquet(file, config) if file.format == "parquet" else _scan_text(file, config)
        counts.append(count)
        carried = unified(carried, schema, file) if count else carried
    kinds = {field.name: field.type for field in carried if not pa.types.is_null(field.type)}
    expected = ((name, pa.string()) for name in config.listed_columns)
    columns = ((name, kinds.get(name, pa.string())) for name in config.columns)
    return Scan(tuple(counts), pa.schema([*_OWN, *_PLACE, *expected, *columns]))


def unified(carried: pa.Schema, schema: pa.Schema, file: ListFile) -> pa.Schema:
    """Return the carried columns of some lists with those of one more. Raises ValueError where types do not fit."""
    try:
        return pa.unify_schemas([carried, schema], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"{file.url}: a carried column has another type than in the lists before: {error} (a csv column is "
            "text; make it text in all lists, then a recipe may say try_cast(COLUMN as double))"
        ) from error


def _scan_parquet(file: ListFile, config: InputConfig) -> tuple[int, pa.Schema]:
    with opened(file) as stream:
        parquet = open_parquet_list(stream, file, config)
        return parquet.num_rows, parquet_carried(parquet.schema, file, config)


def parquet_carried(schema: pa.Schema, file: ListFile, config: InputConfig) -> pa.Schema:
    """Return the carried columns of a parquet list as they will be kept. Raises ValueError for what cannot be."""
    fields = [schema.field(name) for name in config.columns]
    if LABEL in config.columns:
        check_label_type(schema.field(LABEL).type, file.url)
    return pa.schema(
        [(field.name, pa.int64() if field.name == LABEL else carried_type(field, file.url)) for field in fields]
    )


def _scan_text(file: ListFile, config: InputConfig) -> tuple[int, pa.Schema]:
    count, known, kinds = 0, tuple[str, ...](), CarriedKinds(config)
    for block in text_blocks(file, config, Tally()):
        count += len(block.numbers)
        known = tuple(block.known)
        kinds.add(block)
    check_known(file, known, config, any_row=count > 0)
    return count, kinds.schema


def check_known(file: ListFile, known: Sequence[str], config: InputConfig, *, any_row: bool) -> None:
    """Raise ValueError if a text list lacks a column; `known` are those that it has."""
    if file.format == "txt":
        _check_txt(file, config)
    elif any_row:
        if not known:  # a list of cells has a header, so this is one of records
            raise ValueError(
                f"{file.url}: no row of it is a JSON object with keys; is it {file.format}? (input.format)"
            )
        check_columns(file.url, known, config)


def _check_txt(file: ListFile, config: InputConfig) -> None:
    if config.listed_columns or config.columns:
        raise ValueError(f"{file.url}: a txt list has no columns, but the input names some to carry")


def check_list(file: ListFile, config: InputConfig) -> None:
    """Raise ValueError if a list lacks a column that the config names; no more of it is read than that takes."""
    if file.format == "parquet":
        with opened(file) as stream:
            parquet_carried(open_parquet_list(stream, file, config).schema, file, config)
        return
    if file.format == "txt":
        _check_txt(file, config)
    wanted, known, any_row = set(wanted_columns(config).values()), tuple[str, ...](), False
    with contextlib.closing(text_blocks(file, config, Tally())) as blocks:
        for block in blocks:
            known, any_row = tuple(block.known), any_row or bool(block.numbers)
            if file.format not in ("json", "jsonl") or wanted <= set(known):
                return
    check_known(file, known, config, any_row=any_row)


def tables(
    files: Sequence[ListFile], config: InputConfig, schema: pa.Schema, tally: Tally | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of all lists in order, some thousand at a time; what was odd in them is counted in `tally`."""
    counted = Tally() if tally is None else tally
    for file in files:
        if file.format == "parquet":
            blocks: Iterator[dict[str, Any]] = parquet_blocks(file, config, schema, counted)
        else:
            blocks = _text_tables(file, config, schema, counted)
        for block in blocks:
            rows = len(block["url"])
            if not rows:
                continue
            block["input_file"] = pa.repeat(pa.scalar(file.name), rows)
            columns = [pa.nulls(rows, item.type) if block[item.name] is None else block[item.name] for item in schema]
            yield pa.table(columns, schema=schema)


def _text_tables(file: ListFile, config: InputConfig, schema: pa.Schema, tally: Tally) -> Iterator[dict[str, Any]]:
    for block in text_blocks(file, config, tally):
        own = settle(block, config, file.name, tally)
        carried = {
            name: _carried(values, schema.field(name), block, file.url)
            for name, values in zip(config.columns, block.carried, strict=True)
        }
        yield {**own, **carried}


def _carried(values: list[Any], field: pa.Field, block: Block, url: str) -> pa.Array:
    if field.name == LABEL:
        return labels(values, lambda row: f"{url}: {block.where(row)}")
    if pa.types.is_string(field.type):
        return to_text(values)[0]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"{url}: from {block.where(0)}: column {field.name!r}: {error}") from error


def parquet_blocks(
    file: ListFile, config: InputConfig, schema: pa.Schema, tally: Tally
) -> Generator[dict[str, Any], None, None]:
    """Yield the columns of a parquet list, some thousand rows at a time. `schema` holds the carried ones."""
    own = {"url": config.url_column, "caption": config.caption_column, **config.listed_columns}
    wanted = sorted({*(name for name in own.values() if name is not None), *config.columns})
    start = 0
    with opened(file) as stream:
        for batch in open_parquet_list(stream, file, config).batches(BLOCK_ROWS, wanted):
            rows = len(batch)
            block: dict[str, Any] = dict.fromkeys(own)
            problems: dict[int, str] = {}
            for name, source in own.items():
                if source is not None:
                    if name == BOXES and not is_plain_text(batch.column(source).type):
                        block[name] = to_text(batch.column(source).to_pylist())[0]
                        continue
                    block[name], broken = plain_text(batch.column(source))
                    for row in broken:
                        if name == "url":
                            problems[row] = URL_NO_TEXT
                        else:
                            tally.repair(NO_TEXT, f"{file.name} row {start + row}")
            block["problem"] = problem_column(block["url"], problems, partial(_row_place, start), file.name, tally)
            block["input_row"] = pa.array(range(start, start + rows), pa.int64())
            for name in config.columns:
                column = batch.column(name)
                if name == LABEL:
                    block[name] = label_column(column, file.url, start)
                else:
                    where = f"{file.url}: rows from {start}: column {name!r}"
                    block[name] = carry(column, schema.field(name).type, where)
            yield block
            start += rows


def _row_place(start: int, row: int) -> str:
    return f"row {start + row}"

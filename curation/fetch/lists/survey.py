"""A look at the lists before anything is done: how many rows, what is odd in them, and what a run would refuse.

Parquet tells its rows. Of text lists `SURVEY_BYTES` are read, of all of them together; the rows of what lies beyond are
estimated from what was read.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from headrace import files
from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import ListFile, open_parquet_list, opened, text_blocks
from headrace.curation.fetch.lists.kinds import CarriedKinds
from headrace.curation.fetch.lists.label import LABEL, labels
from headrace.curation.fetch.lists.rows import Block, Tally, settle
from headrace.curation.fetch.lists.table import check_known, check_list, parquet_blocks, parquet_carried, unified

SURVEY_BYTES = 32 << 20
SURVEY_ROWS = 100_000
"""Rows of each parquet list that are looked at."""


@dataclass(slots=True)
class Survey:
    """What the lists hold, as far as one look tells."""

    rows: int = 0
    """Exact, or estimated."""
    exact: bool = True
    rows_read: int = 0
    num_bytes: int = 0
    """Of all lists."""
    tally: Tally = field(default_factory=Tally)
    """What was odd in the rows that were read."""
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """The carried columns, as far as they were seen."""


def survey(lists: Sequence[ListFile], config: InputConfig) -> Survey:
    """Look at the lists. Raises ValueError for what a run would refuse in the part that is read."""
    found = Survey()
    carried, text_rows, text_read, unread = pa.schema([]), 0, 0, 0
    for file in lists:
        size = files.size_of(file.url) if file.num_bytes is None else file.num_bytes
        found.num_bytes += size
        if file.format == "parquet":
            rows, schema = _look_at_parquet(file, config, found)
            found.rows += rows
            carried = unified(carried, schema, file) if rows else carried
            continue
        if file.start_row:  # the rows before are no sample of these
            look = _look_at_text(file, config, found, size + 1)
            found.rows += look.rows
            carried = unified(carried, look.schema, file) if look.rows else carried
            continue
        if text_read >= SURVEY_BYTES:
            check_list(file, config)
            unread += size
            continue
        look = _look_at_text(file, config, found, SURVEY_BYTES - text_read)
        text_rows += look.rows
        text_read += look.num_bytes
        if look.whole:
            carried = unified(carried, look.schema, file) if look.rows else carried
        else:
            unread += max(0, size - look.num_bytes)
            found.exact = False
    found.carried = carried
    found.rows += text_rows
    if unread:
        found.exact = False
        found.rows += text_rows * unread // max(1, text_read)
    return found


@dataclass(slots=True)
class _Look:
    """What was read of one text list."""

    schema: pa.Schema
    rows: int = 0
    num_bytes: int = 0
    """As they lie there, before they are decompressed."""
    whole: bool = True

    def add_bytes(self, count: int) -> None:
        """Hear of bytes that were read."""
        self.num_bytes += count


def _look_at_text(file: ListFile, config: InputConfig, found: Survey, max_bytes: int) -> _Look:
    look, kinds, known = _Look(pa.schema([])), CarriedKinds(config), tuple[str, ...]()
    with contextlib.closing(text_blocks(file, config, found.tally, look.add_bytes)) as blocks:
        for block in blocks:
            settle(block, config, file.name, found.tally)
            kinds.add(block)
            if LABEL in config.columns and block.carried:
                labels(block.carried[config.columns.index(LABEL)], partial(_place, file, block))
            look.rows += len(block.numbers)
            known = tuple(block.known)
            if look.num_bytes >= max_bytes and len(block.numbers):
                look.whole = False
                break
    found.rows_read += look.rows
    if look.whole:
        check_known(file, known, config, any_row=look.rows > 0)
    look.schema = kinds.schema
    return look


def _place(file: ListFile, block: Block, row: int) -> str:
    return f"{file.url}: {block.where(row)}"


def _look_at_parquet(file: ListFile, config: InputConfig, found: Survey) -> tuple[int, pa.Schema]:
    with opened(file) as stream:
        parquet = open_parquet_list(stream, file, config)
        rows, schema = parquet.num_rows, parquet_carried(parquet.schema, file, config)
    read = 0
    with contextlib.closing(parquet_blocks(file, config, schema, found.tally)) as blocks:
        for block in blocks:
            read += len(block["url"])
            if read >= SURVEY_ROWS:
                break
    found.rows_read += read
    return rows, schema

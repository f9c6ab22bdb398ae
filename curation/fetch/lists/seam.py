"""Where rows are added to a list: do the old rows still read as they did, and do the new ones go with them?"""

from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import ListFile, text_blocks
from headrace.curation.fetch.lists.plan import ADVICE, Plan, PlannedFile
from headrace.curation.fetch.lists.rows import Tally

SEAM_ROWS = 1024
"""Rows before the seam that are compared; an open quote of csv reaches 256 lines ahead."""


def check_seam(part: ListFile, plan: Plan, config: InputConfig) -> None:
    """Raise ValueError if the rows before `part` read otherwise now that bytes follow them.

    They do where the list did not end with a whole row: without a line end, or inside of quotes.
    """
    planned = next(file for segment in reversed(plan.segments) for file in segment.files if file.name == part.name)
    start = max(0, part.start_row - SEAM_ROWS)
    before = _rows(replace(part, start_row=start, num_bytes=planned.num_bytes), config, part.start_row - start + 1)
    after = _rows(replace(part, start_row=start), config, part.start_row - start)
    if len(before) != part.start_row - start:
        raise ValueError(_refusal(planned, f"it had {part.start_row} rows and is read as {start + len(before)} now"))
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            raise ValueError(_refusal(planned, f"what follows changes row {start + row}: did it end in a whole line?"))


def _refusal(planned: PlannedFile, why: str) -> str:
    return f"input.urls: rows were added to {planned.name}, but {why} {ADVICE}"


def _rows(file: ListFile, config: InputConfig, count: int) -> list[tuple[Any, ...]]:
    """Return the first rows of a list, or of the part of one."""
    found: list[tuple[Any, ...]] = []
    for block in text_blocks(file, config, Tally()):
        columns = (block.numbers, block.urls, block.captions, *block.listed.values(), *block.carried)
        problems = [block.problems.get(row) for row in range(len(block.numbers))]
        found += islice(zip(*columns, problems, strict=True), count - len(found))
        if len(found) >= count:
            break
    return found


def check_types(new: pa.Schema, first: pa.Schema, url: str) -> None:
    """Raise ValueError if carried columns of new lists cannot take the types of those that were taken first."""
    for field in new:
        if field.name not in first.names:
            continue  # columns that are all null have no type yet
        kind = first.field(field.name).type
        fits = (
            field.type == kind
            or pa.types.is_null(field.type)
            or pa.types.is_string(kind)
            or (pa.types.is_floating(kind) and pa.types.is_integer(field.type))
        )
        if not fits:
            raise ValueError(
                f"{url}: column {field.name!r} is {field.type}, and {kind} in the rows that this job has taken; make "
                f"it {kind}, or give the new lists a job folder of their own"
            )

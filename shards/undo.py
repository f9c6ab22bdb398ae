"""Rows of an index that were taken down, put back where they stood, so that numbers of samples mean what they meant."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from headrace.shards.manifest import Shards


@dataclass(frozen=True, slots=True)
class Undo:
    """What leads from the indexes of a dataset as it is to those that it had."""

    rows: Mapping[str, tuple[tuple[tuple[int, str], ...], ...]]
    """By shard and take-down, newest first: (row, key) of what went, ascending."""
    current: Shards
    """The shards as they are."""


def with_rows_back(table: pa.Table, steps: tuple[tuple[tuple[int, str], ...], ...]) -> pa.Table:
    """Return an index in which the rows of take-downs, newest first, stand again: their key, and nothing else."""
    for rows in steps:
        for row, key in rows:
            blank = dict.fromkeys(table.column_names) | {"key": key, "offset": 0, "size": 0}
            line = pa.Table.from_pylist([{name: blank[name] for name in table.column_names}], schema=table.schema)
            table = pa.concat_tables([table.slice(0, row), line, table.slice(row)])
    return table

"""The annotations that a report walks through, one raw shard at a time."""

from collections.abc import Mapping

import pyarrow as pa

from headrace import files
from headrace.shards.parquet import open_parquet


def read_annotations(folders: Mapping[str, str], shard: str) -> pa.Table:
    """Return the scalar annotations of one raw shard side by side, `key` first; of two of one name the first."""
    columns: dict[str, pa.ChunkedArray] = {}
    for folder in folders.values():
        with open_parquet(files.join(folder, f"{shard}.parquet")) as file:
            table = file.read([item.name for item in file.schema if not pa.types.is_nested(item.type)])
        for name in table.column_names:
            columns.setdefault(name, table[name])
    return pa.table(columns)

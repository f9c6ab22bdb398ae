"""The tables that a report walks through, one raw shard at a time.

The one thing a reader would get wrong: the raw shards that count are those in the ledger; a job may hold others,
fetched after it, or all of whose rows a retry has replaced.
"""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.curation.ledger import Ledger
from headrace.shards.parquet import open_parquet

_LEDGER_COLUMNS = ["uid", "url", "raw_shard", "key", "kept", "step", "reason", "value", "threshold", "duplicate_of"]


def ledger_by_shard(ledger: Ledger, columns: list[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
    """Yield (raw shard, its rows of the ledger) in order; row groups may cut a shard anywhere."""
    with open_parquet(ledger.table) as file:
        pending: list[pa.Table] = []
        name: str | None = None
        for batch in file.batches(1 << 16, columns or _LEDGER_COLUMNS):
            table = pa.Table.from_batches([batch])
            while table.num_rows:
                shards = table["raw_shard"]
                first = shards[0].as_py()
                last = pc.index(pc.equal(shards, first), False).as_py()
                count = table.num_rows if last < 0 else last
                if name is not None and first != name:
                    yield name, pa.concat_tables(pending)
                    pending = []
                name = first
                pending.append(table.slice(0, count))
                table = table.slice(count)
        if name is not None:
            yield name, pa.concat_tables(pending)


def read_annotations(folders: Mapping[str, str], shard: str, *, nested: bool = False) -> pa.Table:
    """Return the annotations of one raw shard side by side, `key` first; of two columns of one name the first."""
    columns: dict[str, pa.ChunkedArray] = {}
    for folder in folders.values():
        with open_parquet(files.join(folder, f"{shard}.parquet")) as file:
            table = file.read([item.name for item in file.schema if nested or not pa.types.is_nested(item.type)])
        for name in table.column_names:
            columns.setdefault(name, table[name])
    return pa.table(columns)

"""Where each kept row goes: raw order, shuffled within windows of raw shards, cut into output shards.

A pure function of (seed, windows, which rows are kept). Output shards are cut across the ends of windows, so all but
the last are full, and one output shard may read from the raw shards of two windows.
"""

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from headrace.curation.select.database import insert, read_batches
from headrace.shards.permutation import make_key, permute


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementConfig:
    """Where kept rows go. Select writes the place of each into the ledger; build only follows it."""

    samples_per_shard: int = 10_000
    """Samples in each output shard; only the last one is shorter."""
    shuffle_window: int = 16
    """Raw shards whose kept rows are shuffled together; the raw shards one output shard may read from."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples_per_shard <= 1_000_000:
            raise ValueError(f"samples_per_shard must be 1..1000000, got {self.samples_per_shard}")
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window must be at least 1 raw shard, got {self.shuffle_window}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A `PlacementConfig` and the seed: raw order, shuffled within windows of raw shards, cut into output shards."""

    seed: int
    """The recipe's seed."""
    shuffle_window: int
    """Raw shards a window."""
    samples_per_shard: int
    """Rows an output shard."""


def place_rows(connection: duckdb.DuckDBPyConnection, placement: Placement) -> int:
    """Create `placed` (`__row`, `place`) for the rows in `alive`; return the number of output shards."""
    connection.execute("CREATE TABLE placed (__row BIGINT, place BIGINT)")
    kept = f"SELECT __row, __shard // {placement.shuffle_window} AS number FROM rows SEMI JOIN alive USING (__row)"
    sizes = connection.execute(f"SELECT number, count(*) FROM ({kept}) GROUP BY number ORDER BY number").fetchall()
    starts, total = {}, 0
    for number, size in sizes:
        starts[number] = total
        total += size
    done = 0
    for table in read_batches(connection, f"{kept} ORDER BY __row"):
        numbers = table["number"].to_numpy()
        order = np.arange(done, done + table.num_rows, dtype=np.int64)
        places = np.empty(table.num_rows, np.int64)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            key = make_key(placement.seed, "build", number)
            places[mine] = permute(order[mine] - starts[number], dict(sizes)[number], key) + starts[number]
        insert(connection, "placed", pa.table({"__row": table["__row"], "place": places}))
        done += table.num_rows
    return -(-total // placement.samples_per_shard)

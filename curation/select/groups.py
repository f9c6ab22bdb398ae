"""Groups of rows that are alike, and the row that each is dropped for.

Rows linked by a step form groups. With `chains: join` a group keeps its best row alone: if A~B and B~C, C goes for A
however far apart they are. With `chains: cut` the best row takes only the rows within the threshold of itself; the best
of the rest takes those near to it, and so on: no row is dropped for one that it is not near to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import count, insert, read_batches
from headrace.curation.select.expression import quoted
from headrace.curation.select.hamming import Indices
from headrace.curation.select.load import CAPTION_CHARS
from headrace.curation.select.rank import Ranking
from headrace.curation.select.step import Bench

Chains = Literal["join", "cut"]
"""What becomes of a row that is linked to the best of its group through others only."""

Values = NDArray[np.float64]
Measure = Callable[[int, Indices], Values]
"""How near a row of a group is to others of it, by their places in it."""

JUDGED_SCHEMA = pa.schema(
    [("__row", pa.int64()), ("best_row", pa.int64()), ("value", pa.float64()), ("within", pa.bool_())]
)
ROWS_AT_A_TIME = 20_000


@dataclass(frozen=True, slots=True)
class Likeness:
    """How rows of a group are compared."""

    columns: tuple[str, ...]
    """Columns of `here` that it reads."""
    measure_of: Callable[[pa.Table], Callable[[int, int], Measure]]
    """Given some whole groups, and then the first row and the end of one of them: how its rows compare."""
    within: Callable[[Values], NDArray[np.bool_]]
    """Which values are near enough."""


def judge_groups(bench: Bench, ranking: Ranking, likeness: Likeness, chains: Chains) -> dict[str, Any]:
    """Create `judged`: for each row of a group of several the row it goes for (itself: it stays), and their value.

    Reads `grouped` (`__row`, `label`). Also creates `ranked`: `__row`, `label`, `place`, `caption_place`. Returns the
    numbers of groups for the summary.
    """
    connection = bench.connection
    connection.execute(
        f"""
        CREATE TABLE ranked AS
        WITH repeated AS (
            SELECT * FROM grouped
            SEMI JOIN (SELECT label FROM grouped GROUP BY label HAVING count(*) > 1) USING (label)),
        {ranking.tables}
        SELECT __row, label, row_number() OVER (PARTITION BY label ORDER BY {ranking.order}) AS place,
            row_number() OVER (PARTITION BY label ORDER BY {ranking.caption_order}) AS caption_place
        FROM ordered
        """
    )
    insert(connection, "judged", JUDGED_SCHEMA.empty_table())
    for table in _whole_groups(connection, likeness.columns):
        insert(connection, "judged", _judge(table, likeness, chains))
    sizes = "SELECT count(*), max(size) FROM (SELECT count(*) AS size FROM ranked GROUP BY label)"
    groups, largest = connection.execute(sizes).fetchall()[0]
    query = "SELECT coalesce(max(size), 1) FROM (SELECT count(*) AS size FROM judged GROUP BY best_row)"
    return {
        "groups": int(groups),
        "largest_group": int(largest or 1),
        "most_dropped_for_one": count(connection, query) - 1,
    }


def captions_of_groups() -> str:
    """Return the query for `take_captions`: the rows that stay and the rows of theirs whose captions are better."""
    return f"""
        SELECT best_row AS __row, source FROM (
            SELECT best_row, arg_min(__row, caption_place) AS source FROM judged JOIN ranked USING (__row)
            GROUP BY best_row)
        JOIN here ON here.__row = source
        WHERE source <> best_row AND here.{CAPTION_CHARS} IS NOT NULL
        """


def members_of_groups() -> str:
    """Return the query for `merge_captions`: the rows that stay, the rows that go for each, and the order of these."""
    return (
        "SELECT best_row AS __row, judged.__row AS member, caption_place AS place FROM judged JOIN ranked USING (__row)"
    )


def drop_tables(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Drop the tables of `judge_groups` and others."""
    for name in ("grouped", "ranked", "judged", *names):
        connection.execute(f"DROP TABLE IF EXISTS {name}")


def _whole_groups(connection: duckdb.DuckDBPyConnection, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Yield the rows of groups, best first, in tables that never cut a group in two."""
    read = "".join(f", here.{quoted(name)}" for name in columns)
    query = f"SELECT ranked.__row, label{read} FROM ranked JOIN here USING (__row) ORDER BY label, place"
    yield from whole_runs(read_batches(connection, query, ROWS_AT_A_TIME), "label")


def whole_runs(tables: Iterator[pa.Table], column: str) -> Iterator[pa.Table]:
    """Yield tables sorted by `column` again, cut so that no run of one value of it spans two."""
    waiting: list[pa.Table] = []
    for table in tables:
        values = table[column].to_numpy()
        last = int(np.searchsorted(values, values[-1]))
        if last or (waiting and waiting[-1][column][-1].as_py() != values[0]):
            yield pa.concat_tables([*waiting, table.slice(0, last)])
            waiting = []
        waiting.append(table.slice(last))
    if waiting:
        yield pa.concat_tables(waiting)


def _judge(table: pa.Table, likeness: Likeness, chains: Chains) -> pa.Table:
    rows, labels = table["__row"].to_numpy(), table["label"].to_numpy()
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    best, value = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    measure_of = likeness.measure_of(table)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        leaders, values = assign_leaders(stop - start, measure_of(start, stop), likeness.within, chains)
        best[start:stop], value[start:stop] = rows[start + leaders], values
    columns = {"__row": rows, "best_row": best, "value": value, "within": likeness.within(value) | (best == rows)}
    return pa.table(columns, schema=JUDGED_SCHEMA)


def assign_leaders(
    size: int, measure: Measure, within: Callable[[Values], NDArray[np.bool_]], chains: Chains
) -> tuple[Indices, Values]:
    """Return for each row of a group, ranked best first, the place of the row it goes for, and how near that is."""
    leaders, values = np.arange(size), np.zeros(size)
    free = np.arange(size)
    while free.size > 1:
        leader, rest = int(free[0]), free[1:]
        found = measure(leader, rest)
        taken = np.ones(rest.size, bool) if chains == "join" else within(found)
        leaders[rest[taken]], values[rest[taken]] = leader, found[taken]
        free = rest[~taken]
    return leaders, values

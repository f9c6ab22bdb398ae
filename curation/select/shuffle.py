"""Work that falls apart by a key: rows of one key are solved together, rows of different keys apart.

A few rows are one bucket, which the driver's database solves over `here`. Of many, a unit a part writes the part's rows
by the upper bits of the hash of their key, one row group a bucket; then a unit a bucket gathers its rows of all parts
and solves them by the same code, in a database of its own. The number of buckets changes no verdict.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from headrace.curation.select.database import (
    READ_ROWS,
    Limits,
    count,
    held_down,
    insert,
    open_memory,
    read_batches,
    take_parquet,
)
from headrace.curation.select.here import HerePart
from headrace.curation.select.step import VERDICT_SCHEMA, Bench
from headrace.shards.heartbeat import beat
from headrace.shards.parquet import open_parquet, write_groups
from headrace.shards.units import EngineConfig, run_units

log = logging.getLogger(__name__)

ALONE_ROWS = 100_000_000
"""Up to so many rows the driver's database solves them: cutting costs 1.7 s a million rows more, on all machines
together, and pays where one machine's memory ends."""
JUDGED_ROWS = 2_000_000
"""The same where rows are compared one with another outside of the database, which takes ten times as long."""
BUCKET_ROWS = 4_000_000
"""Rows of a bucket, at most, where no key has very many; at least half of it."""
MOST_BITS = 12
MIN_MEMORY_BYTES = 64 << 20

Solve = Callable[[Bench], dict[str, Any]]
"""Reads `here` of the bench, or of some keys, writes `verdict` (and one of `_HANDED`, if rows may have the
captions of others), and returns counts for the summary. It goes to other processes: a partial of a function."""

_HANDED = {
    "captions_taken": pa.schema([("__row", pa.int64()), ("source", pa.int64())]),
    "caption_members": pa.schema([("__row", pa.int64()), ("member", pa.int64()), ("place", pa.int64())]),
}
"""Tables about captions that a step may write."""
_GROUPED = (
    "SELECT * FROM grouped SEMI JOIN (SELECT label FROM grouped GROUP BY label HAVING count(*) > 1) USING (label)"
)


def solve_by_key(bench: Bench, key: str, solve: Solve) -> dict[str, Any]:
    """Solve the rows of `here` by the values of `key`, an SQL expression; return the counts of all.

    Values that the database holds for equal must be equal bit for bit, or 0.0 and -0.0, NaN or NULL.
    """
    bits = bits_for(bench.num_here, ALONE_ROWS, BUCKET_ROWS)
    if bench.parts is None or not bits:
        return solve(bench)
    return _solve_buckets(bench, f"hash({key})", solve, bits, None)


def solve_groups(bench: Bench, solve: Solve, *, judged: bool, row_bytes: int = 1) -> dict[str, Any]:
    """Solve the rows of `grouped` (`__row`, `label`) that share their label; return the counts of all.

    Each bench has its rows of `grouped`, and in `here` at least those. `judged`: `solve` compares row by row.
    `row_bytes`: of what it sorts of a row, about, where that is much.
    """
    num_rows = count(bench.connection, f"SELECT count(*) FROM ({_GROUPED})")
    # The database fails where it sorts wide rows of more bytes than its memory, with a folder to spill to as without.
    fit, fit_bucket = (
        limits.memory_bytes // (2 * row_bytes) for limits in (bench.limits, _share(bench.limits, bench.engine)[1])
    )
    bits = bits_for(num_rows, min(JUDGED_ROWS if judged else ALONE_ROWS, fit), min(BUCKET_ROWS, fit_bucket))
    if bench.parts is None or not bits:
        return solve(bench)
    labels = bench.folder / "labels.npy"
    query = f"SELECT __row, label::BIGINT AS label FROM ({_GROUPED}) ORDER BY __row"
    tables = list(read_batches(bench.connection, query))
    np.save(labels, np.stack([np.concatenate([table[name].to_numpy() for table in tables]) for name in _LABELLED]))
    found = _solve_buckets(bench, "hash(__label)", solve, bits, labels)
    labels.unlink()
    return found


_LABELLED = ("__row", "label")


def bits_for(num_rows: int, alone_rows: int, bucket_rows: int) -> int:
    """Return how many bits of a hash tell the buckets of so many rows; 0: one bucket."""
    if num_rows <= alone_rows:
        return 0
    return min(MOST_BITS, max(1, math.ceil(math.log2(num_rows / bucket_rows))))


@dataclass(frozen=True, slots=True)
class SpreadUnit:
    """One part, whose rows are to be written by bucket."""

    name: str
    here: HerePart
    code: str
    """SQL of 64 bits of each row: equal for those that belong together."""
    bits: int
    labels: Path | None
    """Rows and their labels, [2, n] by row: only these rows are written, with `__label`. None: all rows."""
    limits: Limits
    out: Path


@dataclass(frozen=True, slots=True)
class BucketUnit:
    """One bucket: its rows in the files of all parts."""

    name: str
    spread: tuple[tuple[Path, int], ...]
    """Files, and the row group in each."""
    solve: Solve
    num_input: int
    limits: Limits
    out: Path
    """Its verdicts."""


@dataclass(frozen=True, slots=True)
class _Solved:
    counts: dict[str, Any] | None
    """None: it has no rows."""
    handed: tuple[str, ...]
    """Which of `_HANDED` were written."""


def _solve_buckets(bench: Bench, code: str, solve: Solve, bits: int, labels: Path | None) -> dict[str, Any]:
    assert bench.parts is not None
    engine, limits = _share(bench.limits, bench.engine)
    spread = [
        SpreadUnit(
            name=f"rows of part {here.number} by bucket",
            here=here,
            code=code,
            bits=bits,
            labels=labels,
            limits=limits,
            out=bench.folder / f"spread-{here.number:06d}.parquet",
        )
        for here in bench.parts.parts(bench.connection)
    ]
    log.info("rows are cut into %d buckets by %s", 1 << bits, code)
    with held_down(bench.connection, bench.limits, limits.memory_bytes):
        buckets, solved = _solve_apart(bench, spread, solve, engine)
    take_parquet(bench.connection, "verdict", [unit.out for unit in buckets if unit.spread])
    for name in sorted({name for result in solved for name in result.handed}):
        take_parquet(bench.connection, name, [_handed(unit, name) for unit in buckets if unit.spread])
    return _of_all([result.counts for result in solved if result.counts is not None])


def _solve_apart(
    bench: Bench, spread: Sequence[SpreadUnit], solve: Solve, engine: EngineConfig
) -> tuple[list[BucketUnit], list[_Solved]]:
    bits, limits = spread[0].bits, spread[0].limits
    written = run_units(spread_part, spread, engine)
    buckets = [
        BucketUnit(
            name=f"bucket {bucket + 1} of {1 << bits}",
            spread=tuple(
                (unit.out, groups[bucket]) for unit, groups in zip(spread, written, strict=True) if bucket in groups
            ),
            solve=solve,
            num_input=bench.num_input,
            limits=limits,
            out=bench.folder / f"bucket-{bucket:04d}.parquet",
        )
        for bucket in range(1 << bits)
    ]
    solved = run_units(solve_bucket, buckets, engine)
    for unit in spread:
        unit.out.unlink()
    return buckets, solved


def _of_all(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of all buckets: the most of what is called so, the sum of the others."""
    return {
        name: (max if name.startswith(("largest", "most")) else sum)(counts[name] for counts in found)
        for name in found[0]
    }


def _share(limits: Limits, engine: EngineConfig) -> tuple[EngineConfig, Limits]:
    """Return where units run, and the limits of each of their databases: with the driver's they keep to the memory.

    On this machine no more work at a time than have `MIN_MEMORY_BYTES` each; one always does.
    """
    workers = 1 if engine.executor == "inline" else engine.workers or len(os.sched_getaffinity(0))
    if engine.executor == "local":
        workers = max(1, min(workers, limits.memory_bytes // MIN_MEMORY_BYTES - 1))
        engine = replace(engine, workers=workers)
    return engine, replace(limits, memory_bytes=max(MIN_MEMORY_BYTES, limits.memory_bytes // (workers + 1)))


def spread_part(unit: SpreadUnit) -> dict[int, int]:
    """Write the rows of a part by bucket, each bucket in order; return bucket -> row group of those that have rows."""
    # Embeddings of a part may be more than the share of one of many workers: the database passes them on, unsorted.
    with open_memory(unit.limits, spill=unit.out.with_suffix(".spill")) as connection:
        unit.here.show(connection)
        query = f"SELECT here.*, {unit.code} AS __code FROM here"
        if unit.labels is not None:
            insert(connection, "labels", _labels_of(unit.labels, unit.here))
            query = f"SELECT *, {unit.code} AS __code FROM here JOIN labels USING (__row)"
        rows = connection.sql(query).to_arrow_reader(READ_ROWS).read_all()
    bucket = (rows["__code"].to_numpy() >> np.uint64(64 - unit.bits)).astype(np.int64)
    order = np.lexsort((rows["__row"].to_numpy(), bucket))
    rows = rows.drop_columns("__code").take(pa.array(order))
    found, starts = np.unique(bucket[order], return_index=True)
    sizes = np.diff([*starts.tolist(), rows.num_rows])
    pieces = (rows.slice(start, size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True))
    write_groups(unit.out, rows.schema, pieces)
    beat(rows=rows.num_rows)
    return {number: group for group, number in enumerate(found.tolist())}


def _labels_of(path: Path, here: HerePart) -> pa.Table:
    rows, labels = np.load(path, mmap_mode="r")
    start, stop = np.searchsorted(rows, [here.first, here.first + here.size])
    return pa.table({"__row": rows[start:stop], "__label": labels[start:stop]})


def solve_bucket(unit: BucketUnit) -> _Solved:
    """Gather the rows of a bucket, solve them, and write what became of them."""
    with open_memory(unit.limits, spill=unit.out.with_suffix(".spill")) as connection:
        num_here = 0
        for rows in _rows_of(unit):
            if "__label" in rows.column_names:
                labelled = rows.select(["__row", "__label"]).rename_columns(list(_LABELLED))
                insert(connection, "grouped", labelled)
                rows = rows.drop_columns("__label")
            insert(connection, "here", rows)
            num_here += rows.num_rows
        if not num_here:
            return _Solved(None, ())
        counts = unit.solve(Bench(connection, unit.limits, unit.num_input, num_here, {}))
        _write(connection, "verdict", VERDICT_SCHEMA, unit.out)
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        handed = tuple(name for name in _HANDED if name in tables)
        for name in handed:
            _write(connection, name, _HANDED[name], _handed(unit, name))
    beat(rows=num_here)
    return _Solved(counts, handed)


def _rows_of(unit: BucketUnit) -> Iterator[pa.Table]:
    for path, group in unit.spread:
        with open_parquet(str(path)) as file:
            yield file.read(groups=[group])


def _write(connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, path: Path) -> None:
    tables = read_batches(connection, f"SELECT * FROM {name} ORDER BY __row")
    write_groups(path, schema, (table.select(schema.names) for table in tables))


def _handed(unit: BucketUnit, name: str) -> Path:
    return unit.out.with_suffix(f".{name}.parquet")

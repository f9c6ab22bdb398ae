"""The rows of a job in parts: runs of raw shards, each read, sifted row by row, and written as narrow columns.

What holds for a row by that row alone is decided here, a part at a time and in any number of processes. Later steps see
the rows that are left, from parquet files in the work folder.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.ledger import StepSummary
from headrace.curation.select.database import Limits, insert, open_memory, read_batches
from headrace.curation.select.expression import Checker
from headrace.curation.select.hamming import Indices
from headrace.curation.select.load import IDENTITY, MADE_COLUMNS, Inputs, part_rows, sql_types
from headrace.curation.select.sieve import VERDICT_COLUMNS, Sieve
from headrace.curation.select.step import Bench, Step, stored_columns
from headrace.shards.heartbeat import beat
from headrace.shards.parquet import read_table, write_parquet
from headrace.shards.units import INLINE, EngineConfig, run_units

PART_ROWS = 150_000
"""Rows of a part, about: a few hundred bytes each while it is read."""
INLINE_ROWS = 1_000_000
"""Below this, starting worker processes takes longer than the work."""
DROPPED_SCHEMA = pa.schema(
    [
        ("__row", pa.int64()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """Some raw shards in order, and the numbers of their rows."""

    number: int
    shards: tuple[str, ...]
    first: int
    """`__row` of the first row."""
    sizes: tuple[int, ...]
    """Rows of each shard."""

    @property
    def stop(self) -> int:
        """`__row` behind the last row."""
        return self.first + sum(self.sizes)

    def file(self, folder: Path, kind: str) -> Path:
        """Return where something of the part lies in the work folder."""
        return folder / f"{kind}-{self.number:06d}.parquet"


def cut_parts(shards: Sequence[str], sizes: Sequence[int]) -> list[Part]:
    """Cut raw shards of so many rows into parts."""
    parts: list[Part] = []
    start, first, size = 0, 0, 0
    for stop in range(1, len(shards) + 1):
        size += sizes[stop - 1]
        if size >= PART_ROWS or stop == len(shards):
            parts.append(Part(len(parts), tuple(shards[start:stop]), first, tuple(sizes[start:stop])))
            start, first, size = stop, first + size, 0
    return parts


def engine_for(engine: EngineConfig, num_rows: int) -> EngineConfig:
    """Return where the parts of a job of so many rows are worked on."""
    return INLINE if num_rows < INLINE_ROWS else engine


@dataclass(frozen=True, slots=True)
class CodesUnit:
    """The codes of the rows of one part."""

    name: str
    inputs: Inputs
    part: Part
    out: Path


def find_superseded(
    connection: duckdb.DuckDBPyConnection,
    inputs: Inputs,
    parts: Sequence[Part],
    folder: Path,
    engine: EngineConfig,
    done: Callable[[Part], None],
) -> Indices:
    """Return the raw rows of an input row other than its first successful one (or its first, if none succeeded).

    Codes of the identities find the few repeated ones; only their identities are then compared.
    """
    units = [CodesUnit(f"identities {part.number}", inputs, part, part.file(folder, "codes")) for part in parts]
    run_units(write_codes, units, engine, on_result=lambda number, _: done(parts[number]))
    codes = np.concatenate([np.zeros(0, np.uint64), *(np.fromfile(unit.out, np.uint64) for unit in units)])
    for unit in units:
        unit.out.unlink()
    ordered = np.sort(codes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not repeated.size:
        return np.zeros(0, np.int64)
    columns = {name: pa.string() for name in ("uid", "input_file", "status")} | {"input_row": pa.int64()}
    insert(connection, "repeated", pa.schema([("__row", pa.int64()), *columns.items()]).empty_table())
    for part in parts:
        mine = codes[part.first : part.stop]
        place = np.minimum(np.searchsorted(repeated, mine), repeated.size - 1)
        rows = np.flatnonzero(repeated[place] == mine)
        if rows.size:
            insert(connection, "repeated", _identities(inputs, part, ("status",)).take(pa.array(rows)))
    key = ", ".join(IDENTITY)
    query = f"""
        SELECT __row FROM (
            SELECT __row, row_number() OVER (
                PARTITION BY {key} ORDER BY coalesce(status = 'success', false) DESC, __row) AS place FROM repeated)
        WHERE place > 1 ORDER BY __row
        """
    pieces = [table["__row"].to_numpy() for table in read_batches(connection, query)]
    connection.execute("DROP TABLE repeated")
    return np.concatenate([np.zeros(0, np.int64), *pieces])


def write_codes(unit: CodesUnit) -> None:
    """Write 64 bits of the identity of each row of a part: equal for equal identities."""
    table = _identities(unit.inputs, unit.part)
    # One thread, so that rows come in their order.
    with duckdb.connect(config={"threads": "1"}) as connection:
        connection.register("identities", table)
        codes = connection.sql(f"SELECT hash({', '.join(IDENTITY)}) AS code FROM identities").to_arrow_table()["code"]
    codes.to_numpy().astype(np.uint64).tofile(unit.out)
    beat(rows=table.num_rows)


def _identities(inputs: Inputs, part: Part, more: Sequence[str] = ()) -> pa.Table:
    kinds = {"input_row": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in (*IDENTITY, *more)])
    return part_rows(inputs, part.shards, part.sizes, part.first, schema)


@dataclass(frozen=True, slots=True)
class SiftUnit:
    """One part, and the steps at the start of a selection that look at each row alone."""

    name: str
    inputs: Inputs
    part: Part
    known: pa.Schema
    """The columns that expressions may name."""
    hints: Mapping[str, str]
    """What to do for a column that is not there."""
    read: tuple[str, ...]
    """The columns to read, without words of hashes."""
    stored: tuple[str, ...]
    """The columns to write, beside `__row`."""
    steps: tuple[Step, ...]
    superseded: Indices
    """Rows of the part that do not count."""
    limits: Limits
    folder: Path


@dataclass(frozen=True, slots=True)
class Sifted:
    """What became of the rows of a part."""

    lines: tuple[StepSummary, ...]
    """One a step, of this part alone."""
    left: bytes
    """Packed bits: the rows that are left."""


def sift_parts(
    units: Sequence[SiftUnit], engine: EngineConfig, done: Callable[[Part], None]
) -> tuple[list[StepSummary], NDArray[np.bool_]]:
    """Sift all parts; return the funnel so far, and for each row of the job whether it is left."""
    results = run_units(sift_part, units, engine, on_result=lambda number, _: done(units[number].part))
    funnel = [_of_all([result.lines[step] for result in results]) for step in range(len(units[0].steps))]
    pieces = [
        np.unpackbits(np.frombuffer(result.left, np.uint8), count=sum(unit.part.sizes)).astype(bool)
        for unit, result in zip(units, results, strict=True)
    ]
    return funnel, np.concatenate(pieces)


def _of_all(lines: Sequence[StepSummary]) -> StepSummary:
    first = lines[0]
    for line in lines:
        if (line.threshold, line.details) != (first.threshold, first.details):
            raise ValueError(
                f"step {first.name!r} says `each_row`, but its result differs between parts of the rows: "
                f"{first.threshold}, {first.details} and {line.threshold}, {line.details}"
            )
    reasons = sorted({reason for line in lines for reason in line.dropped})
    return replace(
        first,
        rows_in=sum(line.rows_in for line in lines),
        dropped={reason: sum(line.dropped.get(reason, 0) for line in lines) for reason in reasons},
        rows_out=sum(line.rows_out for line in lines),
    )


def fields_of(columns: Iterable[str], known: pa.Schema) -> pa.Schema:
    """Return the schema of some of the known columns, and of those that are made."""
    return pa.schema(
        [pa.field(name, MADE_COLUMNS[name]) if name in MADE_COLUMNS else known.field(name) for name in columns]
    )


def sift_part(unit: SiftUnit) -> Sifted:
    """Read a part, run its steps, and write what is left (`rows`) and what is not (`dropped`), both in order."""
    part = unit.part
    rows = part_rows(unit.inputs, part.shards, part.sizes, part.first, fields_of(unit.read, unit.known))
    left = np.ones(rows.num_rows, bool)
    left[unit.superseded - part.first] = False
    with open_memory(unit.limits) as connection:
        checker = Checker(connection, sql_types(connection, unit.known), unit.hints)
        prepared = [(step, step.prepare(checker)) for step in unit.steps]
        needed = stored_columns([name for _, ready in prepared for name in ready.columns])
        insert(connection, "rows", rows.select(["__row", *needed]).filter(pa.array(left)))
        sieve = Sieve(connection, left, part.first)
        lines, num_here = [], int(left.sum())
        for step, ready in prepared:
            lines.append(sieve.run(step, ready, Bench(connection, unit.limits, num_here, num_here, {})))
            num_here = lines[-1].rows_out
        query = f"SELECT step, {VERDICT_COLUMNS} FROM dropped ORDER BY __row"
        found = [table.select(DROPPED_SCHEMA.names).cast(DROPPED_SCHEMA) for table in read_batches(connection, query)]
        dropped = pa.concat_tables([DROPPED_SCHEMA.empty_table(), *found])
    write_parquet(str(part.file(unit.folder, "dropped")), dropped)
    kept = rows.select(["__row", *unit.stored]).filter(pa.array(left))
    write_parquet(str(part.file(unit.folder, "rows")), kept)
    beat(rows=rows.num_rows)
    return Sifted(tuple(lines), np.packbits(left).tobytes())


def read_dropped(part: Part, folder: Path) -> pa.Table:
    """Return the rows that the sifting of a part dropped."""
    return read_table(str(part.file(folder, "dropped")))

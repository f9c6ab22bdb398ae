"""The ledger's rows, written a part at a time in the order of raw shard and key."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.config import canonical_json
from headrace.curation.ledger import LEDGER_SCHEMA, MERGED_FIELDS, ledger_schema
from headrace.curation.select.database import READ_ROWS, count, insert, read_batches
from headrace.curation.select.hamming import Indices
from headrace.curation.select.load import IDENTITY, Inputs, caption_facts, part_rows
from headrace.curation.select.parts import DROPPED_SCHEMA, Part, read_dropped

NOTED_SCHEMA = pa.schema(
    [("__row", pa.int64()), ("caption_of", pa.string()), ("caption_facts", pa.string()), *MERGED_FIELDS]
)
HELD_SCHEMA = pa.schema(
    [
        ("__row", pa.int64()),
        ("source", pa.int64()),
        ("place", pa.int64()),
        ("uid", pa.string()),
        ("facts", pa.string()),
    ]
)
WINDOW_ROWS = 4_000_000
"""Rows whose verdicts are sorted at a time."""
READ_AHEAD = 2
"""Parts that are read while one is written."""

_RAW_COLUMNS = (*IDENTITY, "url", "key")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """The rows that are kept, in order, and the place of each among the output shards."""

    rows: Indices
    places: Indices
    samples_per_shard: int

    @property
    def num_shards(self) -> int:
        """Output shards."""
        return int(self.places.max(initial=-1)) // self.samples_per_shard + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRows:
    """All that the rows of a ledger follow from."""

    inputs: Inputs
    parts: Sequence[Part]
    connection: duckdb.DuckDBPyConnection
    """With `dropped`, `captions` and `merged`."""
    folder: Path
    """With what the parts dropped."""
    superseded: Indices
    placed: Placed
    merges: bool
    """True if steps merge captions: the ledger has columns for them."""
    unnamed: frozenset[str]
    """Names of the steps whose rows are not to be named."""
    done: Callable[[Part], None]
    """Called after each part."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the ledger."""
        return ledger_schema(merged=self.merges)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the ledger in tables of `READ_ROWS` rows, the last one shorter."""
        self._note_captions()
        waiting: list[pa.Table] = []
        num_waiting = 0
        for table in self._part_tables():
            waiting.append(table)
            num_waiting += table.num_rows
            while num_waiting >= READ_ROWS:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, READ_ROWS)
                waiting = [whole.slice(READ_ROWS)]
                num_waiting -= READ_ROWS
        if num_waiting:
            yield pa.concat_tables(waiting)

    def _part_tables(self) -> Iterator[pa.Table]:
        dropped, noted = self._by_part("dropped", DROPPED_SCHEMA), self._by_part("noted", NOTED_SCHEMA)
        for part, (rows, sifted) in zip(self.parts, self._read_ahead(), strict=True):
            later, captions = next(dropped), next(noted)
            yield self._table(part, rows, pa.concat_tables([sifted, later]), captions)
            self.done(part)

    def _read_ahead(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        with ThreadPoolExecutor(1) as pool:
            reads: list[Future[tuple[pa.Table, pa.Table]]] = []
            for part in self.parts:
                reads.append(pool.submit(self._read, part))
                if len(reads) > READ_AHEAD:
                    yield reads.pop(0).result()
            for read in reads:
                yield read.result()

    def _read(self, part: Part) -> tuple[pa.Table, pa.Table]:
        # What tells a row apart is always the raw table's, whatever an annotator calls its columns.
        inputs = replace(self.inputs, annotations=())
        schema = pa.schema([LEDGER_SCHEMA.field(name) for name in _RAW_COLUMNS])
        rows = part_rows(inputs, part.shards, part.sizes, part.first, schema)
        shards = np.repeat(np.arange(len(part.shards)), part.sizes)
        rows = rows.append_column("raw_shard", pa.array(part.shards, pa.string()).take(pa.array(shards)))
        start, stop = np.searchsorted(self.superseded, [part.first, part.stop])
        if stop > start:
            counts = np.ones(rows.num_rows, bool)
            counts[self.superseded[start:stop] - part.first] = False
            rows = rows.filter(pa.array(counts))
        return rows, read_dropped(part, self.folder)

    def _by_part(self, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a table of the database for each part, in order; the database sorts a window at a time."""
        window, stop = schema.empty_table(), 0
        for part in self.parts:
            if part.stop > stop:
                stop = max(part.stop, part.first + WINDOW_ROWS)
                query = f"SELECT * FROM {name} WHERE __row BETWEEN {part.first} AND {stop - 1} ORDER BY __row"
                found = [table.select(schema.names).cast(schema) for table in read_batches(self.connection, query)]
                window = pa.concat_tables([schema.empty_table(), *found]).combine_chunks()
            start, end = np.searchsorted(window["__row"].to_numpy(), [part.first, part.stop])
            yield window.slice(start, end - start)

    def _table(self, part: Part, rows: pa.Table, dropped: pa.Table, noted: pa.Table) -> pa.Table:
        numbers = rows["__row"].to_numpy()
        step, reason, value, threshold, duplicate_of = (
            _spread(numbers, dropped, name) for name in DROPPED_SCHEMA.names[1:]
        )
        uid, url = rows["uid"], rows["url"]
        if self.unnamed:
            hidden = pc.is_in(step, pa.array(sorted(self.unnamed), pa.string()))
            uid = pc.if_else(hidden, _md5_of(rows["key"], hidden), uid)
            url = pc.if_else(hidden, pa.scalar(None, pa.string()), url)
        start, stop = np.searchsorted(self.placed.rows, [part.first, part.stop])
        kept = self.placed.rows[start:stop]
        places = self.placed.places[start:stop]
        shard, index = places // self.placed.samples_per_shard, places % self.placed.samples_per_shard
        out = pa.table({"__row": kept, "shard": _shard_names(shard), "index": pa.array(index.astype(np.int32))})
        columns = [
            *(uid, rows["input_file"], rows["input_row"], url, rows["raw_shard"], rows["key"]),
            pa.array(np.isin(numbers, kept, assume_unique=True)),
            *(step, reason, value, threshold, duplicate_of),
            *(_spread(numbers, out, name) for name in ("shard", "index")),
            *(_spread(numbers, noted, name) for name in NOTED_SCHEMA.names[1:] if name in self.schema.names),
        ]
        return pa.table(columns, schema=self.schema)

    def _note_captions(self) -> None:
        """Create `noted`: of each row kept with other captions, whose they are and what follows from each."""
        insert(self.connection, "noted", NOTED_SCHEMA.empty_table())
        if not count(self.connection, "SELECT (SELECT count(*) FROM captions) + (SELECT count(*) FROM merged)"):
            return
        insert(self.connection, "kept", pa.table({"__row": self.placed.rows}))
        insert(self.connection, "held", HELD_SCHEMA.empty_table())
        names = [shard for part in self.parts for shard in part.shards]
        firsts = np.cumsum([0, *(size for part in self.parts for size in part.sizes)])
        # Row by row whose captions it holds, the first at place 0, which may be its own.
        query = """
            SELECT __row, source, place FROM (
                SELECT __row, coalesce(captions.source, __row) AS source, 0 AS place
                FROM (SELECT __row FROM captions UNION SELECT __row FROM merged) LEFT JOIN captions USING (__row)
                UNION ALL SELECT __row, source, place FROM merged)
            SEMI JOIN kept USING (__row) ORDER BY source, __row
            """
        rows = (pair for table in read_batches(self.connection, query) for pair in _pairs(table, firsts))
        for shard, group in groupby(rows, key=lambda pair: pair[0]):
            held = list(group)
            facts = caption_facts(self.inputs, names[shard], [place for _, place, _, _ in held])
            read = [
                {
                    "__row": row,
                    "source": place + int(firsts[shard]),
                    "place": at,
                    "uid": uid,
                    "facts": canonical_json(f),
                }
                for (_, place, row, at), (uid, f) in zip(held, facts, strict=True)
            ]
            insert(self.connection, "held", pa.Table.from_pylist(read, HELD_SCHEMA))
        self.connection.execute(
            """
            INSERT INTO noted
            SELECT __row, any_value(uid) FILTER (place = 0 AND source <> __row),
                any_value(facts) FILTER (place = 0 AND source <> __row),
                CASE WHEN count(*) > 1 THEN list(uid ORDER BY place) END,
                CASE WHEN count(*) > 1 THEN list(facts ORDER BY place) END
            FROM held GROUP BY __row
            """
        )


def _pairs(table: pa.Table, firsts: Indices) -> Iterable[tuple[int, int, int, int]]:
    """Yield (raw shard, place in it, row that holds the caption, place among its captions)."""
    source = table["source"].to_numpy()
    shard = np.searchsorted(firsts, source, side="right") - 1
    holds = (table[name].to_pylist() for name in ("__row", "place"))
    return zip(shard.tolist(), (source - firsts[shard]).tolist(), *holds, strict=True)


def _spread(numbers: Indices, table: pa.Table, name: str) -> pa.Array:
    """Return a column of a table of some of the rows `numbers` for all of them: null where it has none."""
    place = np.zeros(numbers.size, np.int64)
    there = np.zeros(numbers.size, bool)
    at = np.searchsorted(numbers, table["__row"].to_numpy())
    place[at], there[at] = np.arange(at.size), True
    return table[name].combine_chunks().take(pa.array(place, mask=~there))


def _shard_names(numbers: Indices) -> pa.Array:
    found, place = np.unique(numbers, return_inverse=True)
    return pa.array([f"{number:05d}" for number in found.tolist()], pa.string()).take(pa.array(place))


def _md5_of(keys: pa.ChunkedArray, wanted: pa.ChunkedArray) -> pa.Array:
    return pa.array(
        [
            hashlib.md5(key.encode(), usedforsecurity=False).hexdigest() if hide else None
            for key, hide in zip(keys.to_pylist(), wanted.to_pylist(), strict=True)
        ],
        pa.string(),
    )

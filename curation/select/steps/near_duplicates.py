"""The step `near_duplicates`: images linked by small PDQ distances, one of each group kept.

Equal hashes are one node; nodes that agree in a band are compared; links make groups. If A~B and B~C, all three form
one group even if A and C are far apart: a row may lie farther than `distance` from the row kept for it. Its reason is
then `near-duplicate-chain` and its value that larger distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import duckdb
import numpy as np
import pyarrow as pa

from headrace.curation.select.database import count, insert, read_batches
from headrace.curation.select.expression import Checker
from headrace.curation.select.hamming import (
    WORDS,
    Bands,
    Components,
    Indices,
    Words,
    choose_bands,
    largest_run,
    linked_pairs,
)
from headrace.curation.select.load import CAPTION_CHARS, word_column
from headrace.curation.select.rank import (
    BEST_COPY_COLUMNS,
    Captions,
    Ranking,
    best_copy,
    caption_columns,
    check_captions,
    given_order,
)
from headrace.curation.select.step import (
    Bench,
    Links,
    ReadyStep,
    Step,
    StepResult,
    take_captions,
    write_verdict,
)

# Nodes read at a time: 40 bytes each.
CHUNK_NODES = 500_000
MAX_NEAR_DISTANCE = 31

# The best rows of groups, and the rows whose captions they take: those of a group without any caption take none.
_TAKEN = f"""
    SELECT ranked.__row, ranked.caption_row AS source
    FROM ranked JOIN here AS other ON other.__row = ranked.caption_row
    WHERE ranked.place = 1 AND ranked.caption_row <> ranked.__row AND other.{CAPTION_CHARS} IS NOT NULL
    """
_WORDS_SQL = ", ".join(f"h{word}" for word in range(WORDS))


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates(Step):
    """Of each group of images linked by PDQ distances up to `distance`, keep the best by `order`."""

    step: Literal["near_duplicates"] = "near_duplicates"
    """The tag of this step."""
    name: str = "near_duplicates"
    """Name in the ledger and the funnel."""
    distance: int = 20
    """Differing bits, of 256, up to which two images are linked."""
    min_quality: int = 50
    """Images of lower PDQ quality (flat, almost empty) are left alone."""
    hashes: tuple[Literal["pdq", "pdq_trimmed"], ...] = ("pdq", "pdq_trimmed")
    """Columns compared, any with any."""
    order: tuple[str, ...] = ()
    """Empty: the best copy, by the columns of the annotator `quality`. Or SQL expressions, each with `asc` or `desc`;
    nulls and NaN last. Ties: uid, input_file, input_row."""
    captions: Captions = "fill"
    """`fill`: where the best row has no caption, it takes that of the next best with one; `longest`: the longest of its
    group; `best_score`: that of the best clip_score; `own`: never another row's."""

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_NEAR_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_NEAR_DISTANCE} of 256 bits, got {self.distance}")
        if not self.hashes or len(set(self.hashes)) != len(self.hashes):
            raise ValueError(f"hashes must name each of pdq, pdq_trimmed at most once, got {list(self.hashes)}")

    links: ClassVar[Links] = "groups"

    def needs_columns(self) -> tuple[str, ...]:
        quality = () if self.order else BEST_COPY_COLUMNS
        captions = (name for name in caption_columns(self.captions) if name != CAPTION_CHARS)
        return (*self.hashes, "pdq_quality", *quality, *captions)

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        check_captions(checker, self.captions, where)
        order = checker.check_order(self.order, where)
        ranking = given_order(order, self.captions) if order else best_copy(checker, self.captions)

        def run(bench: Bench) -> StepResult:
            connection = bench.connection
            _create_nodes(connection, self)
            num_nodes = count(connection, "SELECT count(*) FROM nodes")
            bands = choose_bands(num_nodes, self.distance)
            components = Components(num_nodes)
            largest_bucket = 0
            for band in range(bands.count):
                for keys, nodes, hashes in _band_buckets(connection, bands, band):
                    largest_bucket = max(largest_bucket, largest_run(keys))
                    pairs = linked_pairs(keys, hashes, distance=self.distance, max_bucket=bench.limits.max_bucket)
                    for left, right in pairs:
                        components.link(nodes[left], nodes[right])
            for left, right in _own_links(connection):
                components.link(left, right)
            labels = components.labels()
            insert(connection, "labels", pa.table({"node": np.arange(num_nodes), "label": labels}))
            _rank(connection, ranking)
            _write_verdict(bench, self)
            if self.captions != "own":
                take_captions(bench, _TAKEN)
            details = _details(connection, bench) | {
                "bands": bands.count,
                "largest_bucket": largest_bucket,
                "every_pair_found": bands.exact and largest_bucket <= bench.limits.max_bucket,
            }
            for name in ("nodes", "members", "labels", "grouped", "ranked"):
                connection.execute(f"DROP TABLE {name}")
            return StepResult(float(self.distance), details)

        return ReadyStep((*self.hashes, "pdq_quality", *ranking.columns), run)


def _create_nodes(connection: duckdb.DuckDBPyConnection, step: NearDuplicates) -> None:
    """Create `nodes` (one a distinct hash) and `members` (which rows have it)."""
    variants = " UNION ALL ".join(
        f"SELECT __row, {', '.join(f'{word_column(name, word)} AS h{word}' for word in range(WORDS))} "
        f"FROM here WHERE {word_column(name, 0)} IS NOT NULL AND pdq_quality >= {step.min_quality}"
        for name in step.hashes
    )
    connection.execute(
        f"""
        CREATE TABLE nodes AS
        SELECT row_number() OVER (ORDER BY {_WORDS_SQL}) - 1 AS node, {_WORDS_SQL}
        FROM (SELECT DISTINCT {_WORDS_SQL} FROM ({variants}))
        """
    )
    connection.execute(
        f"CREATE TABLE members AS SELECT DISTINCT __row, node FROM ({variants}) JOIN nodes USING ({_WORDS_SQL})"
    )


def _band_buckets(
    connection: duckdb.DuckDBPyConnection, bands: Bands, band: int
) -> Iterator[tuple[Words, Indices, Words]]:
    """Yield (band's bits, node, hash) of the nodes sorted by those bits, in pieces that never cut a bucket in two."""
    query = f"SELECT {_band_sql(*bands.bits(band))} AS band, node, {_WORDS_SQL} FROM nodes ORDER BY band, node"
    keys, nodes, hashes = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros((0, WORDS), np.uint64)
    for table in read_batches(connection, query, CHUNK_NODES):
        keys = np.concatenate([keys, table["band"].to_numpy().astype(np.uint64)])
        nodes = np.concatenate([nodes, table["node"].to_numpy()])
        hashes = np.concatenate([hashes, np.stack([table[f"h{word}"].to_numpy() for word in range(WORDS)], axis=1)])
        last = int(np.searchsorted(keys, keys[-1]))
        yield keys[:last], nodes[:last], hashes[:last]
        keys, nodes, hashes = keys[last:], nodes[last:], hashes[last:]
    yield keys, nodes, hashes


def _band_sql(start: int, stop: int) -> str:
    """Return SQL for bits start..stop-1 of the hash as an integer."""
    parts = []
    taken = 0
    while start < stop:
        word, shift = divmod(start, 64)
        bits = min(stop - start, 64 - shift)
        parts.append(f"(((h{word} >> {shift}) & {(1 << bits) - 1}::UBIGINT) * {1 << taken}::UBIGINT)")
        start, taken = start + bits, taken + bits
    return " + ".join(parts)


def _own_links(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Indices, Indices]]:
    """Yield the nodes of rows that have two different hashes."""
    query = "SELECT min(node) AS a, max(node) AS b FROM members GROUP BY __row HAVING count(*) > 1 ORDER BY a, b"
    for table in read_batches(connection, query):
        yield table["a"].to_numpy(), table["b"].to_numpy()


def _rank(connection: duckdb.DuckDBPyConnection, ranking: Ranking) -> None:
    """Create `grouped` (row -> its group) and `ranked`: place in a group of several, its best row, whose caption."""
    connection.execute(
        "CREATE TABLE grouped AS SELECT __row, min(label) AS label FROM members JOIN labels USING (node) GROUP BY __row"
    )
    connection.execute(
        f"""
        CREATE TABLE ranked AS
        WITH repeated AS (
            SELECT * FROM grouped
            SEMI JOIN (SELECT label FROM grouped GROUP BY label HAVING count(*) > 1) USING (label)),
        {ranking.tables}
        SELECT __row, first_value(__row) OVER best_first AS best_row, row_number() OVER best_first AS place,
            first_value(__row) OVER caption_first AS caption_row
        FROM ordered WINDOW best_first AS (PARTITION BY label ORDER BY {ranking.order}),
            caption_first AS (PARTITION BY label ORDER BY {ranking.caption_order})
        """
    )


def _write_verdict(bench: Bench, step: NearDuplicates) -> None:
    distances = ", ".join(
        " + ".join(
            f"bit_count(xor(mine.{word_column(left, word)}, best.{word_column(right, word)}))::INTEGER"
            for word in range(WORDS)
        )
        for left in step.hashes
        for right in step.hashes
    )
    write_verdict(
        bench,
        f"""
        WITH measured AS (
            SELECT ranked.__row AS __row, best.uid AS uid, least({distances}) AS distance
            FROM ranked JOIN here AS mine ON mine.__row = ranked.__row JOIN here AS best ON best.__row = ranked.best_row
            WHERE ranked.place > 1)
        SELECT __row, CASE WHEN distance <= {step.distance} THEN 'near-duplicate' ELSE 'near-duplicate-chain' END
            AS reason, distance::DOUBLE AS value, {step.distance}::DOUBLE AS threshold, uid AS duplicate_of
        FROM measured
        """,
    )


def _details(connection: duckdb.DuckDBPyConnection, bench: Bench) -> dict[str, int]:
    sizes = "SELECT count(*), max(size) FROM (SELECT count(*) AS size FROM grouped GROUP BY label HAVING size > 1)"
    groups, largest = connection.execute(sizes).fetchall()[0]
    return {
        "groups": int(groups),
        "largest_group": int(largest or 1),
        "not_compared": bench.num_here - count(connection, "SELECT count(*) FROM grouped"),
    }

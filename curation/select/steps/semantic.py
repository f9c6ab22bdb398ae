"""The step `semantic`: thin out images that mean the same, within clusters of their embeddings.

SemDeDup (Abbas, Tirumala, Simig, Ganguli, Morcos, arXiv:2303.09540): spherical k-means, then of each cluster the rows
in some order, each dropped if its cosine to one before it is at least 1 - eps. Unlike copies, what is dropped is
another photograph of the same thing. A row without an embedding is left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from headrace.curation.select.cluster import ClusterConfig, assign_clusters, cluster_columns
from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.expression import Checker, quoted
from headrace.curation.select.groups import drop_tables, whole_runs
from headrace.curation.select.hamming import Indices
from headrace.curation.select.rank import Ranking, given_order
from headrace.curation.select.step import Bench, Links, ReadyStep, Step, StepResult, write_verdict
from headrace.curation.select.vectors import DIGITS, ROWS_AT_A_TIME, Vectors, pairs_over, unit_vectors

FOUND_SCHEMA = pa.schema([("__row", pa.int64()), ("best_row", pa.int64()), ("value", pa.float64())])
# Rows of a cluster that are judged at a time: their pairs are held.
BLOCK_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Semantic(Step):
    """Within clusters of embeddings, drop rows whose cosine to a row that goes before them is at least 1 - `eps`."""

    step: Literal["semantic"] = "semantic"
    """The tag of this step."""
    name: str = "semantic"
    """Name in the ledger and the funnel."""
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    """Embeddings and clusters."""
    eps: float
    """Rows as near as this (1 - cosine) to one that goes before them are dropped: 0.01 drops hardly more than copies;
    how much it drops depends on the model."""
    keep: Literal["hard", "easy"] = "hard"
    """Without an `order`: `hard` puts the rows farthest from their centroid first, as the paper keeps them; `easy` the
    nearest."""
    order: tuple[str, ...] = ()
    """SQL expressions, each with `asc` or `desc`, in place of `keep`; nulls and NaN last. Ties: uid, input_file,
    input_row."""
    compared_with: Literal["kept", "all"] = "kept"
    """`kept`: a row is dropped only for a row that is kept; `all`: also for one that was dropped itself, as in the
    paper's code, which drops more."""

    packages: ClassVar[tuple[str, ...]] = ("faiss",)
    links: ClassVar[Links] = "groups"
    measured: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must be at least 0 and under 1, got {self.eps}")

    @property
    def threshold(self) -> float:
        """The cosine from which on a row is dropped."""
        return round(1 - self.eps, DIGITS)

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        columns = cluster_columns(self.clusters, checker, where)
        ranking = given_order(checker.check_order(self.order, where), "own")

        def run(bench: Bench) -> StepResult:
            details = assign_clusters(bench, self.clusters)
            bench.connection.execute(_ranked(ranking, None if self.order else self.keep))
            insert(bench.connection, "judged", FOUND_SCHEMA.empty_table())
            largest = 0
            for rows, vectors in self._clusters(bench):
                largest = max(largest, len(rows))
                insert(bench.connection, "judged", self._judge(rows, vectors))
            write_verdict(
                bench,
                f"""
                SELECT judged.__row, 'same-meaning' AS reason, value, {self.threshold!r}::DOUBLE AS threshold,
                    best.uid AS duplicate_of
                FROM judged JOIN here AS best ON best.__row = best_row
                """,
            )
            drop_tables(bench.connection, "assigned")
            return StepResult(self.threshold, details | {"largest_cluster": largest})

        return ReadyStep((*columns, *ranking.columns), run)

    def _clusters(self, bench: Bench) -> Iterator[tuple[Indices, Vectors]]:
        """Yield the rows of each cluster, those to keep first, and their vectors."""
        name = self.clusters.embedding
        query = f"""
            SELECT label, __row, {quoted(name)} AS embedding FROM ranked JOIN here USING (__row)
            ORDER BY label, place
            """
        for table in whole_runs(read_batches(bench.connection, query, ROWS_AT_A_TIME), "label"):
            vectors, rows = unit_vectors(table["embedding"], name), table["__row"].to_numpy()
            starts = np.flatnonzero(np.r_[True, np.diff(table["label"].to_numpy()) != 0])
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                yield rows[start:stop], vectors[start:stop]

    def _judge(self, rows: Indices, vectors: Vectors) -> pa.Table:
        best, value = drop_like_earlier(vectors, self.threshold, chains=self.compared_with == "all")
        dropped = np.flatnonzero(best >= 0)
        columns: dict[str, Any] = {"__row": rows[dropped], "best_row": rows[best[dropped]], "value": value[dropped]}
        return pa.table(columns, schema=FOUND_SCHEMA)


def _ranked(ranking: Ranking, keep: str | None) -> str:
    first = "" if keep is None else f"nearness {'ASC' if keep == 'hard' else 'DESC'}, "
    return f"""
        CREATE TABLE ranked AS
        WITH repeated AS (SELECT __row, cluster AS label, nearness FROM assigned),
        {ranking.tables}
        SELECT __row, label, row_number() OVER (PARTITION BY label ORDER BY {first}{ranking.order}) AS place
        FROM ordered
        """


def drop_like_earlier(vectors: Vectors, threshold: float, *, chains: bool) -> tuple[Indices, np.ndarray[Any, Any]]:
    """Return for each row the most like row before it that drops it (-1: it is kept), and their cosine.

    With `chains`, rows that were dropped drop others too; those go for the row that is kept at the end of the chain.
    """
    best, value = np.full(len(vectors), -1, np.int64), np.zeros(len(vectors))
    before = np.zeros(0, np.int64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(vectors)))
        base = np.concatenate([before, block])
        for later, place, cosine in pairs_over(vectors[block], vectors[base], threshold, BLOCK_ROWS):
            _settle_block(block[later], base[place], cosine, best, value, chains)
        before = base if chains else np.concatenate([before, block[best[block] < 0]])
    return best, value


def _settle_block(later: Indices, earlier: Indices, cosine: Any, best: Indices, value: Any, chains: bool) -> None:
    """Judge the rows `later`, in their order, by pairs with rows before them."""
    pairs = later > earlier
    later, earlier, cosine = later[pairs], earlier[pairs], cosine[pairs]
    for start, stop in zip(*_runs(later), strict=True):
        row, others, near = later[start], earlier[start:stop], cosine[start:stop]
        if not chains:
            kept = best[others] < 0
            others, near = others[kept], near[kept]
        if others.size:
            first = int(np.lexsort((others, -near))[0])
            root = int(others[first])
            best[row], value[row] = (root if best[root] < 0 else best[root]), near[first]


def _runs(values: Indices) -> tuple[list[int], list[int]]:
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if values.size else np.zeros(0, np.int64)
    return starts.tolist(), [*starts[1:].tolist(), values.size][: len(starts)] if len(starts) else []

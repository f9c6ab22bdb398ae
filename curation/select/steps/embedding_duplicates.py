"""The step `embedding_duplicates`: images linked by the cosine of their embeddings, the best of each group kept.

Up to `exact_rows` rows every pair is compared. Above, rows are compared within the clusters of their nearest centroids,
as in an inverted file, and the share of pairs that this finds is measured on some rows that are compared with all. A
row without an embedding is left alone.
"""

import functools
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from headrace.config import config_to_dict
from headrace.curation.select.captions import USUAL_CAPTIONS, check_most, merge_captions, name_members
from headrace.curation.select.cluster import ClusterConfig, assign_clusters
from headrace.curation.select.database import count, insert, read_batches
from headrace.curation.select.expression import Checker, quoted
from headrace.curation.select.groups import (
    Chains,
    Likeness,
    Measure,
    captions_of_groups,
    drop_tables,
    judge_groups,
    members_of_groups,
    whole_runs,
)
from headrace.curation.select.hamming import Components, Indices
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.rank import (
    BEST_COPY_COLUMNS,
    Captions,
    Ranking,
    best_copy,
    caption_columns,
    check_captions,
    given_order,
    without_idle,
)
from headrace.curation.select.shuffle import solve_groups
from headrace.curation.select.step import Bench, Links, ReadyStep, Step, StepResult, take_captions, write_verdict
from headrace.curation.select.vectors import (
    ROWS_AT_A_TIME,
    Vectors,
    check_embedding,
    cosines,
    is_present,
    pairs_over,
    read_vectors,
    unit_vectors,
)

RECALL_ROWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingDuplicates(Step):
    """Of each group of images linked by cosines of at least `threshold`, keep the best by `order`."""

    step: Literal["embedding_duplicates"] = "embedding_duplicates"
    """The tag of this step."""
    name: str = "embedding_duplicates"
    """Name in the ledger and the funnel."""
    embedding: str = "copy_embedding"
    """Column of embeddings, of any length: of `annotate.copy_embedding`, `annotate.clip`, or carried from the list."""
    threshold: float
    """Cosine from which on two images are linked. It is the model's: SSCD 0.75 (90 % precision), ISC21 `isc_ft_v107`
    0.604169 (DataComp, against evaluation sets), DINOv2's copy detection 0.6 among themselves, 0.45 against those."""
    chains: Chains = "cut"
    """`cut`: a row is dropped only for a row within the threshold; `join`: for the best of all that are linked to it,
    through others too, as LVD-142M was made (reason `near-embedding-chain`)."""
    order: tuple[str, ...] = ()
    """Empty: the best copy, by the columns of the annotator `quality`. Or SQL expressions, each with `asc` or `desc`;
    nulls and NaN last. Ties: uid, input_file, input_row."""
    captions: Captions = "fill"
    """`fill`: where the best row has no caption, it takes that of the next best with one; `longest`: the longest of its
    group; `best_score`: that of the best clip_score; `own`: never another row's; `merge`: as `fill`, and it holds all
    different captions of its group, its own first."""
    max_captions: int = USUAL_CAPTIONS
    """With `captions: merge`: captions that a row holds at most; the summary counts those that were cut. With another
    `captions` a number of its own is refused."""
    exact_rows: int = 50_000
    """Up to so many rows every pair is compared."""
    lists: int = 2
    """Above that: each row is compared with the rows of so many nearest clusters."""
    clusters: int = 0
    """Above that: clusters; 0: one for each thousand rows, at most 50,000."""
    seed: int = 0
    """Of the clusters."""

    packages: ClassVar[tuple[str, ...]] = ("faiss",)
    links: ClassVar[Links] = "groups"
    measured: ClassVar[str] = "cosine"

    def settings(self) -> dict[str, Any]:
        return without_idle(config_to_dict(self))

    def merges_captions(self) -> bool:
        return self.captions == "merge"

    def __post_init__(self) -> None:
        check_most(self.max_captions, self.captions, self.name)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be a cosine above 0 and at most 1, got {self.threshold}")
        if self.exact_rows < 0 or self.lists < 1:
            raise ValueError(f"exact_rows must be 0 or more and lists 1 or more, got {self.exact_rows}, {self.lists}")
        ClusterConfig(number=self.clusters)

    def needs_columns(self) -> tuple[str, ...]:
        return (self.embedding, *(() if self.order else BEST_COPY_COLUMNS), *caption_columns(self.captions))

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        check_embedding(checker, self.embedding, where)
        check_captions(checker, self.captions, where)
        order = checker.check_order(self.order, where)
        ranking = given_order(order, self.captions) if order else best_copy(checker, self.captions)

        def run(bench: Bench) -> StepResult:
            details = self._link(bench)
            solve = functools.partial(self._keep_best, ranking=ranking)
            details |= solve_groups(bench, solve, judged=True, row_bytes=self._row_bytes(bench))
            if self.merges_captions():
                details |= merge_captions(bench, self.max_captions)
            drop_tables(bench.connection, "assigned")
            return StepResult(self.threshold, details)

        return ReadyStep((self.embedding, *IDENTITY, *ranking.columns), run)

    def _row_bytes(self, bench: Bench) -> int:
        name = quoted(self.embedding)
        first = f"SELECT len({name}) FROM here WHERE {is_present(self.embedding)} LIMIT 1"
        return 4 * count(bench.connection, f"SELECT greatest(1, ({first}))")

    def _keep_best(self, bench: Bench, ranking: Ranking) -> dict[str, int]:
        likeness = Likeness((self.embedding,), self._measure_of, functools.partial(operator.le, self.threshold))
        counts = judge_groups(bench, ranking, likeness, self.chains)
        write_verdict(bench, self._verdicts())
        if self.merges_captions():
            name_members(bench, members_of_groups())
        elif self.captions != "own":
            take_captions(bench, captions_of_groups())
        return counts

    def _verdicts(self) -> str:
        return f"""
            SELECT judged.__row, CASE WHEN within THEN 'near-embedding' ELSE 'near-embedding-chain' END AS reason,
                value, {self.threshold!r}::DOUBLE AS threshold, best.uid AS duplicate_of
            FROM judged JOIN here AS best ON best.__row = best_row WHERE judged.__row <> best_row
            """

    def _measure_of(self, table: pa.Table) -> Any:
        vectors = unit_vectors(table[self.embedding], self.embedding)

        def measure_of(start: int, stop: int) -> Measure:
            mine = vectors[start:stop]
            return lambda leader, others: cosines(mine[others], mine[leader])

        return measure_of

    def _link(self, bench: Bench) -> dict[str, Any]:
        """Create `grouped`; return what the summary says of how pairs were found."""
        connection = bench.connection
        present = f"SELECT __row FROM here WHERE {is_present(self.embedding)} ORDER BY __row"
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(table["__row"].to_numpy() for table in read_batches(connection, present))]
        )
        components = Components(len(rows))
        details: dict[str, Any] = {"not_compared": bench.num_here - len(rows), "every_pair_found": True}
        if len(rows) <= self.exact_rows:
            self._compare(components, rows, rows, self._all_vectors(bench))
        else:
            clusters = ClusterConfig(embedding=self.embedding, number=self.clusters, seed=self.seed)
            details |= {"clusters": assign_clusters(bench, clusters, nearest=self.lists)["clusters"]}
            for mine, vectors in self._lists(bench):
                self._compare(components, rows, mine, vectors)
            details |= {"every_pair_found": False} | self._recall(bench)
        insert(connection, "grouped", pa.table({"__row": rows, "label": components.labels()}))
        return details

    def _compare(self, components: Components, rows: Indices, mine: Indices, vectors: Vectors) -> None:
        places = np.searchsorted(rows, mine)
        for left, right, _ in pairs_over(vectors, vectors, self.threshold):
            forward = left < right
            components.link(places[left[forward]], places[right[forward]])

    def _all_vectors(self, bench: Bench) -> Vectors:
        name = quoted(self.embedding)
        query = f"SELECT __row, {name} AS embedding FROM here WHERE {is_present(self.embedding)} ORDER BY __row"
        parts = [vectors for _, vectors in read_vectors(bench.connection, query, "embedding")]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def _lists(self, bench: Bench) -> Any:
        """Yield the rows and vectors of each cluster."""
        query = f"""
            SELECT cluster, __row, {quoted(self.embedding)} AS embedding FROM assigned JOIN here USING (__row)
            ORDER BY cluster, __row
            """
        for table in whole_runs(read_batches(bench.connection, query, ROWS_AT_A_TIME), "cluster"):
            vectors, rows, cluster = unit_vectors(table["embedding"], "embedding"), table["__row"], table["cluster"]
            starts = np.flatnonzero(np.r_[True, np.diff(cluster.to_numpy()) != 0])
            for start, stop in zip(starts, [*starts[1:], table.num_rows], strict=True):
                yield rows.to_numpy()[start:stop], vectors[start:stop]

    def _recall(self, bench: Bench) -> dict[str, Any]:
        """Compare some rows with all; return the share of their pairs that have a cluster in common."""
        texts = " || chr(10) || ".join(f"coalesce({name}::VARCHAR, '')" for name in IDENTITY)
        name, present = quoted(self.embedding), is_present(self.embedding)
        some = f"""
            SELECT __row, {name} AS embedding FROM here WHERE {present}
            ORDER BY md5('{self.seed}' || chr(10) || {texts}), __row LIMIT {RECALL_ROWS}
            """
        every = f"SELECT __row, {name} AS embedding FROM here WHERE {present} ORDER BY __row"
        ((asked, sample),) = read_vectors(bench.connection, some, "embedding")
        insert(bench.connection, "pairs", pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.int64())}))
        for table, vectors in read_vectors(bench.connection, every, "embedding"):
            for left, right, _ in pairs_over(sample, vectors, self.threshold):
                a, b = asked["__row"].to_numpy()[left], table["__row"].to_numpy()[right]
                insert(bench.connection, "pairs", pa.table({"a": a[a != b], "b": b[a != b]}))
        met = "SELECT DISTINCT a, b FROM pairs JOIN assigned AS x ON x.__row = a JOIN assigned AS y ON y.__row = b"
        found = count(bench.connection, f"SELECT count(*) FROM ({met} WHERE x.cluster = y.cluster)")
        pairs = count(bench.connection, "SELECT count(*) FROM pairs")
        bench.connection.execute("DROP TABLE pairs")
        return {"recall_pairs": pairs, "recall": round(found / pairs, 4) if pairs else None}

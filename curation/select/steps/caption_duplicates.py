"""The step `caption_duplicates`: rows whose captions share most of their letters, the best of each group kept.

Captions are the sets of their runs of 5 letters (one case, NFKC, single spaces), as `annotate.caption_minhash` takes
them. Those whose MinHashes agree in a band are compared: exactly, by the Jaccard similarity of the sets, so nothing is
dropped on an estimate. What share of pairs meets in a band is a matter of chance and is said in the summary. A row
without a caption is left alone.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.caption_minhash import NUM_PERMUTATIONS, shingles
from headrace.curation.select.buckets import linked
from headrace.curation.select.database import count, insert, read_batches
from headrace.curation.select.expression import Checker
from headrace.curation.select.groups import (
    Chains,
    Likeness,
    Measure,
    drop_tables,
    judge_groups,
    whole_runs,
)
from headrace.curation.select.hamming import Components, Indices, largest_run
from headrace.curation.select.rank import SCORE, Ranking, given_order
from headrace.curation.select.shuffle import solve_groups
from headrace.curation.select.step import Bench, Links, ReadyStep, Step, StepResult, write_verdict

NODES_AT_A_TIME = 50_000
# Five standard errors of the estimate at most: of pairs over the threshold, one in a million is passed over by it.
SLACK = 5 * 0.0625
DIGITS = 6
# Of pairs at the threshold; more similar ones are missed less.
MIN_RECALL = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionDuplicates(Step):
    """Of each group of rows whose captions are alike, keep the best `most` by `order`."""

    step: Literal["caption_duplicates"] = "caption_duplicates"
    """The tag of this step."""
    name: str = "caption_duplicates"
    """Name in the ledger and the funnel."""
    threshold: float = 0.8
    """Jaccard similarity of the captions' runs of 5 letters, from which on two are alike."""
    most: int = 1
    """Rows that are kept of each group."""
    chains: Chains = "cut"
    """`cut`: a row is dropped only for a row whose caption is alike; `join`: for the best of all that are linked to it,
    through others too (reason `near-caption-chain`)."""
    order: tuple[str, ...] = ()
    """Empty: by `clip_score`, where there is one. Or SQL expressions, each with `asc` or `desc`; nulls and NaN last.
    Ties: uid, input_file, input_row."""

    links: ClassVar[Links] = "groups"
    measured: ClassVar[str] = "similarity"

    def __post_init__(self) -> None:
        if not 0.2 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a similarity of 0.2 to 1, got {self.threshold}")
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")

    def needs_columns(self) -> tuple[str, ...]:
        return ("caption", "caption_minhash")

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        scored = SCORE in checker.names() and checker.check(SCORE, SCORE).is_number
        order = self.order or ((f"{SCORE} desc",) if scored else ())
        ranking = given_order(checker.check_order(order, where), "own")
        bands = choose_bands(self.threshold)

        def run(bench: Bench) -> StepResult:
            details = self._link(bench, bands)
            details |= solve_groups(bench, functools.partial(self._keep_best, ranking=ranking), judged=True)
            drop_tables(bench.connection, "nodes", "labels")
            return StepResult(self.threshold, details)

        return ReadyStep((*self.needs_columns(), *ranking.columns), run)

    def _keep_best(self, bench: Bench, ranking: Ranking) -> dict[str, int]:
        likeness = Likeness(("caption",), _measure_of, functools.partial(operator.le, self.threshold))
        counts = judge_groups(bench, ranking, likeness, self.chains)
        write_verdict(bench, self._verdicts())
        return counts

    def _verdicts(self) -> str:
        reason = "WHEN NOT within THEN 'near-caption-chain' WHEN value = 1 THEN 'same-caption' ELSE 'near-caption'"
        return f"""
            WITH placed AS (
                SELECT judged.*, row_number() OVER (PARTITION BY best_row ORDER BY place) AS number
                FROM judged JOIN ranked USING (__row))
            SELECT placed.__row, CASE {reason} END AS reason, value, {self.threshold!r}::DOUBLE AS threshold,
                best.uid AS duplicate_of
            FROM placed JOIN here AS best ON best.__row = best_row WHERE number > {self.most}
            """

    def _link(self, bench: Bench, bands: "CaptionBands") -> dict[str, Any]:
        """Create `grouped`; return what the summary says of how pairs were found."""
        connection = bench.connection
        connection.execute(
            """
            CREATE TABLE nodes AS
            SELECT row_number() OVER (ORDER BY caption) - 1 AS node, caption, caption_minhash
            FROM (SELECT caption, any_value(caption_minhash) AS caption_minhash FROM here
                WHERE caption IS NOT NULL AND caption_minhash IS NOT NULL GROUP BY caption)
            """
        )
        num_nodes = count(connection, "SELECT count(*) FROM nodes")
        components = Components(num_nodes)
        largest_bucket = 0
        for band in range(bands.count):
            for table in whole_runs(read_batches(connection, bands.buckets(band), NODES_AT_A_TIME), "band"):
                keys, nodes = table["band"].to_numpy(), table["node"].to_numpy()
                largest_bucket = max(largest_bucket, largest_run(keys))
                near = _near(table, nodes, components, self.threshold)
                for left, right in linked(keys, near, bench.limits.max_bucket):
                    components.link(nodes[left], nodes[right])
        insert(connection, "labels", pa.table({"node": np.arange(num_nodes), "label": components.labels()}))
        connection.execute(
            "CREATE TABLE grouped AS SELECT __row, label FROM here JOIN nodes USING (caption) JOIN labels USING (node)"
        )
        return {
            "not_compared": bench.num_here - count(connection, "SELECT count(*) FROM grouped"),
            "different_captions": num_nodes,
            "bands": bands.count,
            "found_at_threshold": round(bands.recall(self.threshold), 4),
            "largest_bucket": largest_bucket,
        }


@dataclass(frozen=True, slots=True)
class CaptionBands:
    """How the numbers of a MinHash are cut into bands."""

    count: int
    numbers: int
    """Numbers a band."""

    def recall(self, similarity: float) -> float:
        """Return the chance that two captions of this similarity agree in a band."""
        return 1 - (1 - similarity**self.numbers) ** self.count

    def buckets(self, band: int) -> str:
        """Return the query for the captions that share their numbers of a band with another, bucket after bucket."""
        first = 4 * self.numbers * band
        key = f"hash(caption_minhash[{first + 1}:{first + 4 * self.numbers}])"
        return f"""
            WITH keyed AS (SELECT {key} AS band, * FROM nodes)
            SELECT band, node, caption, caption_minhash FROM keyed
            SEMI JOIN (SELECT {key} AS band FROM nodes GROUP BY 1 HAVING count(*) > 1) USING (band)
            ORDER BY band, node
            """


def choose_bands(threshold: float) -> CaptionBands:
    """Return the bands of datasketch's LSH for the highest threshold at which 99 % of pairs at `threshold` meet.

    A pair that meets and is not alike costs a comparison, no more.
    """
    from datasketch import MinHashLSH

    bands = CaptionBands(NUM_PERMUTATIONS, 1)
    for step in range(1, 20):
        asked = min(threshold, 0.9) - 0.05 * step
        if asked <= 0:
            break
        lsh = MinHashLSH(threshold=asked, num_perm=NUM_PERMUTATIONS)
        bands = CaptionBands(lsh.b, lsh.r)
        if bands.recall(threshold) >= MIN_RECALL:
            break
    return bands


def jaccard(left: frozenset[bytes], right: frozenset[bytes]) -> float:
    """Return the Jaccard similarity of two sets, to 6 digits; 0 for two empty ones."""
    both = len(left & right)
    return round(both / max(1, len(left) + len(right) - both), DIGITS)


def _near(
    table: pa.Table, nodes: Indices, components: Components, threshold: float
) -> Callable[[Indices, Indices], NDArray[np.bool_]]:
    """Return the test of pairs of a piece of captions; those already linked pass, and are not compared again."""
    signatures = _signatures(table["caption_minhash"])
    sets = _Sets(table["caption"].to_pylist())

    def near(left: Indices, right: Indices) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = components.find(nodes[left]) == components.find(nodes[right])
        places = np.flatnonzero(~result)
        likely = (signatures[left[places]] == signatures[right[places]]).mean(axis=1) >= threshold - SLACK
        for place in places[likely].tolist():
            result[place] = jaccard(sets[int(left[place])], sets[int(right[place])]) >= threshold
        return result

    return near


class _Sets:
    """The runs of letters of some texts, made when asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._made: dict[int, frozenset[bytes]] = {}

    def __getitem__(self, place: int) -> frozenset[bytes]:
        if place not in self._made:
            self._made[place] = frozenset(shingles(self._texts[place]))
        return self._made[place]


def _signatures(column: pa.ChunkedArray) -> NDArray[np.uint32]:
    return np.frombuffer(b"".join(column.to_pylist()), "<u4").reshape(-1, NUM_PERMUTATIONS)


def _measure_of(table: pa.Table) -> Callable[[int, int], Measure]:
    sets = _Sets(table["caption"].to_pylist())

    def measure_of(start: int, stop: int) -> Measure:
        del stop
        return lambda leader, others: np.array(
            [jaccard(sets[start + leader], sets[start + other]) for other in others.tolist()], np.float64
        )

    return measure_of

"""The step `near_duplicates`: images linked by small PDQ distances, one of each group kept.

Equal hashes are one node; near pairs of nodes are searched by tables (`near/`); links make groups. If A~B and B~C, all
three form one group even if A and C are far apart: a row may lie farther than `distance` from the row kept for it. Its
reason is then `near-duplicate-chain` and its value that larger distance. `chains: cut` drops no such row.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.config import config_to_dict
from headrace.curation.annotate.annotators.hash_variants import CUT_COLUMNS, MIRRORED_COLUMNS
from headrace.curation.select.captions import USUAL_CAPTIONS, check_most, merge_captions, name_members
from headrace.curation.select.centre import create_centred
from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.expression import Checker
from headrace.curation.select.groups import (
    Chains,
    Likeness,
    Measure,
    Values,
    captions_of_groups,
    drop_tables,
    judge_groups,
    members_of_groups,
)
from headrace.curation.select.hamming import WORDS, Components, Indices, Words
from headrace.curation.select.load import ALL_HASH_COLUMNS, CAPTION_CHARS, HASH_COLUMNS, present_hashes, word_column
from headrace.curation.select.near.nodes import Nodes, make_nodes
from headrace.curation.select.near.pairs import Forest
from headrace.curation.select.near.search import find_near
from headrace.curation.select.near.tables import is_exact_affordable
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
from headrace.curation.select.step import (
    Bench,
    Links,
    ReadyStep,
    Step,
    StepResult,
    take_captions,
    word_columns,
    write_verdict,
)

MAX_NEAR_DISTANCE = 31
BLOCK_ROWS = 1 << 20
WHOLE = "pdq"
"""The hash by which the middle of a group is found."""

# The best rows of groups, and the rows whose captions they take: those of a group without any caption take none.
_TAKEN = f"""
    SELECT ranked.__row, ranked.caption_row AS source
    FROM ranked JOIN near AS other ON other.__row = ranked.caption_row
    WHERE ranked.place = 1 AND ranked.caption_row <> ranked.__row AND other.{CAPTION_CHARS} IS NOT NULL
    """
_MEMBERS = "SELECT best_row AS __row, __row AS member, caption_place AS place FROM ranked"


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
    hashes: tuple[Literal["pdq", "pdq_trimmed", "pdq_centre"], ...] = ()
    """Columns compared, any with any; empty: all that the job has (a job of an older headrace has no pdq_centre)."""
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
    chains: Chains = "join"
    """`join`: of all that is linked the best row is kept, however far a row is from it; `cut`: a row is dropped only
    for one within `distance` of it, so a chain of pictures cannot swallow another picture."""
    flips: bool = False
    """Compare mirror images as well; needs `annotate.hash_variants`."""
    crops: bool = False
    """Compare crops and small turns as well; needs `annotate.hash_variants: {crops: true}`, and takes several times the
    comparisons."""

    def __post_init__(self) -> None:
        check_most(self.max_captions, self.captions, self.name)
        if not 0 <= self.distance <= MAX_NEAR_DISTANCE:
            raise ValueError(f"distance must be 0 to {MAX_NEAR_DISTANCE} of 256 bits, got {self.distance}")
        if len(set(self.hashes)) != len(self.hashes):
            names = ", ".join(ALL_HASH_COLUMNS)
            raise ValueError(f"hashes must name each of {names} at most once, got {list(self.hashes)}")

    links: ClassVar[Links] = "groups"

    def settings(self) -> dict[str, Any]:
        return without_idle(config_to_dict(self))

    def merges_captions(self) -> bool:
        return self.captions == "merge"

    def needs_columns(self) -> tuple[str, ...]:
        quality = () if self.order else BEST_COPY_COLUMNS
        captions = caption_columns(self.captions)
        return (*(self.hashes or HASH_COLUMNS), *self._variants(), "pdq_quality", *quality, *captions)

    def _variants(self) -> tuple[str, ...]:
        return (*(MIRRORED_COLUMNS if self.flips else ()), *(CUT_COLUMNS if self.crops else ()))

    def decides_by(self) -> dict[str, Any]:
        # Empty stood as these two before there was a third. That a job has it follows from the digests of its tables;
        # that it has it and leaves it out must not look the same.
        chosen = {"hashes": list(self.hashes or HASH_COLUMNS)}
        only = {"only": True} if self.hashes == HASH_COLUMNS else {}
        # Settings that were not there before are left out where they change nothing.
        new = {"chains": self.chains != "join", "flips": self.flips, "crops": self.crops}
        decided = Step.decides_by(self) | chosen | only
        return {name: value for name, value in decided.items() if new.get(name, True)}

    def compared(self) -> tuple[str, ...]:
        """Return the columns whose hashes it compares, at most."""
        return (*(self.hashes or ALL_HASH_COLUMNS), *self._variants())

    def version(self, num_rows: int) -> int:
        # Where not every pair is found, other ones are since 2.
        num_hashes = num_rows * len(self.compared())
        return 1 if is_exact_affordable(num_hashes, self.distance) else 2

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        check_captions(checker, self.captions, where)
        order = checker.check_order(self.order, where)
        chosen = (*(self.hashes or present_hashes(checker.names())), *self._variants())
        by_centre = WHOLE in chosen
        ranking = given_order(order, self.captions) if order else best_copy(checker, self.captions, by_centre=by_centre)

        def run(bench: Bench) -> StepResult:
            connection = bench.connection
            nodes = _nodes(bench, chosen, self.min_quality)
            search = find_near(
                nodes.path,
                nodes.count,
                self.distance,
                max_bucket=bench.limits.max_bucket,
                engine=bench.engine,
                kept=bench.kept,
            )
            groups = _create_grouped(connection, nodes, search.forest)
            nodes.path.unlink()
            solve = functools.partial(self._keep_best, ranking=ranking, hashes=chosen)
            groups |= solve_groups(bench, solve, judged=self.chains == "cut")
            if self.merges_captions():
                groups |= merge_captions(bench, self.max_captions)
            drop_tables(connection, "near", "centred")
            not_compared = {"not_compared": bench.num_here - nodes.rows.size}
            return StepResult(float(self.distance), groups | not_compared | search.details())

        return ReadyStep((*word_columns(chosen), "pdq_quality", *ranking.columns), run)

    def _keep_best(self, bench: Bench, ranking: Ranking, hashes: Sequence[str]) -> dict[str, int]:
        # All that follows is about the rows in groups: the others are not looked at again.
        bench.connection.execute("CREATE TABLE near AS SELECT * FROM here SEMI JOIN grouped USING (__row)")
        if ranking.by_centre:
            create_centred(bench.connection, WHOLE)
        counts = {}
        if self.chains == "cut":
            counts = judge_groups(bench, ranking, _likeness(hashes, self.distance), self.chains)
            write_verdict(bench, _judged(self.distance))
        else:
            _rank(bench.connection, ranking)
            _write_verdict(bench, hashes, self.distance)
        if self.merges_captions():
            name_members(bench, members_of_groups() if self.chains == "cut" else _MEMBERS)
        elif self.captions != "own":
            take_captions(bench, captions_of_groups() if self.chains == "cut" else _TAKEN)
        return counts


def _nodes(bench: Bench, hashes: Sequence[str], min_quality: int) -> Nodes:
    query = f"SELECT __row, {', '.join(word_columns(hashes))} FROM here WHERE pdq_quality >= {min_quality}"
    tables = read_batches(bench.connection, query)
    return make_nodes(tables, hashes, bench.num_here * len(hashes), bench.folder)


def _create_grouped(connection: duckdb.DuckDBPyConnection, nodes: Nodes, forest: Forest) -> dict[str, int]:
    """Create `grouped`: `__row`, `label` of the rows in groups of several; return what there is to say of these."""
    components = Components(nodes.count)
    components.link(nodes.own_left, nodes.own_right)
    components.link(forest.left, forest.right)
    label = components.labels()[nodes.node]
    del components
    # Counted in blocks, in 32 bits: at a hundred million rows bincount alone would take twice the rows' memory.
    sizes = np.zeros(max(1, nodes.count), np.uint32)
    for start in range(0, label.size, BLOCK_ROWS):
        np.add.at(sizes, label[start : start + BLOCK_ROWS], np.uint32(1))
    shared = sizes > 1
    several = shared[label]
    insert(connection, "grouped", pa.table({"__row": nodes.rows[several], "label": label[several]}))
    return {"groups": int(np.count_nonzero(shared)), "largest_group": max(1, int(sizes.max()))}


def _rank(connection: duckdb.DuckDBPyConnection, ranking: Ranking) -> None:
    """Create `ranked` of the rows in `grouped`: place in the group, its best row, the row whose caption it takes."""
    connection.execute(
        f"""
        CREATE TABLE ranked AS
        WITH here AS (SELECT * FROM near),
        repeated AS (SELECT * FROM grouped),
        {ranking.tables}
        SELECT __row, first_value(__row) OVER best_first AS best_row, row_number() OVER best_first AS place,
            first_value(__row) OVER caption_first AS caption_row, row_number() OVER caption_first AS caption_place
        FROM ordered WINDOW best_first AS (PARTITION BY label ORDER BY {ranking.order}),
            caption_first AS (PARTITION BY label ORDER BY {ranking.caption_order})
        """
    )


def _likeness(hashes: Sequence[str], limit: int) -> Likeness:
    """Return how rows of a group are compared: by the least distance of any hash of one to any of the other."""
    columns = tuple(word_column(name, word) for name in hashes for word in range(WORDS))

    def measure_of(table: pa.Table) -> Callable[[int, int], Measure]:
        # [n, hashes, words], and which of them are there
        read = [table[name].fill_null(0).to_numpy() for name in columns]
        words = np.stack(read, axis=1).astype(np.uint64).reshape(table.num_rows, len(hashes), WORDS)
        there = np.stack([table[name].is_valid().to_numpy() for name in columns[::WORDS]], axis=1)

        def of_group(start: int, stop: int) -> Measure:
            mine, present = words[start:stop], there[start:stop]
            return lambda leader, others: _distances(mine, present, leader, others)

        return of_group

    return Likeness(columns, measure_of, lambda values: values <= limit)


def _distances(words: Words, there: NDArray[np.bool_], leader: int, others: Indices) -> Values:
    best = np.full(others.size, np.inf)
    for number in np.flatnonzero(there[leader]):
        apart = np.bitwise_count(words[others] ^ words[leader, number]).sum(axis=-1, dtype=np.int64)
        best = np.minimum(best, np.where(there[others], apart, np.inf).min(axis=1))
    return best


def _judged(limit: int) -> str:
    return f"""
        SELECT judged.__row, 'near-duplicate' AS reason, value, {limit}::DOUBLE AS threshold, best.uid AS duplicate_of
        FROM judged JOIN here AS best ON best.__row = best_row WHERE judged.__row <> best_row
        """


def _write_verdict(bench: Bench, hashes: Sequence[str], limit: int) -> None:
    distances = ", ".join(
        " + ".join(
            f"bit_count(xor(mine.{word_column(left, word)}, best.{word_column(right, word)}))::INTEGER"
            for word in range(WORDS)
        )
        for left in hashes
        for right in hashes
    )
    write_verdict(
        bench,
        f"""
        WITH measured AS (
            SELECT ranked.__row AS __row, best.uid AS uid, least({distances}) AS distance
            FROM ranked JOIN near AS mine ON mine.__row = ranked.__row JOIN near AS best ON best.__row = ranked.best_row
            WHERE ranked.place > 1)
        SELECT __row, CASE WHEN distance <= {limit} THEN 'near-duplicate' ELSE 'near-duplicate-chain' END
            AS reason, distance::DOUBLE AS value, {limit}::DOUBLE AS threshold, uid AS duplicate_of
        FROM measured
        """,
    )

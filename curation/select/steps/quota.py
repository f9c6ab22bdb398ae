"""The step `quota`: at most so many rows of each value: of a host, a licence, a label, a cluster.

Kept are the best rows of each value by `order`, then uid, input_file, input_row. Rows whose value is NULL are one value
of their own: a row is not free of a quota because nothing is known of it.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

from headrace.curation.select.cluster import ClusterConfig, assign_clusters, cluster_columns
from headrace.curation.select.database import count
from headrace.curation.select.expression import Checker
from headrace.curation.select.rank import Ranking, given_order
from headrace.curation.select.shuffle import solve_by_key
from headrace.curation.select.step import Bench, ReadyStep, Step, StepResult, write_verdict
from headrace.curation.select.steps.top_fraction import exact_count


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota(Step):
    """Of the rows of each value of an expression, or of each cluster, keep at most so many, the best first."""

    step: Literal["quota"] = "quota"
    """The tag of this step."""
    name: str = "quota"
    """Name in the ledger and the funnel."""
    by: str = ""
    """SQL expression whose values have a quota each: `regexp_extract(url, '^https?://([^/:]+)', 1)` is the host. Empty:
    `clusters`."""
    clusters: ClusterConfig | None = None
    """Clusters of embeddings that have a quota each, in place of `by`."""
    most: int | None = None
    """Rows that are kept of each, at most."""
    share: float | None = None
    """In place of `most`: the share of all rows that reach this step, at least one row."""
    order: tuple[str, ...] = ()
    """SQL expressions, each with `asc` or `desc`: the rows to keep come first; nulls and NaN last. Ties: uid,
    input_file, input_row."""

    def __post_init__(self) -> None:
        if bool(self.by.strip()) == (self.clusters is not None):
            raise ValueError("a quota needs either `by` (an SQL expression) or `clusters`")
        if (self.most is None) == (self.share is None):
            raise ValueError("a quota needs either `most` (rows) or `share` (of all rows)")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")

    def needed_packages(self) -> tuple[str, ...]:
        return ("faiss",) if self.clusters is not None else ()

    def prepare(self, checker: Checker) -> ReadyStep:
        where = f"step {self.name!r}"
        by = checker.check(self.by, f"{where}: by") if self.clusters is None else None
        ranking = given_order(checker.check_order(self.order, where), "own")
        columns = cluster_columns(self.clusters, checker, where) if self.clusters is not None else ()

        def run(bench: Bench) -> StepResult:
            most = self.most or max(1, exact_count(self.share or 0, bench.num_here))
            details: dict[str, Any] = {"most": most}
            if self.clusters is not None:
                details |= assign_clusters(bench, self.clusters)
                labels = "SELECT here.__row, cluster AS label FROM here LEFT JOIN assigned USING (__row)"
                details |= _keep_most(bench, labels, ranking, most)
                bench.connection.execute("DROP TABLE assigned")
            else:
                assert by is not None  # one of the two is there
                labels = f"SELECT __row, {by.sql} AS label FROM here"
                solve = functools.partial(_keep_most, labels=labels, ranking=ranking, most=most)
                # What a collation holds for equal has not one hash.
                alone = "collate" in by.sql.lower()
                details |= solve(bench) if alone else solve_by_key(bench, by.sql, solve)
            return StepResult(float(most), details)

        return ReadyStep((*ranking.columns, *(by.columns if by else ()), *columns), run)


def _keep_most(bench: Bench, labels: str, ranking: Ranking, most: int) -> dict[str, int]:
    bench.connection.execute(f"CREATE TABLE repeated AS {labels}")
    write_verdict(bench, _over(ranking.tables, ranking.order, most))
    sizes = _sizes(bench)
    bench.connection.execute("DROP TABLE repeated")
    return sizes


def _over(tables: str, order: str, most: int) -> str:
    return f"""
        WITH {tables.lstrip()},
        placed AS (SELECT __row, row_number() OVER (PARTITION BY label ORDER BY {order}) AS place FROM ordered)
        SELECT __row, 'over-quota' AS reason, place::DOUBLE AS value, {most}::DOUBLE AS threshold,
            NULL::VARCHAR AS duplicate_of
        FROM placed WHERE place > {most}
        """


def _sizes(bench: Bench) -> dict[str, int]:
    """Return how many values there are, and how many rows the most common has."""
    values = count(bench.connection, "SELECT count(*) FROM (SELECT DISTINCT label FROM repeated)")
    sizes = "SELECT coalesce(max(size), 0) FROM (SELECT count(*) AS size FROM repeated GROUP BY label)"
    return {"values": values, "largest": count(bench.connection, sizes)}

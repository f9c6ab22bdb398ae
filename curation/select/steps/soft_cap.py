"""The step `soft_cap`: draw rows by their scores, each time a row is drawn the less often again; keep what was drawn.

Soft Cap Sampling (Shechter, Carmon: Filter Like You Test, arXiv:2503.08805): rounds of draws without replacement with
the probabilities softmax(score), and `penalty` off the scores of the rows drawn. A high score is drawn again and again
there; a dataset holds a row once, so the rows are kept that were drawn at least once, and the summary says how often
rows were drawn. A draw without replacement is the top of score + Gumbel noise, and the noise is a function of seed,
round, uid, input_file and input_row alone: the same rows whatever their order.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import insert, read_batches
from headrace.curation.select.draws import CHUNK_ROWS, Keys, Scores, draw_in_blocks, exponential, mixed_keys
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import Bench, ReadyStep, Step, StepResult, write_verdict
from headrace.curation.select.steps.top_fraction import exact_count

# The paper draws 128 M rows in rounds of 100,000.
ROUNDS = 1280
BLOCKS_ROWS = 100_000
"""From so many rows on the noise is made by blocks of rounds: a look at every row in every round takes seconds, and an
hour where there are a hundred million."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftCap(Step):
    """Draw rows with probabilities softmax(score), with a penalty for each draw; drop what was never drawn."""

    step: Literal["soft_cap"] = "soft_cap"
    """The tag of this step."""
    name: str = "soft_cap"
    """Name in the ledger and the funnel."""
    score: str
    """Column or SQL expression (a number): a logit, so that a row of score s + 1 is drawn e times as often at first.
    `clip_score * 100` for cosines. Null, NaN and infinite scores are never drawn (reason `no-score`)."""
    fraction: float
    """Draws by n, above 0. Rows drawn twice count twice, so fewer rows than this are kept."""
    of: Literal["input", "survivors"] = "survivors"
    """n: `input` counts the rows that were fetched and decoded, `survivors` those that reach this step."""
    penalty: float = 0.15
    """Taken off a row's score each time it is drawn; the paper's for 128 M draws. 0: no cap."""
    round_size: int = 0
    """Draws of one round, in which a row is drawn once at most; 0: a 1280th of all draws, as the paper has it."""
    seed: int = 0
    """Another seed draws other rows."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction < math.inf:
            raise ValueError(f"fraction must be above 0, got {self.fraction}")
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty must be 0 or more, got {self.penalty}")
        if self.round_size < 0:
            raise ValueError(f"round_size must be 0 or more, got {self.round_size}")

    def version(self, num_rows: int) -> int:
        # Where the noise may be made by blocks of rounds, other rows are drawn since 2.
        return 1 if num_rows < BLOCKS_ROWS else 2

    def prepare(self, checker: Checker) -> ReadyStep:
        score = checker.check_number(self.score, f"step {self.name!r}: score")

        def run(bench: Bench) -> StepResult:
            identity = ", ".join(IDENTITY)
            bench.connection.execute(
                f"""
                CREATE TABLE scored AS
                SELECT __row, {identity}, CASE WHEN isfinite(__score) THEN __score END AS score
                FROM (SELECT __row, {identity}, {score.sql}::DOUBLE AS __score FROM here)
                """
            )
            base = bench.num_input if self.of == "input" else bench.num_here
            drawn, details = self._draw(bench, exact_count(self.fraction, base))
            insert(bench.connection, "drawn", pa.table({"__row": drawn}))
            write_verdict(
                bench,
                """
                SELECT __row, CASE WHEN score IS NULL THEN 'no-score' ELSE 'not-drawn' END AS reason, score AS value,
                    NULL::DOUBLE AS threshold, NULL::VARCHAR AS duplicate_of
                FROM scored ANTI JOIN drawn USING (__row)
                """,
            )
            for table in ("scored", "drawn"):
                bench.connection.execute(f"DROP TABLE {table}")
            return StepResult(None, details)

        return ReadyStep((*IDENTITY, *score.columns), run)

    def _draw(self, bench: Bench, draws: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
        order = ", ".join(f"{name} NULLS LAST" for name in IDENTITY)
        texts = " || chr(10) || ".join(f"coalesce({name}::VARCHAR, '')" for name in IDENTITY)
        query = f"""
            SELECT __row, score, md5_number_lower('{self.seed}' || chr(10) || {texts}) AS key
            FROM scored WHERE score IS NOT NULL ORDER BY {order}
            """
        parts = list(read_batches(bench.connection, query))
        rows = np.concatenate([np.zeros(0, np.int64), *(part["__row"].to_numpy() for part in parts)])
        scores = np.concatenate([np.zeros(0), *(part["score"].to_numpy() for part in parts)])
        keys = np.concatenate([np.zeros(0, np.uint64), *(part["key"].to_numpy() for part in parts)]).astype(np.uint64)
        round_size = self.round_size or -(-draws // ROUNDS)
        draw = draw_counts if len(rows) < BLOCKS_ROWS else draw_in_blocks
        times = draw(scores, keys, draws=draws, round_size=round_size, penalty=self.penalty)
        most = np.bincount(times)[1:]
        details = {
            "draws": int(times.sum()),
            "with_score": len(rows),
            "drawn_once": int(most[0]) if most.size else 0,
            "most_draws_of_a_row": int(times.max(initial=0)),
        }
        return rows[times > 0], details


def draw_counts(scores: Scores, keys: Keys, *, draws: int, round_size: int, penalty: float) -> NDArray[np.int64]:
    """Return how often each row is drawn; `keys` are 64 random bits of each, in the order that decides ties."""
    left = scores.copy()
    times = np.zeros(len(scores), np.int64)
    number = 0
    while draws > 0 and len(scores):
        taken = _top(left, keys, number, min(round_size, draws, len(scores)))
        times[taken] += 1
        left[taken] -= penalty
        draws -= len(taken)
        number += 1
    return times


def _top(scores: Scores, keys: Keys, number: int, size: int) -> NDArray[np.int64]:
    """Return the places of the `size` largest of score + noise of this round; of ties, the first."""
    noisy = np.empty(len(scores))
    for start in range(0, len(scores), CHUNK_ROWS):
        some = slice(start, start + CHUNK_ROWS)
        noisy[some] = scores[some] + gumbel(keys[some], number)
    cut = np.partition(noisy, len(noisy) - size)[len(noisy) - size]
    above = np.flatnonzero(noisy > cut)
    return np.concatenate([above, np.flatnonzero(noisy == cut)[: size - len(above)]])


def gumbel(keys: Keys, number: int) -> Scores:
    """Return Gumbel noise of one round for rows with these random bits."""
    noise: Scores = -np.log(exponential(mixed_keys(keys, number + 1)))
    return noise

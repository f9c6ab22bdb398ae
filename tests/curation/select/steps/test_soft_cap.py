"""Draws by softmax of the scores, ever fewer of what was drawn; a function of seed and identity alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.select.draws import Keys, Scores, draw_in_blocks, exponential, mixed_keys
from headrace.curation.select.steps import NearDuplicates, SoftCap, soft_cap
from headrace.curation.select.steps.soft_cap import draw_counts

KEYS = np.random.default_rng(0).integers(0, 2**64, 3, dtype=np.uint64)
DRAWS = pytest.mark.parametrize("draw", [draw_counts, draw_in_blocks])
Draw = Callable[..., NDArray[np.int64]]


@DRAWS
def test_rows_are_drawn_by_the_softmax_of_their_scores(draw: Draw) -> None:
    scores = np.log([0.6, 0.3, 0.1])
    times = draw(scores, KEYS, draws=6000, round_size=1, penalty=0.0)
    assert times.sum() == 6000
    assert np.abs(times / 6000 - [0.6, 0.3, 0.1]).max() < 0.02


@DRAWS
def test_a_penalty_evens_out_what_is_drawn_and_no_row_is_drawn_twice_in_a_round(draw: Draw) -> None:
    scores = np.log([0.9, 0.09, 0.01])
    capped = draw(scores, KEYS, draws=3000, round_size=1, penalty=0.5)
    # In the end all are as likely: each is drawn as often more as its score was higher, by the penalty.
    assert np.abs(np.diff(capped) - np.diff(scores) / 0.5).max() < 12
    assert draw(scores, KEYS, draws=3000, round_size=3, penalty=0.0).tolist() == [1000] * 3
    assert draw(scores, KEYS, draws=5, round_size=100, penalty=0.0).sum() == 5


def noise_of_rounds(keys: Keys, size: int) -> list[Scores]:
    """Return all noise of `size` rounds, every block of them halved."""
    blocks = [(1, exponential(mixed_keys(keys, 1)) / size)]
    while (half := size // 2) >= 1:
        halves = []
        for node, arrival in blocks:
            bits = mixed_keys(keys, node + 1)
            later, second = arrival + exponential(bits) / half, bits % np.uint64(2) == 1
            halves += [(2 * node, np.where(second, later, arrival)), (2 * node + 1, np.where(second, arrival, later))]
        blocks, size = halves, half
    return [-np.log(arrival) for _, arrival in blocks]


@settings(max_examples=40)
@given(data=st.data(), number=st.integers(1, 150), spread=st.sampled_from([0.0, 0.1, 3.0, 60.0]))
def test_what_is_not_looked_at_would_not_have_been_drawn(data: Any, number: int, spread: float) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores, keys = rng.normal(0, spread, number), rng.integers(0, 2**64, number, dtype=np.uint64)
    draws, round_size = data.draw(st.integers(0, 3 * number)), data.draw(st.integers(1, number + 1))
    penalty = data.draw(st.sampled_from([0.0, 0.15, 5.0]))
    found = draw_in_blocks(scores, keys, draws=draws, round_size=round_size, penalty=penalty)
    left, times = scores.copy(), np.zeros(number, np.int64)
    num_rounds = -(-draws // min(round_size, number))
    for noise in noise_of_rounds(keys, 1 << max(0, num_rounds - 1).bit_length())[:num_rounds]:
        taken = np.argsort(-(left + noise), kind="stable")[: min(round_size, draws)]
        times[taken] += 1
        left[taken] -= penalty
        draws -= len(taken)
    assert found.tolist() == times.tolist()


def test_many_rows_are_drawn_by_blocks_and_a_ledger_of_before_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path, [[make_row(number, clip_score=number / 40) for number in range(80)]])
    # The version 2 of near-duplicates is older than the one of draws: a job may have had the one without the other.
    monkeypatch.setattr(NearDuplicates, "version", lambda *_: 2)
    steps = [NearDuplicates(min_quality=101), SoftCap(score="clip_score", fraction=0.5, round_size=4)]
    before = run(job, steps)
    monkeypatch.setattr(soft_cap, "BLOCKS_ROWS", 10)
    assert run(job, steps) == before
    shutil.rmtree(job.ledgers)
    after = run(job, steps)
    assert after.steps[-1].details["draws"] == before.steps[-1].details["draws"] == 40
    assert after.ledger_sha256 != before.ledger_sha256


def test_the_same_rows_are_drawn_whatever_their_order_and_others_by_another_seed(tmp_path: Path) -> None:
    rows = [make_row(number, clip_score=[0.1, 0.5, None, float("inf")][number % 4]) for number in range(80)]
    step = SoftCap(score="clip_score * 4", fraction=0.5)
    one = write_job(tmp_path / "one", [rows])
    summary = run(one, [step]).steps[-1]
    assert summary.details["draws"] == 40
    assert summary.dropped["no-score"] == 40
    assert summary.rows_out + summary.dropped["not-drawn"] == summary.details["with_score"] == 40
    other = write_job(tmp_path / "other", [rows[::-1][:30], rows[::-1][30:]])
    run(other, [step])
    kept = [{row["uid"] for row in ledger(job) if row["kept"]} for job in (one, other)]
    assert kept[0] == kept[1]
    run(one, [SoftCap(score="clip_score * 4", fraction=0.5, seed=1)])
    assert {row["uid"] for row in ledger(one) if row["kept"]} != kept[0]


def test_settings_that_cannot_be_are_refused() -> None:
    for refused, message in (
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"fraction": 1.0, "penalty": -1.0}, "penalty must be 0 or more"),
        ({"fraction": 1.0, "round_size": -1}, "round_size must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftCap(score="clip_score", **refused)

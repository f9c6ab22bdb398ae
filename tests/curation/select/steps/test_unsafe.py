"""Rows without a known score are dropped, wherever the step stands."""

import math
from pathlib import Path

import pytest
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.select.steps import ExactDuplicates, SelectStep, TopFraction, Unsafe


@pytest.mark.parametrize("before", [[], [ExactDuplicates()], [TopFraction(score="clip_score", fraction=1.0)]])
@pytest.mark.parametrize("highest", [0.0, 0.4, 0.5])
def test_a_score_that_is_no_number_never_passes(tmp_path: Path, before: list[SelectStep], highest: float) -> None:
    scores = [0.0, math.nan, highest, None]
    job = write_job(tmp_path, [[make_row(number, unsafe_image_score=score) for number, score in enumerate(scores)]])
    run(job, [*before, Unsafe()])
    found = {row["input_row"]: row["reason"] for row in ledger(job)}
    assert found == {0: None, 1: "no-image-score", 2: "unsafe-image" if highest == 0.5 else None, 3: "no-image-score"}


@pytest.mark.parametrize("before", [[], [ExactDuplicates()]])
def test_a_caption_whose_score_is_no_number_never_passes(tmp_path: Path, before: list[SelectStep]) -> None:
    rows = [
        make_row(0),
        make_row(1, unsafe_text_score=math.nan),
        make_row(2, unsafe_text_score=math.nan, caption=None),
    ]
    job = write_job(tmp_path, [rows])
    run(job, [*before, Unsafe()])
    assert [row["reason"] for row in ledger(job)] == [None, "no-text-score", None]

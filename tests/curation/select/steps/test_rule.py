"""No answer is never a yes: a rule drops the rows of which it knows nothing."""

import math
from pathlib import Path

import pytest
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.select.steps import ExactDuplicates, Rule, SelectStep


@pytest.mark.parametrize("before", [[], [ExactDuplicates()]])
@pytest.mark.parametrize("keep", ["clip_score >= 0.3", "NOT clip_score < 0.3", "clip_score * 2 > 0.5"])
def test_a_score_that_is_no_number_passes_no_rule(tmp_path: Path, before: list[SelectStep], keep: str) -> None:
    scores = [0.5, math.nan, None, 0.1]
    job = write_job(tmp_path, [[make_row(number, clip_score=score) for number, score in enumerate(scores)]])
    run(job, [*before, Rule(name="score", keep=keep, value="clip_score")])
    found = {row["input_row"]: (row["reason"], row["value"]) for row in ledger(job)}
    assert [found[row][0] for row in range(4)] == [None, "null", "null", "false"]
    assert found[1][1] is None

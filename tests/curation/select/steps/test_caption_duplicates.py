"""Captions that share most of their letters: judged exactly, found as often as is said, whatever the buckets hold."""

from pathlib import Path
from typing import Any

import datasketch
import numpy as np
import pytest
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.annotate.annotators.caption_minhash import NUM_PERMUTATIONS, shingles, signature
from headrace.curation.select import buckets
from headrace.curation.select.database import Limits
from headrace.curation.select.steps import CaptionDuplicates
from headrace.curation.select.steps.caption_duplicates import choose_bands, jaccard

SENTENCE = "an old red boat lies on the quiet shore of a small lake near the northern village in summer"


def captions(number: int) -> list[str]:
    """Return sentences of which many differ in one word."""
    rng = np.random.default_rng(0)
    bases = [" ".join(rng.permutation(SENTENCE.split())) for _ in range(number // 8)]
    found = []
    for place in range(number):
        words = bases[place % len(bases)].split()
        for _ in range(int(rng.integers(0, 4))):
            words[rng.integers(len(words))] = f"word{rng.integers(1000)}"
        found.append(" ".join(words))
    return found


@pytest.mark.parametrize("max_bucket", [2000, 2])
def test_every_row_goes_for_one_whose_caption_is_alike_and_those_kept_are_not(tmp_path: Path, max_bucket: int) -> None:
    texts = captions(160)
    job = write_job(tmp_path, [[make_row(number, caption=text, clip_score=0.5) for number, text in enumerate(texts)]])
    # The share of pairs that meet is over 99 %: at this number of pairs, all of them.
    step = run(job, [CaptionDuplicates(threshold=0.7)], limits=Limits(threads=1, max_bucket=max_bucket)).steps[-1]
    sets = [frozenset(shingles(text)) for text in texts]
    found = ledger(job)
    kept = [row["input_row"] for row in found if row["kept"]]
    assert 20 <= len(kept) < 120
    assert all(jaccard(sets[a], sets[b]) < 0.7 for a in kept for b in kept if a < b)
    for row in found:
        if not row["kept"]:
            best = int(row["duplicate_of"], 16)
            assert best in kept
            assert row["value"] == jaccard(sets[row["input_row"]], sets[best]) >= row["threshold"] == 0.7
            assert row["reason"] == ("same-caption" if row["value"] == 1 else "near-caption")
    assert step.details["found_at_threshold"] > 0.99


def test_a_crowd_that_is_linked_is_not_compared_in_every_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = "of the long and winding road to the village by the lake in the early summer morning"
    rows = [make_row(number, caption=f"photo number {number} {end}") for number in range(300)]
    leaders = []
    inside = buckets._stars

    def counted(start: int, size: int, near: Any, most: int) -> Any:
        for pairs in inside(start, size, near, most):
            leaders.append(start)
            yield pairs

    monkeypatch.setattr(buckets, "_stars", counted)
    limits = Limits(threads=1, max_bucket=50)
    step = run(write_job(tmp_path, [rows]), [CaptionDuplicates()], limits=limits).steps[-1]
    assert (step.rows_out, step.details["largest_bucket"] > 100) == (1, True)
    assert len(leaders) < 3 * step.details["bands"]


def test_one_case_and_one_space_are_one_caption_and_rows_without_one_stay(tmp_path: Path) -> None:
    texts = ["A Red  Boat", "a red boat", "\uff21 red boat", None, " ", "a red boat", "another thing"]
    rows = [make_row(number, caption=text) for number, text in enumerate(texts)]
    job = write_job(tmp_path, [rows[:3], rows[3:]])
    step = run(job, [CaptionDuplicates(most=2)]).steps[-1]
    assert step.dropped == {"same-caption": 2}
    assert [row["input_row"] for row in ledger(job) if row["kept"]] == [0, 1, 3, 4, 6]
    assert (step.details["not_compared"], step.details["largest_group"]) == (2, 4)


def test_bands_meet_as_often_as_they_say_and_as_datasketch_cuts_them() -> None:
    bands = choose_bands(0.8)
    assert bands.recall(0.8) > 0.99
    assert bands.recall(0.3) < 0.05
    lsh = datasketch.MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(bands.count, bands.numbers))
    texts = captions(60)
    numbers = [np.frombuffer(signature(text) or b"", "<u4") for text in texts]
    for place, values in enumerate(numbers):
        lsh.insert(place, datasketch.MinHash(NUM_PERMUTATIONS, hashvalues=values, scheme="affine32"))
    cut = [values[: bands.count * bands.numbers].reshape(bands.count, -1) for values in numbers]
    for place, values in enumerate(numbers):
        met = {other for other in range(60) if (cut[place] == cut[other]).all(axis=1).any()}
        assert met == set(lsh.query(datasketch.MinHash(NUM_PERMUTATIONS, hashvalues=values, scheme="affine32")))


def test_a_threshold_out_of_range_is_refused() -> None:
    for settings, message in (({"threshold": 0.1}, r"similarity of 0\.2 to 1"), ({"most": 0}, "most must be at least")):
        with pytest.raises(ValueError, match=message):
            CaptionDuplicates(**settings)

"""Images alike by their embeddings: every pair where few, a measured share where many; the same on any machine."""

import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from select_jobs import ledger, make_row, run, write_job

from headrace.curation.job import Job
from headrace.curation.select.cluster import ClusterConfig
from headrace.curation.select.database import Limits
from headrace.curation.select.steps import EmbeddingDuplicates, Semantic
from headrace.curation.select.steps.semantic import drop_like_earlier
from headrace.curation.select.vectors import pairs_over

pytest.importorskip("faiss")

CARRIED = [("vector", pa.list_(pa.float32()))]


def near_vectors(rows: int, groups: int, spread: float = 0.3) -> NDArray[np.float32]:
    """Return vectors around some centres, cosines to those of their group about 0.9."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(groups, 32))
    return (centres[np.arange(rows) % groups] + spread * rng.normal(size=(rows, 32))).astype(np.float32)


def vector_job(folder: Path, vectors: Any) -> Job:
    rows = [make_row(number, vector=None if v is None else list(map(float, v))) for number, v in enumerate(vectors)]
    return write_job(folder, [rows[: len(rows) // 2], rows[len(rows) // 2 :]], carried=CARRIED)


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("chains", ["cut", "join"])
def test_groups_are_those_of_brute_force_and_cut_ones_hold_no_row_far_from_the_one_kept(
    tmp_path: Path, chains: Any
) -> None:
    vectors = near_vectors(150, 30)
    true = cosines(vectors)
    job = vector_job(tmp_path, vectors)
    step = run(job, [EmbeddingDuplicates(embedding="vector", threshold=0.9, chains=chains, order=("width asc",))])
    found = ledger(job)
    kept = [row["input_row"] for row in found if row["kept"]]
    for row in found:
        if not row["kept"]:
            best = int(row["duplicate_of"], 16)
            assert row["value"] == pytest.approx(true[row["input_row"], best], abs=2e-6)
            assert (row["reason"] == "near-embedding") == (row["value"] >= 0.9)
            assert chains == "join" or row["value"] >= 0.9
    assert all(true[a, b] < 0.9 for a in kept for b in kept if a < b)
    if chains == "cut":
        # The first of each group that no row before it took, by hand.
        mine: list[int] = []
        for row in range(150):
            if not any(true[row, other] >= 0.9 for other in mine):
                mine.append(row)
        assert kept == mine
    assert step.steps[-1].details["every_pair_found"]


def test_above_exact_rows_the_share_of_pairs_found_is_measured(tmp_path: Path) -> None:
    vectors = near_vectors(600, 60, spread=0.45)
    job = vector_job(tmp_path, vectors)
    every = run(job, [EmbeddingDuplicates(embedding="vector", threshold=0.85, chains="join")]).steps[-1]
    seen = {}
    for lists in (1, 3):
        step = EmbeddingDuplicates(
            embedding="vector", threshold=0.85, chains="join", exact_rows=0, clusters=100, lists=lists
        )
        details = run(job, [step]).steps[-1].details
        assert not details["every_pair_found"]
        assert details["recall_pairs"] == 2 * int((np.triu(cosines(vectors), 1) >= 0.85).sum())
        seen[lists] = details["recall"]
    assert seen[1] < seen[3] <= 1
    assert seen[3] > 0.9
    assert every.details["every_pair_found"]


def test_a_row_without_a_direction_is_left_alone_and_another_model_is_refused(tmp_path: Path) -> None:
    vectors = [[1, 0], [1, 0], None, [0, 0], [math.nan, 1], [math.inf, 1]]
    step = run(vector_job(tmp_path / "job", vectors), [EmbeddingDuplicates(embedding="vector", threshold=0.9)])
    assert (step.kept, step.steps[-1].details["not_compared"]) == (5, 4)
    with pytest.raises(ValueError, match="differ in length: 2 to 3 numbers"):
        run(vector_job(tmp_path / "two", [[1, 0], [1, 0, 0]]), [EmbeddingDuplicates(embedding="vector", threshold=0.9)])
    with pytest.raises(ValueError, match="must be a list of floats a row, but it is of type VARCHAR"):
        run(vector_job(tmp_path / "text", [[1]]), [EmbeddingDuplicates(embedding="caption", threshold=0.9)])


def test_threads_and_memory_do_not_change_which_rows_are_alike(tmp_path: Path) -> None:
    job = vector_job(tmp_path, near_vectors(800, 90))
    steps = [
        EmbeddingDuplicates(embedding="vector", threshold=0.92, exact_rows=0, clusters=20, lists=1),
        Semantic(clusters=ClusterConfig(embedding="vector", number=9), eps=0.2),
    ]
    sums = set()
    for limits in (Limits(threads=1), Limits(threads=3, memory_bytes=64 << 20)):
        shutil.rmtree(job.ledgers, ignore_errors=True)
        sums.add(run(job, steps, limits=limits).ledger_sha256)
    assert len(sums) == 1


def test_a_crowd_of_equal_pictures_takes_no_memory_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.full((600, 256), 1 / 16, np.float32)
    monkeypatch.setattr("headrace.curation.select.vectors.MAX_PAIRS", 10_000)
    monkeypatch.setattr("headrace.curation.select.vectors.MAX_NUMBERS", 1 << 18)
    tracemalloc.start()
    try:
        assert sum(len(left) for left, _, _ in pairs_over(vectors, vectors, 0.9)) == 600**2
        assert tracemalloc.get_traced_memory()[1] < 20e6  # of every pair at once the numbers alone are 737 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("block", [256, 7])
def test_semantic_drops_what_the_papers_triangle_drops(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("headrace.curation.select.steps.semantic.BLOCK_ROWS", block)
    vectors = near_vectors(90, 12)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # SemDeDup, algorithm 1: of the matrix above its diagonal, the largest value of each column.
    largest = np.triu(cosines(vectors), 1).max(axis=0)
    best, value = drop_like_earlier(vectors, 0.9, chains=True)
    assert (best >= 0).tolist() == (largest >= 0.9).tolist()
    assert np.allclose(value[best >= 0], largest[best >= 0], atol=2e-6)
    assert (best[best[best >= 0]] == -1).all()
    best, _ = drop_like_earlier(vectors, 0.9, chains=False)
    kept: list[int] = []
    for row in range(90):
        if not any(cosines(vectors)[row, other] >= 0.9 for other in kept):
            kept.append(row)
    assert np.flatnonzero(best < 0).tolist() == kept


@pytest.mark.parametrize(("keep", "kept"), [("hard", [2]), ("easy", [1])])
def test_semantic_keeps_the_hard_or_the_easy_rows_of_a_cluster(tmp_path: Path, keep: Any, kept: list[int]) -> None:
    # Of three directions the one in the middle is nearest to the centroid, the third farthest.
    job = vector_job(tmp_path, [[1, 0], [1, 0.1], [1, 0.4]])
    run(job, [Semantic(clusters=ClusterConfig(embedding="vector", number=1), eps=0.2, keep=keep)])
    assert [row["input_row"] for row in ledger(job) if row["kept"]] == kept

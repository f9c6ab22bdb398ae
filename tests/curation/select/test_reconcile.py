"""The ledger against a slow reference, on random tables and random recipes."""

import hashlib
import math
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import select_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from select_jobs import flip_bits, hash_bytes, ledger, make_row, run, write_job

from headrace.curation.ledger import latest_decision
from headrace.curation.select.cluster import ClusterConfig
from headrace.curation.select.database import Limits
from headrace.curation.select.place import Placement
from headrace.curation.select.steps import (
    CaptionDuplicates,
    EmbeddingDuplicates,
    ExactDuplicates,
    NearDuplicates,
    Quota,
    Rule,
    SelectStep,
    Semantic,
    SoftCap,
    TopFraction,
    Unsafe,
)

LIKE_CAPTIONS = [
    "one photograph of it 1",
    "one photograph of it 2",
    "One  photograph of it 1",
    "my photograph of it 12",
]
# Cosines of neighbours 0.95, 0.89, 0.89, 0.95; then a null, a direction that none is, and a number that is none.
EMBEDDINGS = [[1.0, 0.0], [3.0, 1.0], [1.0, 1.0], [1.0, 3.0], [0.0, 2.0], None, [0.0, 0.0], [math.nan, 1.0]]
SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, math.nan, None, -1.0, math.inf])
ORDERS = st.lists(
    st.sampled_from(["image_width * image_height desc", "clip_score desc", "clip_score asc", "image_width asc"]),
    max_size=2,
    unique=True,
).map(tuple)
RULES = st.builds(
    lambda keep, value, threshold: Rule(name=f"rule {keep}", keep=keep, value=value, threshold=threshold),
    st.sampled_from(
        [text for text in select_reference.EXPRESSIONS if any(sign in text for sign in ("=", ">", " is "))]
    ),
    st.sampled_from(["", "image_width"]),
    st.sampled_from([None, 0.1, 60.0]),
)
CHAINS = st.sampled_from(["cut", "join"])
CAPTIONS = st.sampled_from(["own", "fill", "longest", "best_score"])
STEPS = st.lists(
    st.one_of(
        RULES,
        st.builds(Unsafe, image_threshold=st.sampled_from([None, 0.5]), text_threshold=st.just(0.75)),
        st.builds(ExactDuplicates, order=ORDERS, captions=CAPTIONS),
        st.builds(
            NearDuplicates,
            distance=st.sampled_from([0, 5, 20, 31]),
            hashes=st.sampled_from([("pdq",), ("pdq", "pdq_trimmed")]),
            order=st.one_of(st.just(()), ORDERS),
            captions=CAPTIONS,
            chains=CHAINS,
        ),
        st.builds(
            TopFraction,
            score=st.sampled_from(["clip_score", "clip_score * 2", "image_width"]),
            fraction=st.sampled_from([0.05, 0.15, 0.3, 0.5, 0.85, 1.0]),
            of=st.sampled_from(["input", "survivors"]),
        ),
        st.builds(
            EmbeddingDuplicates,
            threshold=st.sampled_from([0.8, 0.9, 1.0]),
            chains=CHAINS,
            order=st.one_of(st.just(()), ORDERS),
            captions=CAPTIONS,
        ),
        st.builds(
            CaptionDuplicates,
            threshold=st.sampled_from([0.5, 0.7, 1.0]),
            most=st.sampled_from([1, 2]),
            chains=CHAINS,
            order=ORDERS,
        ),
        st.builds(
            Semantic,
            clusters=st.just(ClusterConfig(embedding="copy_embedding", number=1)),
            eps=st.sampled_from([0.0, 0.1, 0.2]),
            order=st.just(("clip_score desc", "image_width asc")),
            compared_with=st.sampled_from(["kept", "all"]),
        ),
        st.builds(
            SoftCap,
            score=st.sampled_from(["clip_score", "clip_score * 2", "image_width"]),
            fraction=st.sampled_from([0.3, 1.0, 2.5]),
            of=st.sampled_from(["input", "survivors"]),
            penalty=st.sampled_from([0.0, 0.15, 5.0]),
            round_size=st.sampled_from([1, 4, 100]),
            seed=st.integers(0, 3),
        ),
        st.builds(Quota, by=st.sampled_from(["image_width", "clip_score"]), most=st.integers(1, 3), order=ORDERS),
        st.builds(Quota, by=st.just("aspect <= 2.0"), share=st.sampled_from([0.001, 0.1, 1.0]), order=ORDERS),
    ),
    max_size=5,
    unique_by=lambda step: step.name,
)


@st.composite
def raw_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return raw rows in which every kind of collision is likely."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    seeds = hash_bytes(rng, 3)
    rows = []
    for number in range(draw(st.integers(0, 24))):
        base = seeds[draw(st.integers(0, 2))]
        near = flip_bits(base, rng.choice(256, draw(st.sampled_from([0, 4, 9, 14, 40])), replace=False).tolist())
        row = make_row(
            number,
            uid=f"{draw(st.integers(0, 15)):032x}",
            sha256=f"{draw(st.integers(0, 12)):064x}",
            caption=draw(st.sampled_from([None, None, "a 1", "b 2", *LIKE_CAPTIONS])),
            copy_embedding=draw(st.sampled_from(EMBEDDINGS)),
            content_width=draw(st.sampled_from([40, 95, 99, 100])),
            border=draw(st.sampled_from([0.0, 0.25])),
            colourfulness=draw(st.sampled_from([0.0, 30.0])),
            sharpness=draw(st.sampled_from([0.0, 0.5, 1.0])),
            encoded_quality=draw(st.sampled_from([75, 95, 100])),
            picture_quality=draw(st.sampled_from([30, 72, 75])),
            earlier_quality=draw(st.sampled_from([70, 75, 90, 100])),
            moved_since=draw(st.sampled_from([0.0, 0.0625, 0.125])),
            fine_detail=draw(st.sampled_from([-6.0, -3.0])),
            file_bytes=draw(st.sampled_from([4000, 5000])),
            image_width=draw(st.sampled_from([40, 60, 100])),
            image_height=draw(st.sampled_from([40, 60, 100])),
            aspect=draw(st.sampled_from([None, 1.0, 3.0])),
            clip_score=draw(SCORES),
            unsafe_image_score=draw(st.sampled_from([0.0, 0.0, 0.5, None, math.nan])),
            unsafe_text_score=draw(st.sampled_from([0.0, 0.0, 0.75, None])),
            pdq=near,
            pdq_trimmed=draw(st.sampled_from([near, base])),
            pdq_quality=draw(st.sampled_from([100, 100, 49])),
        )
        kind = draw(st.sampled_from(["fine"] * 6 + ["failed", "retried", "damaged"]))
        if kind == "damaged":
            row |= {"decode_error": "truncated: at byte 7", "pdq": None, "pdq_trimmed": None, "pdq_quality": None}
            row |= {"image_width": None, "image_height": None, "clip_score": None, "unsafe_image_score": None}
            row |= {"content_width": None, "content_height": None, "border": None, "sharpness": None}
        if kind in ("failed", "retried"):
            rows.append(row | {"status": "failed_to_download", "error_class": draw(st.sampled_from(["dns", "empty"]))})
        if kind != "failed":
            rows.append(row)
    return rows


def cut(rows: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    """Return shards of `size` rows; at least one shard."""
    return [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]


def verdict_of(row: Any) -> tuple[Any, ...]:
    """Return a ledger row's verdict."""
    return (row["step"], row["reason"], row["value"], row["threshold"], row["duplicate_of"])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(rows=raw_rows(), steps=STEPS, size=st.integers(1, 9), shuffle=st.randoms(use_true_random=False))
def test_ledger_equals_the_slow_reference(
    rows: list[dict[str, Any]], steps: list[SelectStep], size: int, shuffle: random.Random
) -> None:
    expected = select_reference.select(rows, steps)
    placement = Placement(seed=3, shuffle_window=2, samples_per_shard=4)
    with tempfile.TemporaryDirectory() as folder:
        job = write_job(Path(folder) / "one", cut(rows, size))
        summary = run(job, steps, placement=placement)
        found = ledger(job)
        assert [(row["raw_shard"], row["key"]) for row in found] == sorted((r["raw_shard"], r["key"]) for r in found)
        verdicts = {select_reference.key_of(row): row for row in found}
        assert len(verdicts) == len(found) == len(expected) == summary.rows
        for key, verdict in expected.items():
            want = (verdict.step, verdict.reason, verdict.value, verdict.threshold, verdict.duplicate_of)
            assert verdict_of(verdicts[key]) == want
            assert verdicts[key]["kept"] == (verdict.step is None)
            assert verdicts[key]["caption_of"] == verdict.caption_of
        check_funnel(summary, found)
        check_places(found, placement)

        shuffled = rows[:]
        shuffle.shuffle(shuffled)
        other = write_job(Path(folder) / "two", cut(shuffled, size))
        run(other, steps, placement=placement)
        for row in ledger(other):
            # Of several failed attempts, or several successes, the first raw row speaks for the input row.
            assert verdict_of(row) == verdict_of(verdicts[select_reference.key_of(row)])


def check_funnel(summary: Any, found: list[Any]) -> None:
    """Rows in = rows dropped + rows out, step by step, and the ledger says the same."""
    rows = len(found)
    for step in summary.steps:
        assert step.rows_in == rows
        assert step.rows_out == rows - sum(step.dropped.values())
        assert step.dropped == Counter(row["reason"] for row in found if row["step"] == step.name)
        rows = step.rows_out
    assert summary.kept == rows == sum(row["kept"] for row in found)


def check_places(found: list[Any], placement: Placement) -> None:
    """Kept rows fill output shards without a gap; dropped rows have no place."""
    kept = [row for row in found if row["kept"]]
    places = sorted(int(row["out_shard"]) * placement.samples_per_shard + row["out_index"] for row in kept)
    assert places == list(range(len(kept)))
    assert all(row["out_shard"] is None and row["out_index"] is None for row in found if not row["kept"])


def test_threads_and_memory_do_not_change_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    hashes = hash_bytes(rng, 50)
    rows = [
        make_row(
            number,
            clip_score=float(rng.integers(0, 20)) / 20,
            sha256=f"{rng.integers(0, 800):064x}",
            pdq=flip_bits(hashes[number % 50], rng.choice(256, 12, replace=False).tolist()),
            pdq_trimmed=hashes[number % 50] if number % 3 else flip_bits(hashes[0], [number % 256]),
        )
        for number in range(1000)
    ]
    steps = [ExactDuplicates(), NearDuplicates(distance=8), TopFraction(score="clip_score", fraction=0.3)]
    job = write_job(tmp_path, cut(rows, 100))
    digests = set()
    for limits in (Limits(threads=1), Limits(threads=4), Limits(threads=2, memory_bytes=64 << 20)):
        shutil.rmtree(job.ledgers, ignore_errors=True)
        summary = run(job, steps, limits=limits)
        table = Path(latest_decision(job).ledger.table)
        digests.add((summary.digest, hashlib.sha256(table.read_bytes()).digest()))
    assert len(digests) == 1

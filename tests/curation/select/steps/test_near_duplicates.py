"""Near-duplicates against brute force: groups, chains, hot buckets, who is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from select_jobs import flip_bits, hash_bytes, ledger, make_row, run, write_job

from headrace.curation.select import hamming
from headrace.curation.select.database import Limits
from headrace.curation.select.hamming import (
    FAR,
    Components,
    NearestReference,
    choose_bands,
    distance_of,
    hash_words,
    linked_pairs,
)
from headrace.curation.select.steps import NearDuplicates


def planted(rng: np.random.Generator, singles: int, pairs: int, bits: Sequence[int]) -> list[bytes]:
    """Return random hashes, and copies of the first of them at each number of bits in turn."""
    hashes = hash_bytes(rng, singles)
    copies = [
        flip_bits(hashes[number], rng.choice(256, bits[number % len(bits)], replace=False).tolist())
        for number in range(pairs)
    ]
    return hashes + copies


def brute_labels(words: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Return component labels by comparing every pair."""
    label = np.arange(len(words))
    for row in range(len(words)):
        for other in np.flatnonzero(distance_of(words[:row], words[row]) <= distance):
            label[label == label[row]] = label[other]
    return label


def same_groups(left: NDArray[np.int64], right: NDArray[np.int64]) -> bool:
    """Return whether two labellings make the same groups."""
    pairs = len(set(zip(left.tolist(), right.tolist(), strict=True)))
    return pairs == len(set(left.tolist())) == len(set(right.tolist()))


def near_job(folder: Path, hashes: Sequence[bytes], **columns: Sequence[Any]) -> Any:
    rows = [
        make_row(number, pdq=item, pdq_trimmed=item, **{name: values[number] for name, values in columns.items()})
        for number, item in enumerate(hashes)
    ]
    return write_job(folder, [rows[start : start + 500] for start in range(0, len(rows), 500)])


def test_planted_pairs_are_found_as_by_brute_force(tmp_path: Path) -> None:
    hashes = planted(np.random.default_rng(1), 2000, 600, range(2, 24))
    job = near_job(tmp_path, hashes)
    summary = run(job, [NearDuplicates(distance=20)])
    expected = brute_labels(hash_words(b"".join(hashes)), 20)
    found = ledger(job)
    label = np.array([int(row["duplicate_of"] or row["uid"], 16) for row in found])
    assert same_groups(label, expected)
    details = summary.steps[-1].details
    assert details["every_pair_found"]
    assert details["groups"] == sum(np.bincount(expected) > 1)
    assert summary.steps[-1].dropped == {"near-duplicate": len(hashes) - len(set(expected.tolist()))}
    for row in found:
        if not row["kept"]:
            apart = distance_of(*(hash_words(hashes[int(uid, 16)]) for uid in (row["uid"], row["duplicate_of"])))
            assert (row["value"], row["threshold"]) == (apart[0], 20.0)


def test_sixteen_bands_find_nearly_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "MAX_RANDOM_PAIRS", 1600)
    hashes = planted(np.random.default_rng(2), 2000, 1000, [8, 15, 20])
    summary = run(near_job(tmp_path, hashes), [NearDuplicates(distance=20)])
    assert summary.steps[-1].details["bands"] == 16
    assert not summary.steps[-1].details["every_pair_found"]
    # reference/curation.md 5.3: 0.999 at 15 bits, 0.992 at 20.
    assert 985 <= summary.steps[-1].dropped["near-duplicate"] <= 1000


def test_a_chain_is_one_group_and_says_so(tmp_path: Path) -> None:
    first = bytes(32)
    hashes = [flip_bits(first, range(15 * link)) for link in range(5)]
    job = near_job(tmp_path, hashes, clip_score=[0.1, 0.2, 0.9, 0.3, 0.4])
    summary = run(job, [NearDuplicates(order=("clip_score desc",))])
    found = [(row["reason"], row["value"]) for row in ledger(job)]
    near, chain = "near-duplicate", "near-duplicate-chain"
    assert found == [(chain, 30.0), (near, 15.0), (None, None), (near, 15.0), (chain, 30.0)]
    assert summary.steps[-1].details["largest_group"] == 5


def test_the_best_by_the_stated_order_is_kept(tmp_path: Path) -> None:
    nan = float("nan")
    scores = [0.5, nan, None, 0.9, 0.9]
    widths = [50, 100, 100, 100, 100]
    job = near_job(tmp_path, [bytes(32)] * 5, clip_score=scores, image_width=widths)

    def kept(*order: str) -> list[int]:
        run(job, [NearDuplicates(order=order)])
        return [row["input_row"] for row in ledger(job) if row["kept"]]

    assert kept("clip_score desc") == [3]
    assert kept("clip_score desc", "uid desc") == [4]
    assert kept("image_width", "clip_score desc") == [0]
    assert kept("image_width desc", "clip_score asc") == [3]
    assert kept() == [3]  # copies that measure alike: the score decides


def test_low_quality_and_unhashed_rows_are_left_alone(tmp_path: Path) -> None:
    rows = [make_row(number, pdq_quality=quality) for number, quality in enumerate([49, 49, 50, 50])]
    rows.append(make_row(4, pdq=None, pdq_trimmed=None, pdq_quality=None))
    job = write_job(tmp_path, [rows])
    summary = run(job, [NearDuplicates(min_quality=50)])
    assert [row["kept"] for row in ledger(job)] == [True, True, True, False, True]
    assert summary.steps[-1].details["not_compared"] == 3


def test_a_border_is_seen_through_by_the_trimmed_hash(tmp_path: Path) -> None:
    plain, padded, other = hash_bytes(np.random.default_rng(3), 3)
    rows = [make_row(0, pdq=plain, pdq_trimmed=plain), make_row(1, pdq=padded, pdq_trimmed=plain)]
    rows.append(make_row(2, pdq=other, pdq_trimmed=padded))
    job = write_job(tmp_path, [rows])
    assert run(job, [NearDuplicates(hashes=("pdq",))]).kept == 3
    assert run(job, [NearDuplicates(hashes=("pdq_trimmed",))]).kept == 2
    # Any hash of one row with any of the other.
    assert run(job, [NearDuplicates()]).kept == 1


def test_a_hot_bucket_is_linked_by_stars(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    centres = [bytes(2) + item[2:] for item in hash_bytes(rng, 3)]
    hashes = centres + [
        flip_bits(centres[number % 3], (16 + rng.choice(240, 8, replace=False)).tolist()) for number in range(600)
    ]
    job = near_job(tmp_path, hashes)
    summary = run(job, [NearDuplicates(distance=20)], limits=Limits(threads=1, max_bucket=20))
    assert summary.kept == 3
    assert not summary.steps[-1].details["every_pair_found"]
    assert summary.steps[-1].details["largest_bucket"] >= 600


def test_a_hot_bucket_alone_finds_every_cluster() -> None:
    rng = np.random.default_rng(6)
    centres = hash_bytes(rng, 5)
    hashes = centres + [flip_bits(centres[n % 5], rng.choice(256, 6, replace=False).tolist()) for n in range(200)]
    words = hash_words(b"".join(hashes))
    components = Components(len(hashes))
    for left, right in linked_pairs(np.zeros(len(hashes), np.uint64), words, distance=12, max_bucket=10):
        components.link(left, right)
    assert same_groups(components.labels(), np.array([*range(5), *(n % 5 for n in range(200))]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 31), st.integers(2, 40))
def test_linked_pairs_are_true_pairs_of_the_bucket(seed: int, distance: int, max_bucket: int) -> None:
    rng = np.random.default_rng(seed)
    words = hash_words(b"".join(planted(rng, 20, 20, range(0, 40))))
    keys = np.sort(rng.integers(0, 3, len(words)).astype(np.uint64))
    found = [
        (int(a), int(b))
        for left, right in linked_pairs(keys, words, distance=distance, max_bucket=max_bucket)
        for a, b in zip(left, right, strict=True)
        if a != b
    ]
    true = {
        (a, b)
        for b in range(len(words))
        for a in range(b)
        if keys[a] == keys[b] and distance_of(words[a], words[b]) <= distance
    }
    assert {(min(pair), max(pair)) for pair in found} <= true
    if max_bucket >= len(words):
        assert len(found) == len(true) == len(set(found))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_components_are_those_of_a_graph_search(size: int, data: st.DataObject) -> None:
    edges = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=60))
    components = Components(size)
    for start in range(0, len(edges), 7):
        left, right = (np.array(side) for side in zip(*edges[start : start + 7], strict=True))
        components.link(left, right)
    label = list(range(size))
    for _ in range(size):
        for left, right in edges:
            label[left] = label[right] = min(label[left], label[right])
    assert components.labels().tolist() == label


@pytest.mark.parametrize("distance", [0, 8, 31])
def test_nearest_reference_is_exact(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    rng = np.random.default_rng(distance)
    references = hash_words(b"".join(hash_bytes(rng, 300) * 2))
    queries = hash_words(b"".join(planted(rng, 50, 0, [0])))
    for row in range(40):
        bits = rng.choice(256, row, replace=False)
        queries[row] = hash_words(flip_bits(references[row % 5].tobytes(), bits.tolist()))
    apart = np.stack([distance_of(references, query) for query in queries])
    expected = np.where(apart.min(axis=1) <= distance, apart.min(axis=1), FAR)
    for limit in (0, 1e9):  # by tables, by the plain product
        monkeypatch.setattr(hamming, "MAX_PRODUCT", limit)
        found, index = NearestReference(references, distance).search(queries)
        assert found.tolist() == expected.tolist()
        assert index.tolist() == np.where(expected <= distance, apart.argmin(axis=1), -1).tolist()


def test_every_band_of_the_tables_is_needed_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "MAX_PRODUCT", 0)
    reference = hash_bytes(np.random.default_rng(7), 1)[0]
    # One bit in this band, two in each other one: only this band's table can lead to the reference.
    queries = [
        flip_bits(reference, [16 * other + bit for other in range(16) for bit in range(1 if other == band else 2)])
        for band in range(16)
    ]
    found, _ = NearestReference(hash_words(reference), 31).search(hash_words(b"".join(queries)))
    assert found.tolist() == [31] * 16


def test_bands_are_exact_while_that_is_affordable() -> None:
    assert choose_bands(1000, 20).count == 21
    assert choose_bands(10**6, 20).count == 16
    assert choose_bands(10**6, 10).exact
    assert choose_bands(10**8, 20).count <= 12
    for count in (8, 10, 12, 16, 21, 32):
        bands = hamming.Bands(count, True)
        assert [bands.bits(band)[1] for band in range(count)] == [
            bands.bits(band + 1)[0] for band in range(count - 1)
        ] + [256]

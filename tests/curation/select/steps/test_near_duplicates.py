"""Near-duplicates against brute force: groups, chains, hot buckets, who is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from select_jobs import ANNOTATIONS, draw, flip_bits, hash_bytes, ledger, make_row, run, write_job

from headrace.config import config_to_dict
from headrace.curation.annotate.annotator import AnnotationBatch
from headrace.curation.annotate.annotators.hash_variants import HashVariants, HashVariantsConfig, crop, turn
from headrace.curation.annotate.annotators.hashes import image_hashes
from headrace.curation.job import Job
from headrace.curation.select import hamming
from headrace.curation.select.database import Limits
from headrace.curation.select.hamming import (
    FAR,
    Components,
    NearestReference,
    distance_of,
    hash_words,
    linked_pairs,
)
from headrace.curation.select.near import tables
from headrace.curation.select.rank import SINCE_VERSION_2
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


def test_where_not_every_pair_is_affordable_nearly_all_are_found_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_RANDOM_PAIRS", 1600)
    hashes = planted(np.random.default_rng(2), 2000, 1000, [8, 15, 20])
    summary = run(near_job(tmp_path, hashes), [NearDuplicates(distance=20)])
    details = summary.steps[-1].details
    assert not details["every_pair_found"]
    assert 0.998 <= details["expected_recall"]["20"] < 1
    assert 990 <= summary.steps[-1].dropped["near-duplicate"] <= 1000


def test_a_chain_is_one_group_and_says_so(tmp_path: Path) -> None:
    first = bytes(32)
    hashes = [flip_bits(first, range(15 * link)) for link in range(5)]
    job = near_job(tmp_path, hashes, clip_score=[0.1, 0.2, 0.9, 0.3, 0.4])
    summary = run(job, [NearDuplicates(order=("clip_score desc",))])
    found = [(row["reason"], row["value"]) for row in ledger(job)]
    near, chain = "near-duplicate", "near-duplicate-chain"
    assert found == [(chain, 30.0), (near, 15.0), (None, None), (near, 15.0), (chain, 30.0)]
    assert summary.steps[-1].details["largest_group"] == 5


def test_a_chain_that_is_cut_drops_only_what_is_near_to_the_row_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chain = hash_bytes(rng, 1)
    for _ in range(30):
        chain.append(flip_bits(chain[-1], rng.choice(256, 9, replace=False).tolist()))
    job = near_job(tmp_path, [*chain, *hash_bytes(rng, 3)], caption=[None, *["a caption"] * 33])
    order = ("input_row asc",)
    joined = run(job, [NearDuplicates(order=order)]).steps[-1]
    assert joined.dropped == {"near-duplicate": 2, "near-duplicate-chain": 28}
    step = run(job, [NearDuplicates(order=order, chains="cut")]).steps[-1]
    assert step.dropped == {"near-duplicate": step.rows_in - step.rows_out}
    assert (step.details["groups"], step.details["largest_group"]) == (1, 31)
    found = ledger(job)
    kept = [row["input_row"] for row in found if row["kept"]]
    words = hash_words(b"".join(chain))
    for row in found:
        if not row["kept"]:
            best = int(row["duplicate_of"], 16)
            assert best in kept
            assert row["value"] == int(distance_of(words[[row["input_row"]]], words[[best]])[0]) <= 20
    assert all(distance_of(words[[a]], words[[b]])[0] > 20 for a in kept for b in kept if a < b < 31)
    # Each that is kept takes a caption of its own group, the first one's neighbour's.
    assert (found[0]["caption_of"], step.details["captions_taken"]) == (found[1]["uid"], 1)


def test_mirror_images_crops_and_turns_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    pictures = [cv2.GaussianBlur(draw(number), (0, 0), 4) for number in range(8)]
    copies = [
        *(np.ascontiguousarray(pixels[:, ::-1]) for pixels in pictures),
        *(crop(pixels, 0.95, down=0.1, right=0.9) for pixels in pictures),
        *(turn(pixels, 3) for pixels in pictures),
    ]
    annotator = HashVariants(HashVariantsConfig(crops=True))
    rows = []
    for number, pixels in enumerate([*pictures, *copies]):
        hashes = image_hashes(pixels)
        batch = AnnotationBatch(
            keys=[""], captions=[None], data=[None], sha256=[None], headers=[None], images=[pixels], errors=[None]
        )
        more = {name: values[0] for name, values in annotator.annotate(batch).items()}
        plain = {"pdq": hashes.pdq, "pdq_trimmed": hashes.pdq_trimmed, "pdq_quality": hashes.quality}
        rows.append(make_row(number, **plain, **more))
    carried = [(field.name, field.type) for field in annotator.schema()]
    job = write_job(tmp_path, [rows], carried=carried)
    found = {}
    for name, settings_ in (("plain", {}), ("flips", {"flips": True}), ("cuts", {"flips": True, "crops": True})):
        run(job, [NearDuplicates(distance=31, order=("input_row asc",), chains="cut", **settings_)])
        dropped = [row for row in ledger(job) if not row["kept"]]
        assert all(int(row["duplicate_of"], 16) == row["input_row"] % 8 for row in dropped)
        found[name] = [sum(row["input_row"] // 8 == kind for row in dropped) for kind in (1, 2, 3)]
    assert found["plain"] == [0, found["plain"][1], 0]
    assert found["flips"][0] == 8
    assert found["cuts"][0] == 8
    assert min(found["cuts"]) >= 7
    assert found["plain"][1] <= 3


def test_settings_that_came_later_change_no_older_digest() -> None:
    decided = NearDuplicates().decides_by()
    assert set(decided) == {"step", "name", "distance", "min_quality", "hashes", "order", "captions"}
    for settings_ in ({"chains": "cut"}, {"flips": True}, {"crops": True}):
        assert NearDuplicates(**settings_).decides_by() != decided


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


# The best row of each comes last, and has what would lose but for one value: fewer bytes and a lower last quality.
BEST_LAST = {
    "the others show that they were saved from it": [
        {"encoded_quality": 95, "earlier_quality": 75, "moved_since": 0.1},
        {"encoded_quality": 75, "picture_quality": 75, "file_bytes": 100},
    ],
    "it was saved less often since": [
        {"encoded_quality": 99, "earlier_quality": 80, "moved_since": 0.2, "file_bytes": 9000},
        {"encoded_quality": 96, "earlier_quality": 80, "moved_since": 0.1, "file_bytes": 100},
    ],
    "the larger one is blown up": [
        {"content_width": 125, "fine_detail": -5.0, "file_bytes": 9000},
        {"encoded_quality": 80, "picture_quality": 80},
    ],
    "the other was cut": [{"content_width": 97}, {"encoded_quality": 75, "picture_quality": 75}],
}


@pytest.mark.parametrize("case", BEST_LAST)
def test_the_best_copy_is_kept_whatever_the_last_saving_says(tmp_path: Path, case: str) -> None:
    rows = [make_row(number, **values) for number, values in enumerate(BEST_LAST[case])]
    run(write_job(tmp_path, [rows]), [NearDuplicates()])
    assert [row["kept"] for row in ledger(Job(str(tmp_path)))] == [False, True]


def test_what_most_of_a_group_have_not_is_no_original(tmp_path: Path) -> None:
    marked = flip_bits(bytes(32), range(8))
    rows = [make_row(0, pdq=marked, encoded_quality=95, picture_quality=95)]
    rows += [make_row(number, encoded_quality=80, picture_quality=80) for number in (1, 2)]
    run(write_job(tmp_path, [rows]), [NearDuplicates()])
    assert [row["kept"] for row in ledger(Job(str(tmp_path)))] == [False, True, False]


def test_a_job_annotated_before_decides_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [field for field in ANNOTATIONS["quality"] if field.name not in SINCE_VERSION_2]
    monkeypatch.setitem(ANNOTATIONS, "quality", pa.schema(columns))
    rows = [make_row(number, **values) for number, values in enumerate(BEST_LAST["the other was cut"])]
    run(write_job(tmp_path, [rows]), [NearDuplicates()])
    assert [row["kept"] for row in ledger(Job(str(tmp_path)))] == [True, False]


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


def test_the_hash_of_the_centre_counts_where_a_job_has_it(tmp_path: Path) -> None:
    hashes = hash_bytes(np.random.default_rng(5), 6)
    # Three different hashes a row: the last row's whole picture is the first's centre, its centre the second's whole.
    trios = [(0, 1, 2), (3, 3, 4), (2, 5, 3)]
    names = ("pdq", "pdq_trimmed", "pdq_centre")
    rows = [
        make_row(number, **{name: hashes[at] for name, at in zip(names, trio, strict=True)})
        for number, trio in enumerate(trios)
    ]
    without = [{name: value for name, value in row.items() if name != "pdq_centre"} for row in rows]
    assert run(write_job(tmp_path / "today", [rows]), [NearDuplicates()]).kept == 1
    assert run(write_job(tmp_path / "older", [without]), [NearDuplicates()]).kept == 3


def test_leaving_the_centre_out_is_another_decision_and_an_older_one_keeps_its_digest() -> None:
    default, named = NearDuplicates().decides_by(), NearDuplicates(hashes=("pdq", "pdq_trimmed")).decides_by()
    assert default != named
    # As every ledger before the third hash has it, and before chains could be cut, variants compared, captions merged.
    before = config_to_dict(NearDuplicates(hashes=("pdq", "pdq_trimmed")))
    assert default == {
        name: value for name, value in before.items() if name not in ("chains", "flips", "crops", "max_captions")
    }


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


@pytest.mark.parametrize("distance", [0, 8, 16, 23, 31])
def test_nearest_reference_is_exact(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    rng = np.random.default_rng(distance)
    references = hash_words(b"".join(hash_bytes(rng, 300) * 2))
    queries = hash_words(b"".join(planted(rng, 50, 0, [0])))
    for row in range(40):
        bits = rng.choice(256, row, replace=False)
        queries[row] = hash_words(flip_bits(references[row % 5].tobytes(), bits.tolist()))
    apart = np.stack([distance_of(references, query) for query in queries])
    expected = np.where(apart.min(axis=1) <= distance, apart.min(axis=1), FAR)
    # By tables with the neighbours of references, of queries, by the plain product.
    for limit, entered in ((0, 1000), (0, 10), (1e9, 1000)):
        monkeypatch.setattr(hamming, "MAX_PRODUCT", limit)
        monkeypatch.setattr(hamming, "ENTERED_REFERENCES", entered)
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


def test_a_job_goes_on_with_the_ledger_of_an_older_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = planted(np.random.default_rng(3), 20, 5, [8])
    older = run(near_job(tmp_path / "older", hashes), [NearDuplicates()])
    monkeypatch.setattr(tables, "MAX_RANDOM_PAIRS", 0)  # as if the job were too large for every pair
    assert run(Job(str(tmp_path / "older")), [NearDuplicates()]) == older
    newer = run(near_job(tmp_path / "newer", hashes), [NearDuplicates()])
    assert newer.inputs != older.inputs
    assert newer.decided_by == older.decided_by
    assert newer.ledger_sha256 == older.ledger_sha256

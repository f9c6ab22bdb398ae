"""Promises of the search for near pairs: what is found, at what odds, and that nobody's number of workers shows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.curation.select.hamming import WORDS, Components, Words, distance_of
from headrace.curation.select.kept import Kept
from headrace.curation.select.load import word_column
from headrace.curation.select.near import nodes as near_nodes
from headrace.curation.select.near import pairs as near_pairs
from headrace.curation.select.near import search, tables
from headrace.curation.select.near.nodes import make_nodes
from headrace.curation.select.near.pairs import pack, spanning_forest
from headrace.curation.select.near.search import find_near
from headrace.curation.select.near.tables import Tables, choose_tables
from headrace.shards.units import INLINE, EngineConfig


def flipped(rng: np.random.Generator, words: Words, bits: NDArray[np.int64]) -> Words:
    """Return each hash with so many of its bits changed."""
    changed = words.copy()
    order = np.argsort(rng.random((len(words), 256)), axis=1)
    for place in range(int(bits.max(initial=0))):
        rows = np.flatnonzero(bits > place)
        bit = order[rows, place]
        changed[rows, bit // 64] ^= np.uint64(1) << (bit % 64).astype(np.uint64)
    return changed


def planted(seed: int, singles: int, bits: NDArray[np.int64]) -> Words:
    """Return random hashes, then one near each of the first of them."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 64, (singles, WORDS), np.uint64)
    return np.unique(np.concatenate([words, flipped(rng, words[: bits.size], bits)]), axis=0)


def brute_pairs(words: Words, distance: int) -> NDArray[np.uint64]:
    """Return every pair within `distance`, sorted."""
    left, right = np.triu_indices(len(words), 1)
    near = distance_of(words[left], words[right]) <= distance
    return np.sort(pack(left[near], right[near]))


def labels_of(num_nodes: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> list[int]:
    components = Components(num_nodes)
    components.link(left, right)
    return [int(label) for label in components.labels()]


def written(folder: Path, words: Words) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words.tofile(folder / "hashes.bin")
    return folder / "hashes.bin"


@pytest.mark.parametrize("distance", [0, 8, 20, 31])
def test_an_exact_search_finds_the_groups_of_brute_force_at_every_distance(tmp_path: Path, distance: int) -> None:
    words = planted(distance, 700, np.arange(500) % 34)
    found = find_near(written(tmp_path, words), len(words), distance, max_bucket=2000, engine=INLINE)
    assert found.every_pair_found
    assert found.details()["expected_recall"] == {str(bits): 1.0 for bits in {8, 16, 20, distance} if bits <= distance}
    left, right = (side.astype(np.int64) for side in (found.forest.left, found.forest.right))
    assert found.forest.distance.tolist() == distance_of(words[left], words[right]).tolist()
    for within in range(distance + 1):
        every = near_pairs.unpack(brute_pairs(words, within))
        assert labels_of(len(words), *found.forest.within(within)) == labels_of(len(words), *every)


@pytest.mark.parametrize(("distance", "asked"), [(16, 20), (20, 20), (20, 31), (31, 31)])
def test_as_many_pairs_are_found_as_the_summary_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: int, asked: int
) -> None:
    # As for ten million hashes: the odds of a pair do not depend on the others.
    chosen = choose_tables(10_000_000, asked)
    monkeypatch.setattr(search, "choose_tables", lambda *_: chosen)
    words = planted(distance, 20_000, np.full(20_000, distance))
    found = find_near(written(tmp_path, words), len(words), asked, max_bucket=2000, engine=INLINE)
    expected = chosen.recall(distance)
    assert abs(found.forest.left.size / 20_000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4
    assert not found.every_pair_found


@pytest.mark.parametrize("num_hashes", [10**3, 10**6, 6 * 10**6, 10**8, 10**9])
@pytest.mark.parametrize("distance", [12, 20, 31])
def test_pairs_of_up_to_twenty_bits_are_found_at_every_size(num_hashes: int, distance: int) -> None:
    chosen = choose_tables(num_hashes, distance)
    assert chosen.recall(min(distance, 20)) >= 0.998
    assert chosen.exact(distance) == tables.is_exact_affordable(num_hashes, distance)
    masks = chosen.masks()
    assert masks.shape == (chosen.count, WORDS)
    for start in range(0, chosen.count, chosen.parts):  # the tables of a round share no bit
        bits = np.bitwise_count(masks[start : start + chosen.parts]).sum()
        assert bits == np.bitwise_count(np.bitwise_or.reduce(masks[start : start + chosen.parts])).sum()
    # A table has about one accidental neighbour a node, so the work grows with the number of hashes alone.
    assert chosen.exact(distance) or num_hashes / 2**chosen.bits < 4


def test_recall_is_counted_exactly() -> None:
    one_bit = Tables(1, 1, 1)  # one sampled bit: a pair at d agrees in it in 256 - d of 256 cases
    assert one_bit.recall(20) == pytest.approx(236 / 256)
    assert Tables(4, 4, 64).recall(3) == 1.0  # four whole words, three bits: one word is always the same
    assert Tables(4, 4, 64).recall(4) < 1.0
    assert not Tables(4, 4, 64).exact(4)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(0, 120))
def test_the_forest_has_the_components_of_all_pairs_and_only_one_is_right(seed: int, size: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    words = np.unique(rng.integers(0, 4, (size, WORDS), np.uint64), axis=0)
    pairs = np.unique(pack(*rng.integers(0, len(words), (2, count))))
    forest = spanning_forest(pairs, words)
    assert forest.left.size == len(words) - len(set(labels_of(len(words), *near_pairs.unpack(pairs))))
    apart = near_pairs.distances(pairs, words)
    for within in range(9):
        every = near_pairs.unpack(pairs[apart <= within])
        assert labels_of(len(words), *forest.within(within)) == labels_of(len(words), *every)
    # Reduced piece by piece, it is the same.
    half = spanning_forest(pairs[::2], words)
    again = np.unique(np.r_[pack(half.left.astype(np.int64), half.right.astype(np.int64)), pairs[1::2]])
    for name, column in spanning_forest(again, words).columns().items():
        assert column.tolist() == forest.columns()[name].tolist()


def test_workers_parts_and_reductions_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = planted(5, 3000, np.arange(2000) % 30)
    monkeypatch.setattr(tables, "MAX_RANDOM_PAIRS", 0)

    def found(name: str, engine: EngineConfig) -> list[list[int]]:
        path = written(tmp_path / name, words)
        forest = find_near(path, len(words), 24, max_bucket=2000, engine=engine).forest
        assert sorted(file.name for file in path.parent.iterdir()) == ["hashes.bin"]
        return [column.tolist() for column in forest.columns().values()]

    whole = found("inline", INLINE)
    monkeypatch.setattr(search, "INLINE_NODES", 0)
    assert found("two", EngineConfig(workers=2)) == whole
    monkeypatch.setattr(search, "MAX_UNIT_NODES", 700)
    monkeypatch.setattr(search, "SORTED_NODES", 50)
    monkeypatch.setattr(near_pairs, "WAITING_PAIRS", 10)
    monkeypatch.setattr(near_pairs, "MOST_PAIRS", 20)
    assert found("parts", INLINE) == whole


def test_a_search_is_kept_and_not_made_twice_and_damage_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = planted(6, 2000, np.arange(500) % 20)
    path, kept = written(tmp_path, words), Kept(str(tmp_path / "kept"))
    monkeypatch.setattr(search, "KEPT_NODES", 0)

    def find(distance: int = 20) -> search.Search:
        return find_near(path, len(words), distance, max_bucket=2000, engine=INLINE, kept=kept)

    first = find()
    monkeypatch.setattr(search, "search_table", None)
    again = find()
    assert again.details() == first.details()
    assert [column.tolist() for column in again.forest.columns().values()] == [
        column.tolist() for column in first.forest.columns().values()
    ]
    with pytest.raises(TypeError):
        find(19)  # another search
    monkeypatch.undo()
    monkeypatch.setattr(search, "KEPT_NODES", 0)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert find().details() == first.details()
    assert "is damaged" in caplog.text
    for distance in range(2, 16):
        find(distance)
    assert len(list((tmp_path / "kept").iterdir())) == 8


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0, 2]))
def test_nodes_are_the_different_hashes_and_every_row_has_its_own(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, bits: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few values: many rows share a hash, or its first word alone.
    words = rng.integers(0, 3, (2, size, WORDS), np.uint64) << np.uint64(62)
    there = rng.random((2, size)) < 0.8
    columns = {"__row": np.arange(size) * 7}
    for number, name in enumerate(("a", "b")):
        for word in range(WORDS):
            columns[word_column(name, word)] = pa.array(words[number, :, word], pa.uint64(), mask=~there[number])
    table = pa.table(columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_nodes, "PART_ENTRIES", 1 if not bits else 2 * size / 2**bits)
        pieces = [table.slice(0, size // 2), table.slice(size // 2)]
        found = make_nodes(pieces, ["a", "b"], 2 * size if bits else 1, tmp_path_factory.mktemp("nodes"))
    hashes = search.open_hashes(found.path, found.count)
    expected = {tuple(words[number, row]) for number in range(2) for row in range(size) if there[number, row]}
    assert {tuple(row) for row in hashes} == expected
    assert found.count == len(expected)
    assert sorted(found.rows) == [7 * row for row in range(size) if there[:, row].any()]
    for row, node in zip(found.rows // 7, found.node, strict=True):
        assert any(there[number, row] and tuple(words[number, row]) == tuple(hashes[node]) for number in range(2))
    linked = labels_of(found.count, found.own_left.astype(np.int64), found.own_right.astype(np.int64))
    number_of = {tuple(row): number for number, row in enumerate(hashes)}
    pairs = [
        [number_of[tuple(words[number, row])] for number in range(2)] for row in range(size) if there[:, row].all()
    ]
    assert linked == labels_of(found.count, *np.array(pairs, np.int64).reshape(-1, 2).T)

"""The different hashes of many rows, numbered as nodes, in a file; and which row has which.

Entries (row, hash) are spread over files by bits of the hash, so that one part at a time is sorted in memory.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.hamming import WORDS, Indices, Words
from headrace.curation.select.load import word_column
from headrace.curation.select.near.search import mixed_bits

PART_ENTRIES = 1 << 22
"""Entries of a part, about: 40 bytes each, three times while they are sorted."""
MOST_PARTS = 512
SEVERAL = np.uint64(1 << 63)
"""Set in the number of a row that has several different hashes."""
_ALL_BITS = ((1 << 64) - 1,) * WORDS

Entries = NDArray[np.uint64]
"""[n, 5]: a row, and the four words of one of its hashes."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Different hashes and the rows that have them."""

    path: Path
    """The hashes, [n, 4] uint64."""
    count: int
    rows: NDArray[np.int64]
    node: NDArray[np.uint32]
    """Each row once, with one of its nodes."""
    own_left: NDArray[np.uint32]
    own_right: NDArray[np.uint32]
    """Links between the different hashes of one row."""


def make_nodes(tables: Iterable[pa.Table], names: Sequence[str], most: int, folder: Path) -> Nodes:
    """Number the hashes of the columns `names` of tables with `__row` and the words of each; a null is no hash.

    `most` bounds the number of entries. Writes `hashes.bin` into `folder`.
    """
    bits = math.ceil(math.log2(min(MOST_PARTS, max(1, most / PART_ENTRIES))))
    parts: list[list[Entries]] = [[]]
    files = [folder / f"entries-{part:03d}.bin" for part in range(1 << bits)] if bits else []
    for file in files:
        file.write_bytes(b"")
    for table in tables:
        for entries in _entries(table, names):
            if bits:
                _spread(entries, files, bits)
            else:
                parts[0].append(entries)
    path = folder / "hashes.bin"
    count, rows, nodes = 0, [], []
    with path.open("wb") as out:
        for part in range(1 << bits):
            entries = np.fromfile(files[part], np.uint64).reshape(-1, 1 + WORDS) if bits else _joined(parts[0])
            if bits:
                files[part].unlink()
            entries = _by_hash(entries)
            words = entries[:, 1:]
            first = np.r_[True, (words[1:] != words[:-1]).any(axis=1)] if len(words) else np.zeros(0, bool)
            np.ascontiguousarray(words[first]).tofile(out)
            rows.append(np.ascontiguousarray(entries[:, 0]))
            nodes.append((np.cumsum(first) + (count - 1)).astype(np.uint32))
            count += int(first.sum())
    # At a hundred million rows each of these is hundreds of megabytes: none is held twice for longer than it takes.
    all_rows = np.concatenate(rows)
    rows.clear()
    all_nodes = np.concatenate(nodes)
    nodes.clear()
    return _with_own_links(path, count, all_rows, all_nodes)


def _entries(table: pa.Table, names: Sequence[str]) -> Iterable[Entries]:
    """Yield the entries of each column in turn, without hashes that the row has in an earlier one."""
    rows = table["__row"].to_numpy().astype(np.uint64)
    found: list[tuple[Words, NDArray[np.bool_]]] = []
    for name in names:
        columns = [table[word_column(name, word)] for word in range(WORDS)]
        there = np.array(columns[0].is_valid(), bool)
        words = np.stack([column.fill_null(0).to_numpy() for column in columns], axis=1)
        for earlier, was_there in found:
            there &= ~(was_there & (earlier == words).all(axis=1))
        found.append((words, there))
    several = np.sum([there for _, there in found], axis=0) > 1
    rows[several] |= SEVERAL
    for words, there in found:
        yield np.concatenate([rows[there, None], words[there]], axis=1)


def _joined(pieces: Sequence[Entries]) -> Entries:
    return np.concatenate([np.zeros((0, 1 + WORDS), np.uint64), *pieces])


def _spread(entries: Entries, files: Sequence[Path], bits: int) -> None:
    part = (mixed_bits(entries[:, 1:], _ALL_BITS) >> np.uint64(64 - bits)).astype(np.uint16)
    order = np.argsort(part, kind="stable")
    entries, stops = entries.take(order, axis=0), np.cumsum(np.bincount(part, minlength=len(files)))
    for file, start, stop in zip(files, [0, *stops], stops, strict=False):
        if stop > start:
            with file.open("ab") as out:
                entries[start:stop].tofile(out)


def _by_hash(entries: Entries) -> Entries:
    """Sort entries by their words. Few hashes share their first word, so one sort of that does nearly all."""
    order = np.argsort(entries[:, 1])
    first = entries[:, 1][order]
    same = first[1:] == first[:-1]
    tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same]) if first.size else np.zeros(0, np.int64)
    some = entries.take(order[tied], axis=0)
    order[tied] = order[tied][np.lexsort([some[:, column] for column in (0, *range(WORDS, 0, -1))])]
    return entries.take(order, axis=0)


def _with_own_links(path: Path, count: int, rows: NDArray[np.uint64], nodes: NDArray[np.uint32]) -> Nodes:
    several = rows >= SEVERAL
    if not several.any():
        none = np.zeros(0, np.uint32)
        return Nodes(path, count, rows.view(np.int64), nodes, none, none)
    own_rows, own_nodes = rows[several] ^ SEVERAL, nodes[several]
    order = np.lexsort([own_nodes, own_rows])
    own_rows, own_nodes = own_rows[order], own_nodes[order]
    first = np.r_[True, own_rows[1:] != own_rows[:-1]] if own_rows.size else np.zeros(0, bool)
    later: Indices = np.flatnonzero(~first)
    return Nodes(
        path,
        count,
        np.concatenate([rows[~several], own_rows[first]]).view(np.int64),
        np.concatenate([nodes[~several], own_nodes[first]]),
        own_nodes[later - 1],
        own_nodes[later],
    )

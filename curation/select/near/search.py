"""Search for the near pairs of many hashes: one unit of work a table (or a part of one), merged to a forest.

A unit reads the hashes in order, mixes the sampled bits of each into a key, sorts (key, node) packed in one number and
compares neighbours of equal keys. Equal bits always give equal keys; other bits seldom do, which costs a comparison. A
unit holds 8 bytes a node of its part, and hashes a block at a time.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import atomic, files
from headrace.curation.ledger import digest_of
from headrace.curation.select.hamming import WORDS, Words, largest_run, linked_pairs
from headrace.curation.select.kept import Kept
from headrace.curation.select.near.pairs import MAX_NODES, Forest, Gathered, Packed, pack, spanning_forest
from headrace.curation.select.near.tables import Tables, choose_tables
from headrace.shards.heartbeat import beat
from headrace.shards.units import INLINE, EngineConfig, run_units

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever the same hashes would give another forest."""
KEPT_NODES = 100_000
"""Below this the search takes less than a second, and is not worth a file."""
MAX_UNIT_NODES = 1 << 26
"""Nodes of a part of a table: 512 MiB."""
INLINE_NODES = 1_000_000
"""Below this, starting worker processes takes longer than the search."""
READ_NODES = 1 << 15
SORTED_NODES = 1 << 16
CROWD = 32
"""Where not every pair is looked for anyway, larger buckets are solved by stars: a crowd of copies is one quickly."""


@dataclass(frozen=True, slots=True)
class Search:
    """How near pairs were looked for, and what was found."""

    forest: Forest
    tables: Tables
    distance: int
    largest_bucket: int
    every_pair_found: bool

    def details(self) -> dict[str, object]:
        """Return what the summary says of the search."""
        asked = sorted({distance for distance in (8, 16, 20, self.distance) if distance <= self.distance})
        return {
            "tables": self.tables.count,
            "largest_bucket": self.largest_bucket,
            "every_pair_found": self.every_pair_found,
            # Each joins two groups: a smaller distance drops as many rows less as it has links less.
            "links_within": {str(bits): self.forest.within(bits)[0].size for bits in asked},
            # Rounded down: 1 means that no table misses one. In buckets linked as stars a pair may be missed even so.
            "expected_recall": {str(bits): math.floor(self.tables.recall(bits) * 1e4) / 1e4 for bits in asked},
        }


@dataclass(frozen=True, slots=True)
class TableUnit:
    """One part of one table."""

    name: str
    hashes: str
    num_nodes: int
    mask: tuple[int, ...]
    part: int
    parts_bits: int
    """The part of the table whose keys start with these bits, so many of them."""
    distance: int
    max_bucket: int
    crowd: int
    out: str


def find_near(
    hashes: Path, num_nodes: int, distance: int, *, max_bucket: int, engine: EngineConfig, kept: Kept | None = None
) -> Search:
    """Search a file of different hashes ([n, 4] uint64, sorted in any order) for pairs within `distance`.

    Works in the file's folder. The result is the same for every engine; it is taken from `kept`, or put there, where
    the search is long.
    """
    if num_nodes > MAX_NODES:
        raise ValueError(f"near pairs are searched among at most {MAX_NODES} different hashes, got {num_nodes}")
    tables = choose_tables(num_nodes, distance)
    if kept is None or num_nodes < KEPT_NODES:
        return _search(hashes, num_nodes, tables, distance, max_bucket, engine)
    parts = {"version": VERSION, "hashes": files.sha256_of(str(hashes)), "distance": distance, "crowd": CROWD}
    digest = digest_of(parts | {"tables": asdict(tables), "max_bucket": max_bucket})
    found = kept.find("near", digest)
    if found is not None:
        table, facts = found
        sides = (table[name].to_numpy() for name in ("left", "right", "distance"))
        return Search(Forest(*sides), tables, distance, **facts)
    search = _search(hashes, num_nodes, tables, distance, max_bucket, engine)
    facts = {"largest_bucket": search.largest_bucket, "every_pair_found": search.every_pair_found}
    kept.put("near", digest, pa.table(search.forest.columns()), facts)
    return search


def _search(
    hashes: Path, num_nodes: int, tables: Tables, distance: int, max_bucket: int, engine: EngineConfig
) -> Search:
    exact = tables.exact(distance)
    crowd = max_bucket if exact else min(max_bucket, CROWD)
    parts_bits = max(0, math.ceil(math.log2(max(1, num_nodes) / MAX_UNIT_NODES)))
    units = [
        TableUnit(
            name=f"near pairs, table {table + 1} of {tables.count}, part {part}",
            hashes=str(hashes),
            num_nodes=num_nodes,
            mask=tuple(mask),
            part=part,
            parts_bits=parts_bits,
            distance=distance,
            max_bucket=max_bucket,
            crowd=crowd,
            out=str(hashes.parent / f"pairs-{table:03d}-{part:03d}.npy"),
        )
        for table, mask in enumerate(tables.masks().tolist())
        for part in range(1 << parts_bits)
    ]
    words = open_hashes(hashes, num_nodes)
    gathered = Gathered(words)

    def merge(number: int, largest: int) -> None:  # noqa: ARG001
        out = Path(units[number].out)
        gathered.add(np.load(out))
        out.unlink()

    log.info("near pairs: %d hashes, %d tables of %d bits, exact: %s", num_nodes, tables.count, tables.bits, exact)
    buckets = run_units(search_table, units, INLINE if num_nodes < INLINE_NODES else engine, on_result=merge)
    largest = max(buckets, default=0)
    forest = spanning_forest(gathered.settle(), words)
    return Search(forest, tables, distance, largest, exact and largest <= max_bucket)


def open_hashes(path: Path, num_nodes: int) -> Words:
    """Return a file of hashes, [n, 4], without reading it."""
    if not num_nodes:
        return np.zeros((0, WORDS), np.uint64)
    return np.memmap(path, np.uint64, "r", shape=(num_nodes, WORDS))


def search_table(unit: TableUnit) -> int:
    """Write the pairs of one part of a table; return the size of its largest bucket."""
    words = open_hashes(Path(unit.hashes), unit.num_nodes)
    gathered = Gathered(words)
    largest = 0
    node_bits = max(1, (unit.num_nodes - 1).bit_length())
    entries = _sorted_entries(words, unit, node_bits)
    shift, nodes_mask = np.uint64(node_bits), np.uint64((1 << node_bits) - 1)
    for block in _blocks(entries, shift):
        keys = block >> shift
        same = keys[1:] == keys[:-1]
        # Who shares its key with nobody is not looked up.
        shared = np.r_[same, False] | np.r_[False, same]
        keys, nodes = keys[shared], (block[shared] & nodes_mask).astype(np.int64)
        largest = max(largest, largest_run(keys))
        pairs = linked_pairs(
            keys, words.take(nodes, axis=0), distance=unit.distance, max_bucket=unit.crowd, max_leaders=unit.max_bucket
        )
        for left, right in pairs:
            gathered.add(pack(nodes[left], nodes[right]))
        beat(rows=block.size)
    with atomic.atomic_file(unit.out) as path, path.open("wb") as file:
        np.save(file, gathered.settle())
    return largest


def _sorted_entries(words: Words, unit: TableUnit, node_bits: int) -> Packed:
    """Return (key, node) of the part, packed and sorted."""
    key_bits = 64 - node_bits
    pieces, size = [], 0
    whole = np.empty(unit.num_nodes if not unit.parts_bits else 0, np.uint64)
    for start in range(0, unit.num_nodes, READ_NODES):
        block = words[start : start + READ_NODES]
        keys = mixed_bits(block, unit.mask) >> np.uint64(node_bits)
        keys <<= np.uint64(node_bits)
        keys |= np.arange(start, start + len(block), dtype=np.uint64)
        if unit.parts_bits:
            mine = keys[keys >> np.uint64(64 - unit.parts_bits) == unit.part]
            pieces.append(mine)
        else:
            whole[size : size + keys.size] = keys
            size += keys.size
    assert key_bits >= unit.parts_bits
    entries = np.concatenate(pieces) if unit.parts_bits else whole
    del pieces
    entries.sort()
    return entries


def mixed_bits(words: Words, mask: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return a 64-bit number of the masked bits of each hash; its upper bits are the well mixed ones.

    Multiply-shift hashing (Dietzfelbinger et al., 1997), one odd factor a word.
    """
    mixed = np.zeros(len(words), np.uint64)
    for word, (bits, factor) in enumerate(zip(mask, _FACTORS, strict=True)):
        if bits:
            mixed += (words[:, word] & np.uint64(bits)) * factor
    return mixed


_FACTORS = np.random.Generator(np.random.Philox(key=0x6B657973)).integers(0, 1 << 64, WORDS, np.uint64) | np.uint64(1)


def _blocks(entries: Packed, shift: np.uint64) -> Iterator[Packed]:
    """Cut sorted entries into blocks that never cut a bucket in two."""
    start = 0
    while start < entries.size:
        stop = min(start + SORTED_NODES, entries.size)
        last = (entries[stop - 1] >> shift) << shift
        stop = int(np.searchsorted(entries, last | ((np.uint64(1) << shift) - np.uint64(1)), side="right"))
        yield entries[start:stop]
        start = stop

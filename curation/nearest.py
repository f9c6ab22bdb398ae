"""How near a row came to being a duplicate: its PDQ distance to the nearest kept row and to each evaluation set.

Everything is read back from the job: all hashes of the ledger's kept rows, one raw shard at a time. On a hundred
million rows that is some gigabytes and minutes, so it must be asked for, and speaks of one row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.ledger import Decision, ledger_by_shard
from headrace.curation.select.evaluation import CENTRE_VARIANTS, VARIANTS
from headrace.curation.select.hamming import Words, hash_words
from headrace.curation.select.load import ALL_HASH_COLUMNS
from headrace.shards.parquet import open_parquet, read_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """The nearest of one kind."""

    kind: str
    """`kept row`, or the name of an evaluation set."""
    name: str
    """Its uid, or the name of the image in the set."""
    distance: int
    """Differing bits of 256, the smallest over all hashes of each."""


def neighbours(decision: Decision, row: dict[str, Any]) -> list[Neighbour]:
    """Return the nearest kept row and the nearest image of each evaluation set of the job, nearest first.

    Nothing is returned for a row without hashes: it was not fetched, does not decode, or was never hashed.
    """
    folder = decision.annotation_folders().get("hashes")
    mine = _hashes_of(folder, row) if folder is not None else None
    if folder is None or mine is None:
        return []
    found = [_nearest_row(decision, folder, row, mine), *_nearest_images(decision, mine)]
    return sorted((item for item in found if item is not None), key=lambda item: (item.distance, item.kind))


def _hashes_of(folder: str, row: dict[str, Any]) -> Words | None:
    table = _read(urlpath.join(folder, f"{row['raw_shard']}.parquet"), "key", ALL_HASH_COLUMNS)
    at = pc.index(table["key"], row["key"]).as_py()
    values = [column[at].as_py() for column in table.columns[1:]] if at >= 0 else []
    present = [value for value in values if value is not None]
    return hash_words(b"".join(present)) if present else None


def _nearest_row(decision: Decision, folder: str, row: dict[str, Any], mine: Words) -> Neighbour | None:
    best: Neighbour | None = None
    for shard, rows in ledger_by_shard(decision.ledger, ["uid", "raw_shard", "key", "kept"]):
        others = rows.filter(pc.fill_null(rows["kept"], False))
        if shard == row["raw_shard"]:
            others = others.filter(pc.not_equal(others["key"], row["key"]))
        hashes = _read(urlpath.join(folder, f"{shard}.parquet"), "key", ALL_HASH_COLUMNS)
        hashes = hashes.filter(pc.is_in(hashes["key"], value_set=others["key"].combine_chunks()))
        found = _nearest(hashes, mine)
        if found is not None and (best is None or found[1] < best.distance):
            at = pc.index(others["key"], hashes["key"][found[0]]).as_py()
            best = Neighbour(kind="kept row", name=others["uid"][at].as_py(), distance=found[1])
    return best


def _nearest_images(decision: Decision, mine: Words) -> Iterator[Neighbour]:
    folder = urlpath.join(decision.job.ledgers, "evaluation")
    for name in files.list_names(folder):
        best: Neighbour | None = None
        for part in files.list_names(urlpath.join(folder, name), ".parquet"):
            table = _read(urlpath.join(folder, name, part), "name", (*VARIANTS, *CENTRE_VARIANTS))
            found = _nearest(table, mine)
            if found is not None and (best is None or found[1] < best.distance):
                best = Neighbour(kind=name, name=table["name"][found[0]].as_py(), distance=found[1])
        if best is not None:
            yield best


def _read(url: str, name: str, hashes: Sequence[str]) -> pa.Table:
    """Read a column and those of the hashes that the table has: older ones have fewer."""
    with open_parquet(url) as file:
        present = [column for column in hashes if column in file.schema.names]
    return read_table(url, [name, *present])


def _nearest(table: pa.Table, mine: Words) -> tuple[int, int] | None:
    """Return (row, distance) of the nearest, by the columns after the first; None if no row has a hash."""
    best: tuple[int, int] | None = None
    for column in table.column_names[1:]:
        present = np.flatnonzero(pc.is_valid(table[column]).to_numpy(zero_copy_only=False))
        if not len(present):
            continue
        held = table[column].drop_null().combine_chunks().cast(pa.binary()).to_pylist()
        words = hash_words(b"".join(held))
        for one in mine:
            distances = np.bitwise_count(words ^ one).sum(axis=1)
            at = int(distances.argmin())
            if best is None or distances[at] < best[1]:
                best = int(present[at]), int(distances[at])
    return best

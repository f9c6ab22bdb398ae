"""Rows compared with the images of evaluation sets, a part at a time, in any number of processes."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import READ_ROWS, Limits, open_memory, read_batches, take_parquet
from headrace.curation.select.hamming import FAR, WORDS, Indices, NearestReference, Words
from headrace.curation.select.here import HerePart
from headrace.curation.select.load import word_column
from headrace.curation.select.references import References
from headrace.curation.select.step import VERDICT_SCHEMA, Bench, word_columns
from headrace.shards.heartbeat import beat
from headrace.shards.parquet import write_groups
from headrace.shards.units import INLINE, run_units

INLINE_PAIRS = 5_000_000_000
"""Pairs of a row and a hash below which starting worker processes takes longer than comparing them."""


@dataclass(frozen=True, slots=True)
class CompareUnit:
    """The rows of one part, to be compared with all references."""

    name: str
    here: HerePart
    references: Path
    """The folder of the references, written once for all units."""
    hashes: tuple[str, ...]
    """Columns of the rows' hashes."""
    distance: int
    limits: Limits
    out: Path


def compare_rows(bench: Bench, name: str, references: References, hashes: Sequence[str], distance: int) -> None:
    """Create the table `name` of verdicts: rows of `here` that are copies, or that have no hash (`no-hash`)."""
    assert bench.parts is not None
    written = bench.folder / "references"
    references.write(written)
    columns = ("sha256", *word_columns(hashes))
    units = [
        CompareUnit(
            name=f"rows of part {here.number} against evaluation sets",
            here=replace(here, columns=columns),
            references=written,
            hashes=tuple(hashes),
            distance=distance,
            limits=bench.limits,
            out=bench.folder / f"compared-{here.number:06d}.parquet",
        )
        for here in bench.parts.parts(bench.connection)
    ]
    few = bench.num_here * len(references.words) < INLINE_PAIRS
    run_units(compare_part, units, INLINE if few else bench.engine)
    take_parquet(bench.connection, name, [unit.out for unit in units])
    shutil.rmtree(written)


def compare_part(unit: CompareUnit) -> None:
    """Write the verdicts on the rows of a part."""
    references = References.read(unit.references)
    nearest = NearestReference(references.words, unit.distance)
    with open_memory(unit.limits) as connection:
        unit.here.show(connection)
        found = []
        for table in read_batches(connection, "SELECT * FROM here ORDER BY __row", READ_ROWS):
            found.append(_judge(table, references, nearest, unit.hashes, unit.distance))
            beat(rows=table.num_rows)
    write_groups(unit.out, VERDICT_SCHEMA, found)


def _judge(
    table: pa.Table, references: References, nearest: NearestReference, hashes: Sequence[str], threshold: int
) -> pa.Table:
    best = np.full(table.num_rows, FAR, np.int16)
    image = np.full(table.num_rows, -1, np.int64)
    hashed = np.zeros(table.num_rows, bool)
    for present, queries in _different_hashes(table, hashes):
        hashed[present] = True
        near, index = nearest.search(queries)
        candidate = np.where(index >= 0, references.image_of[index] if len(references.image_of) else -1, -1)
        better = (near < best[present]) | ((near == best[present]) & (candidate < image[present]))
        best[present[better]], image[present[better]] = near[better], candidate[better]
    for row, sha256 in enumerate(table["sha256"].to_pylist()):
        same = references.by_sha256.get(sha256)
        if same is not None:
            best[row], image[row] = 0, same
    return _verdict(table["__row"].to_numpy(), best, image, hashed, references, threshold)


def _different_hashes(table: pa.Table, hashes: Sequence[str]) -> list[tuple[Indices, Words]]:
    """Return for each column the rows that have a hash in it, and these, without those of an earlier column.

    A picture without a border has its hash twice.
    """
    found: list[tuple[Indices, Words]] = []
    earlier: list[tuple[NDArray[np.bool_], Words]] = []
    for name in hashes:
        there = ~table[word_column(name, 0)].is_null().to_numpy()
        columns = [table[word_column(name, word)].fill_null(0).to_numpy() for word in range(WORDS)]
        words = np.stack(columns, axis=1)
        fresh = there.copy()
        for was_there, before in earlier:
            fresh &= ~(was_there & (before == words).all(axis=1))
        earlier.append((there, words))
        rows = np.flatnonzero(fresh)
        found.append((rows, np.ascontiguousarray(words[rows])))
    return found


def _verdict(
    rows: Indices,
    best: NDArray[np.int16],
    image: Indices,
    hashed: NDArray[np.bool_],
    references: References,
    threshold: int,
) -> pa.Table:
    copies = np.flatnonzero(image >= 0)
    unknown = np.flatnonzero((image < 0) & ~hashed)
    sets, names = references.sets[image[copies]], references.names[image[copies]]
    return pa.table(
        {
            "__row": np.concatenate([rows[copies], rows[unknown]]),
            "reason": [f"evaluation:{name}" for name in sets] + ["no-hash"] * unknown.size,
            "value": pa.array([*best[copies].astype(float), *([None] * unknown.size)], pa.float64()),
            "threshold": np.full(copies.size + unknown.size, float(threshold)),
            "duplicate_of": [f"{a}/{b}" for a, b in zip(sets, names, strict=True)] + [None] * unknown.size,
        },
        schema=VERDICT_SCHEMA,
    )

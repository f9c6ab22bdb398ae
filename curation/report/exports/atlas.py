"""A table for Embedding Atlas: one row a sample, with a place on a map.

Its columns are those that `embedding-atlas FILE --text text --image image --x x --y y --neighbors neighbors` names: the
image as {bytes, path}, neighbours as {ids, distances} with the numbers of rows. Written shard by shard; what grows with
the data is on disk, but for the vectors of at most `MAX_NEIGHBOURED` rows.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import atomic, files, urlpath
from headrace.curation.ledger import Decision, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.curation.report.compare.side import Side
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.exports.projection import Floats, Projection, nearest, project
from headrace.curation.report.gather import shown_columns
from headrace.curation.report.pictures import Pictures
from headrace.curation.report.sketch import numbers
from headrace.curation.report.tables import read_annotations
from headrace.curation.report.values import joined
from headrace.curation.select.steps import step_of
from headrace.shards.parquet import open_parquet, read_table, write_groups

log = logging.getLogger(__name__)

MAX_NEIGHBOURED = 20_000
NUM_NEIGHBOURS = 10
MAX_PICTURES = 5_000
PICTURE_PIXELS = 128
PREFERRED = ("clip_embedding", "copy_embedding")

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_NEIGHBOURS = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
_FIRST = [("id", pa.string()), ("key", pa.string()), ("text", pa.string()), ("url", pa.string())]
_LEDGER = ["uid", "url", "raw_shard", "key", "kept", "step", "reason", "out_shard", "out_index"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AtlasSummary:
    """What was written."""

    path: str
    rows: int
    projected_from: str
    """The column of vectors, or `numbers`."""
    pictures: int
    neighbours: bool


@dataclass(frozen=True, slots=True)
class _Block:
    """The rows of one shard."""

    rows: list[dict[str, Any]]
    """What the ledger says; of a dataset, `kept` and where the sample lies."""
    table: pa.Table
    """Aligned with `rows`: captions and numbers."""
    vectors: Floats | None
    """[rows, dimensions], NaN where there is none."""


def write_atlas(url: str, side: Side, config: ReportConfig) -> AtlasSummary:
    """Write the table. Raises ValueError if the name does not end in .parquet, or there is nothing to project."""
    check_atlas_name(url)
    column = _vector_column(side)
    names, size = _shape(side, column)
    if not size:
        raise ValueError(f"{side.name}: no row has an embedding or a number to place it on a map by")

    def blocks() -> Iterator[Floats]:
        return (_numbers(block, names) for block in _blocks(side, column))

    projection = project(blocks, size, standardise=column is None)
    found = _neighbours(side, column)
    pictures = _pictures_of(side, config)
    num_rows = num_pictures = 0

    def tables(schema: pa.Schema) -> Iterator[pa.Table]:
        nonlocal num_rows, num_pictures
        for block in _blocks(side, column):
            shown = _images(block, pictures, MAX_PICTURES - num_pictures)
            num_pictures += sum(image is not None for image in shown)
            yield _table(block, names, projection, shown, _part(found, num_rows, len(block.rows))).select(schema.names)
            num_rows += len(block.rows)

    schema = _schema(names, with_neighbours=found is not None)
    with atomic.atomic_file(url) as path:
        write_groups(path, schema, tables(schema))
    log.info("%s: %d rows, %d pictures", url, num_rows, num_pictures)
    return AtlasSummary(
        path=url,
        rows=num_rows,
        projected_from=column or "numbers",
        pictures=num_pictures,
        neighbours=found is not None,
    )


def check_atlas_name(url: str) -> None:
    """Raise ValueError if a table cannot be written into a file of this name."""
    if not url.endswith(".parquet"):
        raise ValueError(f"--atlas {url}: the name must end in .parquet")


def _vector_column(side: Side) -> str | None:
    """Return the column of vectors that a job has: of several the first of `PREFERRED`."""
    if side.explained is None:
        return None
    found = []
    for folder in side.explained.decision.annotation_folders().values():
        for name in files.list_names(folder, ".parquet")[:1]:
            with open_parquet(urlpath.join(folder, name)) as file:
                found += [item.name for item in file.schema if _is_vector(item)]
    return min(found, key=lambda name: (name not in PREFERRED, name != PREFERRED[0], name), default=None)


def _is_vector(item: pa.Field) -> bool:
    is_list = pa.types.is_list(item.type) or pa.types.is_fixed_size_list(item.type)
    return bool(item.name.endswith("_embedding") and is_list and pa.types.is_floating(item.type.value_type))


def _shape(side: Side, column: str | None) -> tuple[list[str], int]:
    """Return the columns of numbers, and how many numbers a row is projected from."""
    names: dict[str, None] = {}
    size = 0
    for block in _blocks(side, column):
        names |= dict.fromkeys(shown_columns(block.table.schema))
        if block.vectors is not None:
            size = max(size, block.vectors.shape[1])
    return list(names), len(names) if column is None else size


def _blocks(side: Side, column: str | None) -> Iterator[_Block]:
    if side.explained is not None:
        yield from _of_job(side.explained.decision, column)
        return
    assert side.dataset is not None
    for number, table in enumerate(side.tables()):
        keys = table["key"].to_pylist()
        shard = side.dataset.shards.name(number)
        uids = table["uid"].to_pylist()
        rows = [
            {"uid": uid, "key": key, "kept": True, "step": None, "reason": None, "out_shard": shard, "out_key": key}
            for key, uid in zip(keys, uids, strict=True)
        ]
        yield _Block(rows, table, None)


def _of_job(decision: Decision, column: str | None) -> Iterator[_Block]:
    folders = decision.annotation_folders()
    hidden = [step.name for step in decision.summary.steps if not step_of(step).shows_dropped]
    for shard, ledger in ledger_by_shard(decision.ledger, _LEDGER):
        annotated = read_annotations(folders, shard)
        # What was not fetched has no place on a map; what must not be shown is not listed either.
        listed = ledger.filter(pc.is_in(ledger["key"], value_set=annotated["key"].combine_chunks()))
        listed = listed.filter(
            pc.invert(pc.is_in(pc.fill_null(listed["step"], ""), value_set=pa.array(hidden, pa.string())))
        )
        if listed.num_rows:
            table = joined(read_raw(decision.job, shard), annotated, listed["key"])
            yield _Block(listed.to_pylist(), table, _vectors(folders, shard, column, listed["key"]))


def _vectors(folders: dict[str, str], shard: str, column: str | None, keys: pa.ChunkedArray) -> Floats | None:
    if column is None:
        return None
    for folder in folders.values():
        url = urlpath.join(folder, f"{shard}.parquet")
        with open_parquet(url) as file:
            if column not in file.schema.names:
                continue
        table = read_table(url, ["key", column])
        table = table.take(pc.index_in(keys, value_set=table["key"].combine_chunks()))
        held = table[column].combine_chunks()
        lengths = pc.list_value_length(held)
        size = int(pc.max(lengths).as_py() or 0)
        result = np.full((len(held), size), np.nan)
        whole = np.flatnonzero(pc.fill_null(pc.equal(lengths, size), False).to_numpy(zero_copy_only=False))
        flat = held.take(pa.array(whole)).flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        result[whole] = flat.reshape(-1, size) if size else 0
        return result
    return None


def _numbers(block: _Block, names: list[str]) -> Floats:
    if block.vectors is not None:
        return block.vectors
    present = block.table.column_names
    missing = np.full(block.table.num_rows, np.nan)
    return np.stack([numbers(block.table[name]) if name in present else missing for name in names], axis=1)


Neighbours = tuple[NDArray[np.int64], Floats, NDArray[np.int64]]
"""Ids and distances of the rows that have a vector, and for each row of the table its place among those, or -1."""


def _neighbours(side: Side, column: str | None) -> Neighbours | None:
    """Return the neighbours by vector; None without vectors, or with more rows than are compared."""
    if column is None:
        return None
    held, num_rows = [], 0
    for block in _blocks(side, column):
        num_rows += len(block.rows)
        if num_rows > MAX_NEIGHBOURED:
            log.info("over %d rows: no neighbours are looked for", MAX_NEIGHBOURED)
            return None
        assert block.vectors is not None
        held.append(block.vectors.astype(np.float32))
    vectors = np.concatenate(held)
    has = np.isfinite(vectors).all(axis=1)
    numbered = np.flatnonzero(has)
    ids, apart = nearest(vectors[has], NUM_NEIGHBOURS)
    places = np.full(num_rows, -1, np.int64)
    places[numbered] = np.arange(len(numbered))
    return numbered[ids], apart, places


def _part(found: Neighbours | None, start: int, count: int) -> list[dict[str, Any] | None] | None:
    if found is None:
        return None
    ids, apart, places = found
    return [
        None if place < 0 else {"ids": ids[place].tolist(), "distances": apart[place].round(5).tolist()}
        for place in places[start : start + count]
    ]


def _pictures_of(side: Side, config: ReportConfig) -> Pictures | None:
    if config.pictures == "none" or (side.explained is None and config.pictures != "all"):
        return None
    decision = None if side.explained is None else side.explained.decision
    return Pictures(decision, side.dataset, PICTURE_PIXELS, all_shown=config.pictures == "all")


def _images(block: _Block, pictures: Pictures | None, room: int) -> list[dict[str, Any] | None]:
    shown: list[dict[str, Any] | None] = []
    for row in block.rows:
        found = pictures.of_any_row(row) if pictures is not None and room > 0 else None
        room -= found is not None
        shown.append(None if found is None else {"bytes": found.data, "path": f"{row['key']}.jpg"})
    return shown


def _schema(names: list[str], *, with_neighbours: bool) -> pa.Schema:
    last = [("neighbors", _NEIGHBOURS)] if with_neighbours else []
    judged = [("kept", pa.bool_()), ("step", pa.string()), ("reason", pa.string())]
    placed = [("x", pa.float32()), ("y", pa.float32())]
    first = [*_FIRST, ("image", _IMAGE), *placed, *judged]
    taken = {"neighbors", *(name for name, _ in first)}  # a carried number may have such a name
    return pa.schema([*first, *((name, pa.float64()) for name in names if name not in taken), *last])


def _table(
    block: _Block,
    names: list[str],
    projection: Projection,
    images: list[dict[str, Any] | None],
    neighbours: list[dict[str, Any] | None] | None,
) -> pa.Table:
    # Five digits: sums of another order (threads of a matrix product) differ in the last ones of a float.
    placed = np.round(projection.of(_numbers(block, names)), 5)
    table, rows = block.table, block.rows
    columns: dict[str, Any] = {
        "id": pa.array([row["uid"] for row in rows], pa.string()),
        "key": pa.array([row["key"] for row in rows], pa.string()),
        "text": table["caption"],
        "url": table["url"],
        "image": pa.array(images, _IMAGE),
        "x": pa.array(placed[:, 0], pa.float32()),
        "y": pa.array(placed[:, 1], pa.float32()),
        **{name: pa.array([row[name] for row in rows]) for name in ("kept", "step", "reason")},
    }
    for name in names:
        if name not in columns:
            held = table[name].cast(pa.float64()) if name in table.column_names else pa.nulls(len(rows), pa.float64())
            columns[name] = held
    if neighbours is not None:
        columns["neighbors"] = pa.array(neighbours, _NEIGHBOURS)
    return pa.table(columns)

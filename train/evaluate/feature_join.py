"""Pieces of features become one file: parquet, or a `.npy` that numpy maps into memory.

One piece is held at a time.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.atomic import atomic_file
from headrace.shards.parquet import open_parquet, read_table, write_groups, write_parquet

METADATA = b"headrace.features"


def join_pieces(
    pieces: Sequence[Path], out: Path | None, *, manifest: dict[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    """Write the pieces as `out` (None = they stay as they are); return the number of rows, and the damaged samples.

    A `.npy` has [N, ...] of one set of blocks, [N, S, ...] of several; place, key and columns of its rows stand beside
    it in `NAME.rows.parquet`.
    """
    rows, damaged = 0, []
    for piece in pieces:
        with open_parquet(str(piece)) as file:
            rows += file.num_rows
            damaged += json.loads((file.schema.metadata or {}).get(METADATA, b"{}")).get("damaged", [])
    if out is not None and out.suffix == ".parquet":
        first = read_table(str(pieces[0])).schema
        told = {METADATA: json.dumps({**manifest, "rows": rows, "damaged": damaged}).encode()}
        with atomic_file(str(out)) as path:
            write_groups(path, first.with_metadata(told), _tables(pieces))
    elif out is not None:
        _write_npy(pieces, out, rows=rows, manifest=manifest)
    return rows, damaged


def _tables(pieces: Sequence[Path]) -> Iterator[pa.Table]:
    for piece in pieces:
        yield read_table(str(piece))


def _write_npy(pieces: Sequence[Path], out: Path, *, rows: int, manifest: dict[str, Any]) -> None:
    names, shape = list(manifest["layers"]), manifest["shape"]
    sets = [len(names)] if len(names) > 1 else []
    beside, first = [], 0
    with atomic_file(str(out)) as path:
        mapped = np.lib.format.open_memmap(path, "w+", dtype=manifest["dtype"], shape=(rows, *sets, *shape))
        for table in _tables(pieces):
            last = first + table.num_rows
            for which, name in enumerate(names):
                place = (slice(first, last), which) if sets else slice(first, last)
                mapped[place] = features_of(table, name, shape)
            beside.append(table.drop_columns(names).replace_schema_metadata(None))
            first = last
        mapped.flush()
        del mapped
        write_parquet(str(out.with_suffix(".rows.parquet")), pa.concat_tables(beside))


def features_of(table: pa.Table, name: str, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return one column of features as an array [N, *shape]."""
    column = table.column(name).combine_chunks()
    numbers: np.ndarray[Any, np.dtype[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    assert numbers.size == len(table) * math.prod(shape), "a piece has whole rows"
    return numbers.reshape(len(table), *shape)

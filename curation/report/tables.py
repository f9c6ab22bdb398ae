"""The annotations that a report walks through, one raw shard at a time, and what an index says without them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import urlpath
from headrace.shards.parquet import open_parquet


def read_annotations(folders: Mapping[str, str], shard: str) -> pa.Table:
    """Return the scalar annotations of one raw shard side by side, `key` first; of two of one name the first."""
    columns: dict[str, pa.ChunkedArray] = {}
    for folder in folders.values():
        with open_parquet(urlpath.join(folder, f"{shard}.parquet")) as file:
            table = file.read([item.name for item in file.schema if not pa.types.is_nested(item.type)])
        for name in table.column_names:
            columns.setdefault(name, table[name])
    return pa.table(columns)


def has_caption_lists(table: pa.Table) -> bool:
    """True if the samples of an index may have several captions."""
    kind = table.schema.field("captions").type if "captions" in table.column_names else pa.null()
    return bool(pa.types.is_list(kind) and pa.types.is_string(kind.value_type))


def all_captions(table: pa.Table) -> pa.ChunkedArray:
    """Return every caption of the samples of an index; null for one without."""
    if not has_caption_lists(table):
        return table["caption"]
    alone = table["caption"].filter(pc.is_null(table["captions"]))
    return pa.chunked_array([*pc.list_flatten(table["captions"]).chunks, *alone.chunks], pa.string())


def measured(index: pa.Table) -> pa.Table:
    """Return the index of a shard with `aspect` (longer side by the shorter) and `caption_chars`, if it lacks them."""
    if "aspect" not in index.column_names:
        sides = [index[name].cast(pa.float64()).to_numpy() for name in ("width", "height")]
        with np.errstate(divide="ignore", invalid="ignore"):
            aspect = np.maximum(*sides) / np.minimum(*sides)
        index = index.append_column("aspect", pa.array(aspect, pa.float64()))
    if "caption_chars" not in index.column_names:
        index = index.append_column("caption_chars", pc.utf8_length(index["caption"]))
    return index

"""Writing one raw shard: img2dataset's tar, parquet and stats, then the commit record.

All rows are in the parquet, the fetched ones are in the tar, both in the order given. Nothing counts before the
commit record, so a rerun overwrites whatever a killed one left.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.config import canonical_json
from headrace.curation.raw.record import RECORD_SCHEMA
from headrace.curation.raw.schema import OWN_SCHEMA, RESERVED_COLUMNS, status_of, uid_of
from headrace.shards.commit import commit
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import ImageHeader
from headrace.shards.parquet import parquet_bytes
from headrace.shards.tar import ShardWriter

log = logging.getLogger(__name__)

MIN_ROW_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: a failure (`error_class`), or an image of `size` bytes at `offset` of the spool."""

    error_class: str | None = None
    error_message: str | None = None
    header: ImageHeader | None = None
    """Of the image as stored."""
    original: ImageHeader | None = None
    """Of the image as fetched."""
    sha256: str | None = None
    """Of the bytes as fetched."""
    stored_sha256: str | None = None
    """Of the bytes as stored, where they are others."""
    offset: int = 0
    size: int = 0


def row_digits(samples_per_shard: int) -> int:
    """Return the width of the row number inside a key; img2dataset's four where they are enough."""
    return max(MIN_ROW_DIGITS, len(str(samples_per_shard - 1)))


@dataclass(frozen=True, slots=True)
class RawShard:
    """Where one raw shard goes, and how its keys are made."""

    folder: str
    number: int
    samples_per_shard: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.number:05d}"

    def key(self, row: int) -> str:
        """Return the key of one row."""
        return f"{self.name}{row:0{row_digits(self.samples_per_shard)}d}"


def write_raw_shard(
    shard: RawShard, rows: pa.Table, outcomes: Sequence[Outcome], payload: Callable[[Outcome], bytes]
) -> None:
    """Write tar, parquet, stats and commit. `payload` returns the bytes of a fetched image; one is held at a time."""
    table = raw_table(shard, rows, outcomes)
    with files.atomic_file(files.join(shard.folder, f"{shard.name}.tar")) as path:
        with ShardWriter(path) as writer:
            for record, outcome in zip(_records(table), outcomes, strict=True):
                if outcome.header is not None:
                    writer.write(record["key"], _members(record, outcome.header.format, payload(outcome)))
        tar = {"bytes": writer.num_bytes, "sha256": writer.sha256}
    data = parquet_bytes(table)
    files.write_atomic(files.join(shard.folder, f"{shard.name}.parquet"), data)
    stats = _stats(outcomes)
    files.write_atomic(
        files.join(shard.folder, f"{shard.name}_stats.json"),
        (json.dumps(stats, sort_keys=True, indent=4) + "\n").encode(),
    )
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    commit(shard.folder, shard.name, {**stats, "schema": RECORD_SCHEMA, "table": sums, "tar": tar})
    log.info("raw/%s: %d of %d images, %d bytes", shard.name, stats["successes"], stats["count"], tar["bytes"])


def raw_table(shard: RawShard, rows: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return the raw parquet's table: our columns, then the carried ones."""
    urls, captions = rows.column("url").to_pylist(), rows.column("caption").to_pylist()
    headers = [outcome.header for outcome in outcomes]
    originals = [outcome.original for outcome in outcomes]
    columns = {
        "key": [shard.key(row) for row in range(rows.num_rows)],
        "uid": [uid_of(caption, url) for caption, url in zip(captions, urls, strict=True)],
        "url": urls,
        "caption": captions,
        "status": [status_of(outcome.error_class) for outcome in outcomes],
        "error_class": [outcome.error_class for outcome in outcomes],
        "error_message": [outcome.error_message for outcome in outcomes],
        "width": [header and header.width for header in headers],
        "height": [header and header.height for header in headers],
        "original_width": [header and header.width for header in originals],
        "original_height": [header and header.height for header in originals],
        "format": [header and header.format for header in headers],
        "sha256": [outcome.sha256 for outcome in outcomes],
        "stored_sha256": [outcome.stored_sha256 for outcome in outcomes],
        "input_file": rows.column("input_file"),
        "input_row": rows.column("input_row"),
    }
    arrays = [_array(columns[field.name], field.type) for field in OWN_SCHEMA]
    extra = [field for field in rows.schema if field.name not in RESERVED_COLUMNS]
    schema = pa.schema([*OWN_SCHEMA, *extra])
    return pa.table([*arrays, *(rows.column(field.name) for field in extra)], schema=schema)


def _array(column: Any, kind: pa.DataType) -> Any:
    return column.cast(kind) if isinstance(column, pa.ChunkedArray) else pa.array(column, kind)


def _records(table: pa.Table) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _members(record: dict[str, Any], image_format: str, data: bytes) -> dict[str, bytes]:
    members = {EXTENSIONS[image_format]: data}
    if record["caption"] is not None:
        members["txt"] = record["caption"].encode()
    left_out = ["error_class", "error_message", *(["stored_sha256"] if record["stored_sha256"] is None else [])]
    plain = {name: value for name, value in record.items() if name not in left_out}
    members["json"] = canonical_json(_plain(plain)).encode()
    return members


def _plain(value: Any) -> Any:
    """Return a carried value as JSON can hold it; dates and the like as their text, NaN as null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _stats(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    failed = Counter(outcome.error_class for outcome in outcomes if outcome.error_class is not None)
    successes = len(outcomes) - failed.total()
    status = {"success": successes, **failed}
    return {
        "count": len(outcomes),
        "successes": successes,
        "failed_to_download": failed.total() - failed["resize"],
        "failed_to_resize": failed["resize"],
        "status_dict": {name: count for name, count in sorted(status.items()) if count},
    }

"""Writing one raw shard: img2dataset's tar, parquet and stats, then the commit record.

All rows are in the parquet, the fetched ones are in the tar, both in the order given. Nothing counts before the
commit record, so a rerun overwrites whatever a killed one left.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.raw.record import RECORD_SCHEMA
from headrace.curation.raw.schema import (
    INTERNAL_COLUMNS,
    LATER_COLUMNS,
    OWN_SCHEMA,
    RAW_COLUMNS,
    RESIZE_CLASSES,
    UNNAMED,
    status_of,
    uid_of,
)
from headrace.lease import NO_FENCE, Fence
from headrace.shards.commit import commit
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import ImageHeader
from headrace.shards.parquet import parquet_bytes, write_groups
from headrace.shards.tar import ShardWriter

log = logging.getLogger(__name__)

MIN_ROW_DIGITS = 4
IMAGES_PER_GROUP = 256
GROUP_BYTES = 64 << 20
"""A row group of a parquet of images ends with so many of them, or so many bytes: a group is held in memory."""


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
    reused_from: str | None = None
    """SOURCE#KEY of an image that was there already."""
    md5: str | None = None
    """Of the bytes as fetched, if asked for; so the next two."""
    sha512: str | None = None
    exif: str | None = None
    """JSON."""
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
    made_columns: tuple[str, ...] = ()
    """Those of MADE_COLUMNS that the table has."""
    output_format: str = "webdataset"
    """Where the images go: `webdataset`, `files` or `parquet`."""
    fence: Fence = NO_FENCE
    """Asked before each file is put in its place: another fetch of the same rows has other bytes."""

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
    """Write images, parquet, stats and commit.

    `payload` returns the bytes of a fetched image; one is held at a time, of a parquet of images a row group.
    """
    table = raw_table(shard, rows, outcomes)
    tar = _WRITERS[shard.output_format](shard, table, _samples(table, outcomes, payload))
    data = parquet_bytes(table)
    shard.fence.check()
    atomic.write_atomic(urlpath.join(shard.folder, f"{shard.name}.parquet"), data)
    stats = _stats(outcomes)
    atomic.write_atomic(
        urlpath.join(shard.folder, f"{shard.name}_stats.json"),
        (json.dumps(stats, sort_keys=True, indent=4) + "\n").encode(),
    )
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    shard.fence.check()
    commit(shard.folder, shard.name, {**stats, "schema": RECORD_SCHEMA, "table": sums, "tar": tar})
    log.info("raw/%s: %d of %d images, %d bytes", shard.name, stats["successes"], stats["count"], tar["bytes"])


Samples = Iterator[tuple[dict[str, Any], str, bytes]]
"""Row, format and image of each success, in order."""


def _samples(table: pa.Table, outcomes: Sequence[Outcome], payload: Callable[[Outcome], bytes]) -> Samples:
    for record, outcome in zip(_records(table), outcomes, strict=True):
        if outcome.header is not None:
            yield record, outcome.header.format, payload(outcome)


def _write_tar(shard: RawShard, _table: pa.Table, samples: Samples) -> dict[str, Any]:
    with atomic.atomic_file(urlpath.join(shard.folder, f"{shard.name}.tar")) as path:
        with ShardWriter(path) as writer:
            for record, image_format, image in samples:
                writer.write(record["key"], _members(record, image_format, image))
        shard.fence.check()
    return {"bytes": writer.num_bytes, "sha256": writer.sha256}


def _write_files(shard: RawShard, _table: pa.Table, samples: Samples) -> dict[str, Any]:
    """Write the members that a tar would hold as files of `raw/00000/`."""
    folder = urlpath.join(shard.folder, shard.name)
    shard.fence.check()
    atomic.remove_all(folder)  # of a killed run, which may have had others
    num_bytes, digest = 0, hashlib.sha256()
    for record, image_format, image in samples:
        for extension, data in _members(record, image_format, image).items():
            shard.fence.check()
            atomic.write_atomic(urlpath.join(folder, f"{record['key']}.{extension}"), data)
            num_bytes += len(data)
            digest.update(hashlib.sha256(data).digest())
    return {"bytes": num_bytes, "sha256": digest.hexdigest()}


def _write_images(shard: RawShard, table: pa.Table, samples: Samples) -> dict[str, Any]:
    """Write `raw/images/00000.parquet`: the rows with an image, and the image in the column `image`."""
    schema = pa.schema([("image", pa.binary()), *table.schema])
    rows = table.filter(pc.equal(table["status"], "success"))
    url = urlpath.join(shard.folder, "images", f"{shard.name}.parquet")

    def groups() -> Iterator[pa.Table]:
        start = 0
        for held in _groups(samples):
            part = rows.slice(start, len(held))
            yield pa.table([pa.array(held, pa.binary()), *part.columns], schema=schema)
            start += len(held)

    with atomic.atomic_file(url) as path:
        write_groups(path, schema, groups())
        shard.fence.check()
        return {"bytes": path.stat().st_size, "sha256": files.sha256_of(str(path))}


def _groups(samples: Samples) -> Iterator[list[bytes]]:
    """Yield the images of each row group."""
    held: list[bytes] = []
    num_bytes = 0
    for _, _, image in samples:
        held.append(image)
        num_bytes += len(image)
        if len(held) == IMAGES_PER_GROUP or num_bytes >= GROUP_BYTES:
            yield held
            held, num_bytes = [], 0
    if held:
        yield held


_WRITERS = {"webdataset": _write_tar, "files": _write_files, "parquet": _write_images}


def raw_table(shard: RawShard, rows: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return the raw parquet's table: our columns, then the carried ones."""
    unnamed = [outcome.error_class in UNNAMED for outcome in outcomes]
    keys = [shard.key(row) for row in range(rows.num_rows)]
    urls, captions = _unless(unnamed, rows.column("url")), _unless(unnamed, rows.column("caption"))
    headers = [outcome.header for outcome in outcomes]
    originals = [outcome.original for outcome in outcomes]
    columns = {
        "key": keys,
        "uid": [
            uid_of(key if hidden else caption, url)
            for key, caption, url, hidden in zip(keys, captions, urls, unnamed, strict=True)
        ],
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
        "reused_from": [outcome.reused_from for outcome in outcomes],
        "input_file": rows.column("input_file"),
        "input_row": rows.column("input_row"),
    }
    arrays = [_array(columns[field.name], field.type) for field in OWN_SCHEMA]
    extra = [field for field in rows.schema if field.name not in (*RAW_COLUMNS, *INTERNAL_COLUMNS)]
    made = [pa.array([getattr(outcome, name) for outcome in outcomes], pa.string()) for name in shard.made_columns]
    schema = pa.schema([*OWN_SCHEMA, *((name, pa.string()) for name in shard.made_columns), *extra])
    carried = [rows.column(field.name) for field in extra]
    if any(unnamed):
        carried = [pc.if_else(pa.array(unnamed), pa.scalar(None, column.type), column) for column in carried]
    return pa.table([*arrays, *made, *carried], schema=schema)


def _unless(unnamed: Sequence[bool], column: pa.ChunkedArray) -> list[Any]:
    return [None if hidden else value for hidden, value in zip(unnamed, column.to_pylist(), strict=True)]


def _array(column: Any, kind: pa.DataType) -> Any:
    return column.cast(kind) if isinstance(column, pa.ChunkedArray) else pa.array(column, kind)


def _records(table: pa.Table) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _members(record: dict[str, Any], image_format: str, data: bytes) -> dict[str, bytes]:
    members = {EXTENSIONS[image_format]: data}
    if record["caption"] is not None:
        members["txt"] = record["caption"].encode()
    left_out = ["error_class", "error_message", *(name for name in LATER_COLUMNS if record[name] is None)]
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
    not_resized = sum(failed[name] for name in RESIZE_CLASSES)
    reused = sum(outcome.reused_from is not None for outcome in outcomes)
    return {
        **({"reused": reused} if reused else {}),
        "count": len(outcomes),
        "successes": successes,
        "failed_to_download": failed.total() - not_resized,
        "failed_to_resize": not_resized,
        "status_dict": {name: count for name, count in sorted(status.items()) if count},
    }

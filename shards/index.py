"""The index of a shard: one row a sample, which makes every sample addressable, sized and checked.

Rows stand in the tar's order and only samples with an image have one. The one thing a reader would get wrong: a
damaged image still has a row (null width, height, format), so that `verify` can name it; rows are never dropped.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.shards.errors import ShardError
from headrace.shards.group import SampleMembers, group_members, read_columns
from headrace.shards.heartbeat import beat, expect
from headrace.shards.parquet import ParquetReader, write_parquet
from headrace.shards.tar import TarMember, iterate_members
from headrace.shards.windows import Windows

log = logging.getLogger(__name__)

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("format", pa.string()),
        ("label", pa.int64()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing in a sample that could not be understood; the sample keeps its row."""

    key: str
    offset: int
    message: str


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """The index of one tar, and what was learnt on the way."""

    table: pa.Table
    faults: tuple[Fault, ...]
    without_image: int
    num_bytes: int
    sha256: str | None


def index_shard(url: str, *, fast: bool = False) -> pa.Table:
    """Return the index of any WebDataset tar. Raises ShardError if the tar is damaged.

    `fast` reads tar headers only: key, offset and size are known, all else is null.
    """
    indexed = build_index(url, fast=fast)
    for fault in indexed.faults[:10]:
        log.warning("%s: sample %r at byte %d: %s", url, fault.key, fault.offset, fault.message)
    return indexed.table


def build_index(url: str, *, fast: bool = False) -> IndexedShard:
    """Index one tar and say what was odd in it. Raises ShardError if the tar is damaged."""
    faults: list[Fault] = []
    rows: list[dict[str, Any]] = []
    without_image = 0
    shard = shard_name(url)
    with Windows(url, hashing=not fast) as windows:
        if not fast:
            expect(bytes=windows.size)
        for sample in group_members(iterate_members(windows), url):
            beat(samples=1)
            if sample.image is None:
                without_image += 1
            else:
                rows.append(_index_sample(windows, sample, sample.image, shard, None if fast else faults))
        sha256 = None if fast else windows.sha256()
        num_bytes = windows.size
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    return IndexedShard(table, tuple(faults), without_image, num_bytes, sha256)


def shard_name(url: str) -> str:
    """Return the name of a shard: its file name without `.tar`."""
    return files.basename(url).removesuffix(".tar")


def sample_uid(caption: str | None, url: str | None, *, shard: str, key: str) -> str:
    """Return the uid: md5 of caption + url as DataComp defines it; of shard + "/" + key where there is neither."""
    text = f"{shard}/{key}" if caption is None and url is None else (caption or "") + (url or "")
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _index_sample(
    windows: Windows, sample: SampleMembers, image: TarMember, shard: str, faults: list[Fault] | None
) -> dict[str, Any]:
    """Return one row; `faults` is None where only headers may be read."""
    row: dict[str, Any] = {"key": sample.key, "offset": image.offset, "size": image.size}
    if faults is not None:
        # The members are read in the tar's order, so the windows only move forwards.
        columns = read_columns(windows, sample)
        row.update(columns.values)
        faults.extend(Fault(sample.key, offset, message) for offset, message in columns.faults)
        row["uid"] = row.get("uid") or sample_uid(row.get("caption"), row.get("url"), shard=shard, key=sample.key)
    return row


def write_index(url: str, table: pa.Table) -> None:
    """Write an index so that equal tables give equal bytes."""
    write_parquet(url, table)


def read_index(url: str) -> pa.Table:
    """Read an index and check its columns. Raises ShardError if it is not one, FileNotFoundError if it is missing."""
    return parse_index(files.read_bytes(url), url)


def parse_index(data: bytes, url: str) -> pa.Table:
    """Return the index that `data` is. Raises ShardError, naming `url`, if it is not one."""
    try:
        table = ParquetReader(data, url).read()
    except ValueError as error:
        raise ShardError(str(error).removeprefix(f"{url}: "), shard=url) from error
    missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ShardError(f"not a shard index: it lacks the columns {', '.join(missing)}", shard=url)
    wrong = [field.name for field in INDEX_SCHEMA if table.schema.field(field.name).type != field.type]
    if wrong:
        raise ShardError(f"not a shard index: the columns {', '.join(wrong)} have other types", shard=url)
    return table

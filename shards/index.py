"""The index of a shard: one row a sample, which makes every sample addressable, sized and checked.

Rows stand in the tar's order and only samples with an image have one. A damaged image still has a row (null width,
height, format), so that `verify` can name it; rows are never dropped.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files, urlpath
from headrace.shards.columns import MAX_EXTRAS, extras_table
from headrace.shards.errors import ShardError
from headrace.shards.group import BY_RULE, GroupConfig, Grouped, SampleMembers, group_members
from headrace.shards.heartbeat import beat, expect
from headrace.shards.members import LABEL_TEXT, Facts, join_facts, read_member
from headrace.shards.parquet import ParquetReader, write_parquet
from headrace.shards.tar import TarMember, iterate_members
from headrace.shards.windows import Windows, beat_bytes

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
    """INDEX_SCHEMA, then `extras`."""
    extras: dict[str, str]
    """More columns and their types, by the names of `columns.TYPES`."""
    left_out: dict[str, int]
    """Names in `.json` members that became no column, and how often they stood there."""
    grouped: Grouped
    faults: tuple[Fault, ...]
    num_bytes: int
    sha256: str | None

    @property
    def without_image(self) -> int:
        """Keys that have members and no image."""
        return sum(sample.image is None for sample in self.grouped.samples)


def index_shard(url: str, *, fast: bool = False, group: GroupConfig = BY_RULE) -> pa.Table:
    """Return the index of any WebDataset tar. Raises ShardError if the tar is damaged.

    `fast` reads tar headers only: key, offset and size are known, all else is null.
    """
    indexed = build_index(url, fast=fast, group=group)
    for fault in indexed.faults[:10]:
        log.warning("%s: sample %r at byte %d: %s", url, fault.key, fault.offset, fault.message)
    return indexed.table


def build_index(
    url: str, *, fast: bool = False, group: GroupConfig = BY_RULE, beside: Mapping[str, Facts] | None = None
) -> IndexedShard:
    """Index one tar and say what was odd in it; `beside` is what a table says of its keys.

    Raises ShardError if the tar is damaged.
    """
    by_offset: dict[int, Facts] = {}
    members: list[TarMember] = []
    with Windows(url, hashing=not fast) as windows:
        if not fast:
            expect(bytes=windows.size)
        for member in beat_bytes(windows, iterate_members(windows, with_links=True)):
            members.append(member)
            beat(members=1)
            facts = None if fast else read_member(windows, member)
            if facts is not None:
                by_offset[member.offset] = facts
        sha256 = None if fast else windows.sha256()
        num_bytes = windows.size
    grouped = group_members(members, group)
    samples = [sample for sample in grouped.samples if sample.image is not None]
    tabled = beside or {}
    joined = [Facts() if fast else join_facts(sample, by_offset, tabled.get(sample.key)) for sample in samples]
    rows = [_row(sample, facts, shard_name(url), fast) for sample, facts in zip(samples, joined, strict=True)]
    left_out = Counter(name for facts in joined for name in facts.left_out)
    names = Counter(name for facts in joined for name in facts.extras)
    kept = {LABEL_TEXT, *(name for name, _ in names.most_common(MAX_EXTRAS))}
    left_out.update({name: count for name, count in names.items() if name not in kept})
    extras, arrays = extras_table([{n: v for n, v in facts.extras.items() if n in kept} for facts in joined])
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    for name, array in zip(extras, arrays, strict=True):
        table = table.append_column(name, array)
    return IndexedShard(
        table=table,
        extras=extras,
        left_out=dict(sorted(left_out.items())),
        grouped=grouped,
        faults=tuple(
            Fault(sample.key, offset, message)
            for sample, facts in zip(samples, joined, strict=True)
            for offset, message in facts.faults
        ),
        num_bytes=num_bytes,
        sha256=sha256,
    )


def shard_name(url: str) -> str:
    """Return the name of a shard: its file name without `.tar`."""
    return urlpath.basename(url).removesuffix(".tar")


def sample_uid(caption: str | None, url: str | None, *, shard: str, key: str) -> str:
    """Return the uid: md5 of caption + url as DataComp defines it; of shard + "/" + key where there is neither."""
    text = f"{shard}/{key}" if caption is None and url is None else (caption or "") + (url or "")
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _row(sample: SampleMembers, facts: Facts, shard: str, fast: bool) -> dict[str, Any]:
    assert sample.image is not None
    row = {"key": sample.key, "offset": sample.image.offset, "size": sample.image.size, **facts.values}
    if LABEL_TEXT in row:
        facts.extras[LABEL_TEXT] = row.pop(LABEL_TEXT)
    if not fast:
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
    return parse_index_part(data, url, None)[0]


def parse_index_part(data: bytes, url: str, columns: Sequence[str] | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Return those of `columns` that an index has, and the names of all it has. Raises ShardError as `parse_index`."""
    try:
        reader = ParquetReader(data, url)
        table = reader.read(columns)
    except ValueError as error:
        raise ShardError(str(error).removeprefix(f"{url}: "), shard=url) from error
    schema = reader.schema
    missing = [name for name in INDEX_SCHEMA.names if name not in schema.names]
    if missing:
        raise ShardError(f"not a shard index: it lacks the columns {', '.join(missing)}", shard=url)
    wrong = [field.name for field in INDEX_SCHEMA if schema.field(field.name).type != field.type]
    if wrong:
        raise ShardError(f"not a shard index: the columns {', '.join(wrong)} have other types", shard=url)
    return table, tuple(schema.names)

"""What is recorded of a raw shard's files, and whether they are still the files it was recorded of.

Our own shards are recorded by their commit record, those of img2dataset by `foreign.json` when a job adopts them. Jobs
of before 2026-12 recorded rows only: their files are read all the same, and a warning says that nobody checked them.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.shards.errors import ShardError
from headrace.text import shown

log = logging.getLogger(__name__)

BEGUN = "begun_sha256"
"""Entry of a record whose table was rewritten by a take-down."""
RECORD_SCHEMA = 2
"""Of a record that holds sums; records without a schema hold rows only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What one raw shard held when it was finished; None: not recorded."""

    place: str
    """Where the record is, for messages."""
    advice: str
    """What to do if the files are others."""
    folder: str
    """Where the files are."""
    own: bool
    """False if somebody else made them."""
    rows: int | None = None
    successes: int | None = None
    table_bytes: int | None = None
    table_sha256: str | None = None
    tar_bytes: int | None = None
    key_prefix: str = ""
    """What every key begins with; empty for the tables of others."""
    begun_sha256: str | None = None
    """Of the table before rows of it were taken down: what ledgers that follow from it are named by."""

    @property
    def has_sums(self) -> bool:
        """True if the files can be checked."""
        return self.table_sha256 is not None

    @property
    def fixes_images(self) -> bool:
        """True if the table knows the sum of every image in the tar: we stored them, and the table is checked."""
        return self.has_sums and bool(self.key_prefix)


def parse_record(
    record: Mapping[str, Any], *, place: str, advice: str, folder: str, own: bool, key_prefix: str = ""
) -> Recorded:
    """Read a record of either schema. Raises ValueError that names the record if it is damaged."""
    schema = record.get("schema")
    if schema is None:
        return Recorded(
            place=place,
            advice=advice,
            folder=folder,
            own=own,
            rows=_number(record, "count", place, required=False),
            successes=_number(record, "successes", place, required=False),
            begun_sha256=record.get(BEGUN),
        )
    if schema != RECORD_SCHEMA:
        raise ValueError(f"{place}: record of schema {shown(schema)}, this headrace reads schema {RECORD_SCHEMA}")
    table, tar = _mapping(record, "table", place), _mapping(record, "tar", place)
    sha256 = table.get("sha256")
    if not isinstance(sha256, str) or len(sha256) != 64:
        raise ValueError(f"{place}: damaged: table.sha256 is {shown(sha256)}, expected 64 hexadecimal digits")
    return Recorded(
        place=place,
        advice=advice,
        folder=folder,
        own=own,
        rows=_number(record, "count", place),
        successes=_number(record, "successes", place),
        table_bytes=_number(table, "bytes", place),
        table_sha256=sha256,
        tar_bytes=_number(tar, "bytes", place),
        key_prefix=key_prefix,
        begun_sha256=record.get(BEGUN),
    )


def read_json(url: str) -> dict[str, Any]:
    """Return a JSON file that holds a mapping. Raises ValueError that names it if it is missing or damaged."""
    try:
        record = json.loads(files.read_bytes(url))
    except FileNotFoundError as error:
        raise ValueError(f"{url} is missing; restore it") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url}: damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{url}: damaged: expected a mapping, got {type(record).__name__}")
    return record


def _mapping(record: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any]:
    value = record.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: damaged: {name} is {shown(value)}, expected a mapping")
    return value


def _number(record: Mapping[str, Any], name: str, place: str, *, required: bool = True) -> int | None:
    value = record.get(name)
    if type(value) is int and value >= 0:
        return value
    if not required and name not in record:
        return None
    raise ValueError(f"{place}: damaged: {name} is {shown(value)}, expected a number of rows or bytes")


def check_table_bytes(data: bytes, url: str, recorded: Recorded) -> None:
    """Raise ShardError unless `data` is the recorded table."""
    if not recorded.has_sums:
        _warn_unchecked(url.rpartition("/")[0])
        return
    sha256 = hashlib.sha256(data).hexdigest()
    if (len(data), sha256) != (recorded.table_bytes, recorded.table_sha256):
        raise ShardError(
            f"not the table that was finished: {len(data)} bytes with sha256 {sha256[:12]}, {recorded.place} says "
            f"{recorded.table_bytes} with {str(recorded.table_sha256)[:12]}; {recorded.advice}",
            shard=url,
        )


def check_rows(table: pa.Table, url: str, recorded: Recorded) -> None:
    """Raise ShardError if a table holds other rows than recorded."""
    if recorded.rows is not None and table.num_rows != recorded.rows:
        raise ShardError(f"{table.num_rows} rows, {recorded.place} says {recorded.rows}; {recorded.advice}", shard=url)
    if recorded.successes is not None:
        found = pc.sum(pc.equal(table["status"], "success")).as_py() or 0
        if found != recorded.successes:
            raise ShardError(
                f"{found} images, {recorded.place} says {recorded.successes}; {recorded.advice}", shard=url
            )
    if recorded.key_prefix and table.num_rows:
        own = pc.all(pc.starts_with(table["key"], recorded.key_prefix), min_count=0).as_py()
        if not own:
            raise ShardError(f"keys of another raw shard than {recorded.key_prefix}; {recorded.advice}", shard=url)


def check_tar_size(url: str, recorded: Recorded) -> None:
    """Raise ShardError if a tar has another size than recorded, FileNotFoundError if it is missing."""
    try:
        size = files.size_of(url)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is missing; {recorded.advice}") from error
    if recorded.tar_bytes is not None and size != recorded.tar_bytes:
        raise ShardError(f"{size} bytes, {recorded.place} says {recorded.tar_bytes}; {recorded.advice}", shard=url)


@cache
def _warn_unchecked(folder: str) -> None:
    log.warning("%s: these raw shards were finished without sums of their tables; they are read unchecked", folder)

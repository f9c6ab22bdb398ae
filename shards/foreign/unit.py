"""Index one tar of others: the unit of work, its record, and whether an earlier one still holds."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.config import config_to_dict
from headrace.shards.columns import TYPES
from headrace.shards.commit import RECORD_FIELDS, commit, read_commit
from headrace.shards.dataset import foreign_commit_name
from headrace.shards.errors import ShardError
from headrace.shards.foreign.beside import read_beside
from headrace.shards.group import GroupConfig
from headrace.shards.index import INDEX_SCHEMA, IndexedShard, build_index, parse_index, shard_name
from headrace.shards.members import LABEL_TEXT
from headrace.shards.parquet import parquet_bytes
from headrace.text import shown

log = logging.getLogger(__name__)

INDEX_FOLDER = "index"
REJECTS_FOLDER = "rejects"

RECORD_VERSION = 2
"""1 did not say which members were left over; such an index is made again when `headrace index` runs."""

_FIELDS = {
    **RECORD_FIELDS,
    "name": str,
    "fast": bool,
    "version": int,
    "group": dict,
    "rule": str,
    "members": dict,
    "not_read": dict,
    "num_lost": int,
    "without_image": int,
    "num_rejects": int,
    "faults": list,
    "own_columns": dict,
    "columns": dict,
    "classes": list,
    "numbered": bool,
    "left_out": dict,
}

REJECTS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("indexed", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class TarUnit:
    """One tar to index."""

    url: str
    base: str
    """Where the index goes."""
    group: GroupConfig
    fast: bool
    rebuild: bool

    @property
    def folder(self) -> str:
        """Where the indexes of all tars lie."""
        return urlpath.join(self.base, INDEX_FOLDER)

    @property
    def name(self) -> str:
        """The tar, for messages."""
        return self.url

    @property
    def shard(self) -> str:
        """The shard's name."""
        return shard_name(self.url)


def index_tar(unit: TarUnit) -> dict[str, Any]:
    """Return the record of a tar's index, made now unless it is whole already; `{"damage": ...}` for a damaged tar."""
    found = None if unit.rebuild else _known(unit)
    if isinstance(found, dict):
        return found
    try:
        beside = None if unit.fast else read_beside(unit.url)
        indexed = build_index(unit.url, fast=unit.fast, group=unit.group, beside=beside)
    except ShardError as error:
        return {"damage": str(error)}
    record = _record(unit, indexed)
    replace_index(unit.folder, record, indexed.table, _rejects(indexed))
    if found is None:
        return record
    log.warning("%s: its index is made again: %s", unit.url, found)
    return {**record, "repaired": f"{unit.shard}: {found}"}


def replace_index(folder: str, record: dict[str, Any], table: pa.Table, rejects: pa.Table | None = None) -> None:
    """Write an index, put its sum into `record` and commit that; a kill in between leaves an index without record."""
    name = foreign_commit_name(record["name"])
    atomic.remove(urlpath.join(folder, "commits", f"{name}.json"))
    if rejects is not None:
        url = urlpath.join(folder, REJECTS_FOLDER, f"{record['name']}.parquet")
        if rejects.num_rows:
            atomic.write_atomic(url, parquet_bytes(rejects))
        else:
            atomic.remove(url)
    data = parquet_bytes(table)
    atomic.write_atomic(urlpath.join(folder, f"{record['name']}.parquet"), data)
    record["index_sha256"] = hashlib.sha256(data).hexdigest()
    commit(folder, name, record)


def _record(unit: TarUnit, indexed: IndexedShard) -> dict[str, Any]:
    table, grouped = indexed.table, indexed.grouped
    names = table[LABEL_TEXT].unique().drop_null().to_pylist() if LABEL_TEXT in table.column_names else []
    return {
        "version": RECORD_VERSION,
        "name": unit.shard,
        "num_samples": table.num_rows,
        "num_bytes": indexed.num_bytes,
        "sha256": indexed.sha256,
        "fast": unit.fast,
        "group": config_to_dict(unit.group),
        "rule": grouped.rule,
        "members": dict(sorted(grouped.count().items())),
        "not_read": dict(grouped.not_read),
        "num_lost": grouped.num_lost,
        "without_image": indexed.without_image,
        "num_rejects": len(grouped.unused) + len(indexed.faults),
        "faults": [[fault.key, fault.offset, fault.message] for fault in indexed.faults],
        "own_columns": indexed.extras,
        "columns": indexed.extras,
        "classes": sorted(names),
        "classes_sha256": None,
        "numbered": table["label"].null_count < table.num_rows,
        "left_out": indexed.left_out,
    }


def _rejects(indexed: IndexedShard) -> pa.Table:
    """Return what was left over of a tar, and what of its samples was not understood."""
    rows: list[dict[str, Any]] = [
        {"name": item.member.name, "offset": item.member.offset, "reason": item.reason, "indexed": False}
        for item in indexed.grouped.unused
    ]
    rows += [
        {"key": fault.key, "offset": fault.offset, "reason": "fault", "message": fault.message, "indexed": True}
        for fault in indexed.faults
    ]
    rows.sort(key=lambda row: int(row["offset"]))
    return pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)


def _known(unit: TarUnit) -> dict[str, Any] | str | None:
    """Return the record of an index that is whole, fits its tar and is no less than what is asked for.

    None where there is no such index yet; a text where there is one that lies, which says why.
    """
    try:
        record = read_commit(unit.folder, foreign_commit_name(unit.shard), fields=RECORD_FIELDS)
        if record.get("version") != RECORD_VERSION:
            return None
        record = read_commit(unit.folder, foreign_commit_name(unit.shard), fields=_FIELDS)
        _check_parts(record)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    if record["name"] != unit.shard:
        return f"its record is of shard {shown(record['name'])}"
    if record["num_bytes"] != files.size_of(unit.url) or (record["fast"] and not unit.fast):
        return None
    if record["group"] != config_to_dict(unit.group):
        return None
    return _what_is_wrong(unit, record) or record


def _check_parts(record: Mapping[str, Any]) -> None:
    """Raise ValueError if what stands inside the lists and mappings of a record is not what is written there."""
    counts = [value for name in ("members", "not_read", "left_out") for value in record[name].values()]
    kinds = [*record["own_columns"].values(), *record["columns"].values()]
    if not all(type(count) is int for count in counts):
        raise ValueError("damaged commit record: a count is no whole number")
    if not all(kind in TYPES for kind in kinds) or not all(isinstance(name, str) for name in record["classes"]):
        raise ValueError("damaged commit record: columns or classes of no known kind")
    if not all(
        isinstance(fault, list) and [type(part) for part in fault] == [str, int, str] for fault in record["faults"]
    ):
        raise ValueError("damaged commit record: a fault is not [key, offset, message]")


def _what_is_wrong(unit: TarUnit, record: Mapping[str, Any]) -> str | None:
    """Compare an index with its record."""
    url = urlpath.join(unit.folder, f"{unit.shard}.parquet")
    try:
        data = files.read_bytes(url)
    except FileNotFoundError:
        return "the index is missing"
    got = hashlib.sha256(data).hexdigest()
    if got != record["index_sha256"]:
        return f"sha256 of the index is {got}, its record says {record['index_sha256']}"
    try:
        table = parse_index(data, url)
    except ShardError as error:
        return error.detail
    if table.num_rows != record["num_samples"]:
        return f"the index has {table.num_rows} rows, its record says {record['num_samples']}"
    more = sorted(set(table.column_names) - set(INDEX_SCHEMA.names))
    if more != sorted(record["columns"]) or not set(record["own_columns"]) <= set(more):
        return "the index has other columns than its record says"
    if record["num_rejects"] and not files.exists(urlpath.join(unit.folder, REJECTS_FOLDER, f"{unit.shard}.parquet")):
        return "its list of rejects is missing"
    return None

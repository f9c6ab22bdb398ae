"""Give existing WebDataset tars an index and a manifest, so that `open_dataset` reads them as they are.

The tars are never touched and neither is anything beside them: indexes go to `index/NAME.parquet`, because img2dataset
keeps its own `NAME.parquet` there. A rerun keeps what is finished: an index that is whole, of a tar that still has its
size; `rebuild` makes all again.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace import files
from headrace.shards.commit import RECORD_FIELDS, commit, read_commit
from headrace.shards.dataset import (
    FOREIGN_LAYOUT,
    OWN_LAYOUT,
    SUMMARY_NAME,
    fast_not_held,
    foreign_commit_name,
    open_dataset,
)
from headrace.shards.errors import ShardError
from headrace.shards.index import build_index, parse_index, shard_name
from headrace.shards.parquet import parquet_bytes
from headrace.shards.units import INLINE, EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import clear_leftovers, write_manifest
from headrace.text import shown

log = logging.getLogger(__name__)

INDEX_FOLDER = "index"
_SHOWN_TARS = 20
_RECORD_FIELDS = {**RECORD_FIELDS, "name": str, "without_image": int, "faults": list, "fast": bool}


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How existing tars are indexed."""

    index_dir: str | None = None
    """Folder for the index; None = beside the tars."""
    fast: bool = False
    """Read tar headers only: no crc32, size of image, label or caption."""
    rebuild: bool = False
    """Index again what has an index."""


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What was indexed; `faults` are (shard, key, byte offset, message)."""

    num_shards: int
    num_samples: int
    without_image: int
    faults: tuple[tuple[str, str, int, str], ...]
    repaired: tuple[str, ...] = ()
    """Shards whose index was there and did not hold what its record says, with the reason; made again."""


@dataclass(frozen=True, slots=True)
class _Unit:
    tar: str
    base: str
    fast: bool
    rebuild: bool

    @property
    def name(self) -> str:
        return self.tar


def index_folder(
    folder: str,
    tars: Sequence[str],
    config: IndexConfig,
    *,
    engine: EngineConfig = INLINE,
    on_progress: OnProgress = no_progress,
) -> IndexSummary:
    """Index the named tars of one folder and write its manifest. Raises ShardError if a tar is damaged."""
    _check_not_ours(folder)
    base = config.index_dir or folder
    if engine.executor != "inline":
        files.check_shared(folder, base)
    units = [_Unit(files.join(folder, tar), base, config.fast, config.rebuild) for tar in tars]
    with files.only_writer(base):
        records = run_units(_index_one, units, engine, on_progress)
        _check_whole(records)
        clear_leftovers(base, INDEX_FOLDER, f"{INDEX_FOLDER}/commits")
        not_held = fast_not_held() if any(record["fast"] for record in records) else ()
        facts = {"recipe_digest": None, "layout": FOREIGN_LAYOUT, "not_held": list(not_held)}
        write_manifest(base, records, facts)
    return IndexSummary(
        num_shards=len(records),
        num_samples=sum(record["num_samples"] for record in records),
        without_image=sum(record["without_image"] for record in records),
        faults=tuple((record["name"], *fault) for record in records for fault in record["faults"]),
        repaired=tuple(record["repaired"] for record in records if "repaired" in record),
    )


def _index_one(work: _Unit) -> dict[str, Any]:
    url, base, fast, rebuild = work.tar, work.base, work.fast, work.rebuild
    name = shard_name(url)
    folder = files.join(base, INDEX_FOLDER)
    unit = foreign_commit_name(name)
    found = None if rebuild else _known(folder, unit, url, fast)
    if isinstance(found, dict):
        return found
    try:
        indexed = build_index(url, fast=fast)
    except ShardError as error:
        return {"damage": str(error)}
    index = parquet_bytes(indexed.table)
    files.remove(files.join(folder, "commits", f"{unit}.json"))
    files.write_atomic(files.join(folder, f"{name}.parquet"), index)
    record = {
        "name": name,
        "num_samples": indexed.table.num_rows,
        "num_bytes": indexed.num_bytes,
        "sha256": indexed.sha256,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "without_image": indexed.without_image,
        "faults": [[fault.key, fault.offset, fault.message] for fault in indexed.faults],
        "fast": fast,
    }
    commit(folder, unit, record)
    if found is None:
        return record
    log.warning("%s: its index is made again: %s", url, found)
    return {**record, "repaired": f"{name}: {found}"}


def _check_whole(records: Sequence[dict[str, Any]]) -> None:
    """Raise ShardError that names the damaged tars; the indexes of the others are there and stay."""
    damaged = [record["damage"] for record in records if "damage" in record]
    if len(damaged) == 1:
        raise ShardError(damaged[0])
    if damaged:
        more = f"; and {len(damaged) - _SHOWN_TARS} more" if len(damaged) > _SHOWN_TARS else ""
        raise ShardError(f"{len(damaged)} of {len(records)} tars are damaged: {'; '.join(damaged[:_SHOWN_TARS])}{more}")


def _known(folder: str, unit: str, url: str, fast: bool) -> dict[str, Any] | str | None:
    """Return the record of an index that is whole, fits its tar and is no less than what is asked for.

    None where there is no such index yet; a text where there is one that lies, which says why.
    """
    try:
        record = read_commit(folder, unit, fields=_RECORD_FIELDS)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    if record["name"] != shard_name(url):
        return f"its record is of shard {shown(record['name'])}"
    if record["num_bytes"] != files.size_of(url) or (record["fast"] and not fast):
        return None
    try:
        data = files.read_bytes(files.join(folder, f"{shard_name(url)}.parquet"))
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
    return record


def _check_not_ours(folder: str) -> None:
    for place in (folder, folder.rpartition("/")[0]):
        if not place or not files.exists(files.join(place, SUMMARY_NAME)):
            continue
        if open_dataset(place).layout == OWN_LAYOUT:
            raise ValueError(f"{place} is a dataset of headrace with an index already; nothing to do")

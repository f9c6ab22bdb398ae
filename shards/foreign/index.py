"""Give existing WebDataset tars an index and a manifest, so that `open_dataset` reads them as they are.

The tars are never touched and neither is anything beside them: indexes go to `index/NAME.parquet`, because img2dataset
keeps its own `NAME.parquet` there. The one thing a reader would get wrong: a finished index is kept on a rerun while
the tar's size is the same; `rebuild` makes it again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace import files
from headrace.shards.commit import commit, read_commit
from headrace.shards.dataset import FOREIGN_LAYOUT, OWN_LAYOUT, SUMMARY_NAME, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.index import build_index, parquet_bytes, shard_name
from headrace.shards.units import run_in_processes
from headrace.shards.write import clear_leftovers, write_manifest

INDEX_FOLDER = "index"
_SHOWN_TARS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How existing tars are indexed."""

    index_dir: str | None = None
    """Folder for the index; None = beside the tars."""
    fast: bool = False
    """Read tar headers only: no crc32, size of image, label or caption."""
    rebuild: bool = False
    """Index again what has an index."""
    workers: int = 1
    """Processes."""


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What was indexed; `faults` are (shard, key, byte offset, message)."""

    num_shards: int
    num_samples: int
    without_image: int
    faults: tuple[tuple[str, str, int, str], ...]


def index_folder(
    folder: str, tars: Sequence[str], config: IndexConfig, on_progress: Callable[[int, int], None] | None = None
) -> IndexSummary:
    """Index the named tars of one folder and write its manifest. Raises ShardError if a tar is damaged."""
    _check_not_ours(folder)
    base = config.index_dir or folder
    if config.workers > 1:
        files.check_shared(folder, base)
    work = [(files.join(folder, tar), base, config.fast, config.rebuild) for tar in tars]
    with files.only_writer(base):
        records = run_in_processes(_index_one, work, workers=config.workers, on_progress=on_progress)
        _check_whole(records)
        clear_leftovers(base, INDEX_FOLDER, f"{INDEX_FOLDER}/commits")
        write_manifest(base, records, {"recipe_digest": None, "layout": FOREIGN_LAYOUT})
    return IndexSummary(
        num_shards=len(records),
        num_samples=sum(record["num_samples"] for record in records),
        without_image=sum(record["without_image"] for record in records),
        faults=tuple((record["name"], *fault) for record in records for fault in record["faults"]),
    )


def _index_one(work: tuple[str, str, bool, bool]) -> dict[str, Any]:
    url, base, fast, rebuild = work
    name = shard_name(url)
    folder = files.join(base, INDEX_FOLDER)
    unit = hashlib.sha256(name.encode()).hexdigest()[:32]  # a foreign name may hold what a record's may not
    known = None if rebuild else _known(folder, unit, url, fast)
    if known is not None:
        return known
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
    return record


def _check_whole(records: Sequence[dict[str, Any]]) -> None:
    """Raise ShardError that names the damaged tars; the indexes of the others are there and stay."""
    damaged = [record["damage"] for record in records if "damage" in record]
    if len(damaged) == 1:
        raise ShardError(damaged[0])
    if damaged:
        more = f"; and {len(damaged) - _SHOWN_TARS} more" if len(damaged) > _SHOWN_TARS else ""
        raise ShardError(f"{len(damaged)} of {len(records)} tars are damaged: {'; '.join(damaged[:_SHOWN_TARS])}{more}")


def _known(folder: str, unit: str, url: str, fast: bool) -> dict[str, Any] | None:
    """Return the record of an index that still fits its tar and is no less than what is asked for."""
    try:
        record = read_commit(folder, unit)
    except FileNotFoundError:
        return None
    fits = record.get("num_bytes") == files.size_of(url) and (fast or not record.get("fast"))
    return record if fits else None


def _check_not_ours(folder: str) -> None:
    for place in (folder, folder.rpartition("/")[0]):
        if not place or not files.exists(files.join(place, SUMMARY_NAME)):
            continue
        if open_dataset(place).layout == OWN_LAYOUT:
            raise ValueError(f"{place} is a dataset of headrace with an index already; nothing to do")

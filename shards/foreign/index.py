"""Give existing WebDataset tars an index and a manifest, so that `open_dataset` reads them as they are.

The tars are never touched and neither is anything beside them: indexes go to `index/NAME.parquet`, because img2dataset
keeps its own `NAME.parquet` there. A rerun keeps what is finished: an index that is whole, of a tar that still has its
size; `rebuild` makes all again.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace import urlpath
from headrace.config import config_to_dict
from headrace.lease import only_writer
from headrace.shards.dataset import fast_not_held, layout_of
from headrace.shards.errors import ShardError
from headrace.shards.foreign.settle import Agreement, SettleUnit, agree_on, settle_index
from headrace.shards.foreign.unit import INDEX_FOLDER, REJECTS_FOLDER, TarUnit, index_tar
from headrace.shards.group import BY_RULE, GroupConfig
from headrace.shards.manifest import FOREIGN_LAYOUT, OWN_LAYOUT
from headrace.shards.units import INLINE, EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import clear_leftovers, write_manifest

log = logging.getLogger(__name__)

_SHOWN_TARS = 20
# Below this, one odd member is over any rate.
_JUDGED_FROM = 100
CHOOSE_MEMBERS = "say which member is the image (--image-extension) or where keys end (--keys)"
_USED = ("image", "text", "not-read")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How existing tars are indexed."""

    index_dir: str | None = None
    """Folder for the index; None = beside the tars."""
    fast: bool = False
    """Read tar headers only: no crc32, size of image, label or caption."""
    rebuild: bool = False
    """Index again what has an index."""
    group: GroupConfig = BY_RULE
    """How members become samples."""
    max_unused: float = 0.01
    """Share of samples and images that may be left over: images beside the first of a sample, keys without any."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_unused <= 1:
            raise ValueError(f"max_unused must be 0 to 1, got {self.max_unused}")


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What was indexed; `faults` are (shard, key, byte offset, message)."""

    num_shards: int
    num_samples: int
    without_image: int
    faults: tuple[tuple[str, str, int, str], ...]
    repaired: tuple[str, ...]
    """Shards whose index was there and did not hold what its record says, with the reason; made again."""
    rules: dict[str, int]
    """Tars by the rule of their keys."""
    members: dict[str, int]
    """Members of all tars by what became of them; `image` and `text` are those of samples."""
    not_read: dict[str, int]
    """Members by extensions that are not read."""
    left_out: dict[str, int]
    """Entries of `.json` members that became no column."""
    columns: tuple[str, ...]
    """Columns beyond those of every index."""
    classes: tuple[str, ...]
    unnumbered: int
    """Distinct labels that are text and got no number."""
    rejects: str | None
    """Folder of the lists that name what was left over; None if nothing was."""


def index_folder(
    folder: str,
    tars: Sequence[str],
    config: IndexConfig,
    *,
    engine: EngineConfig = INLINE,
    on_progress: OnProgress = no_progress,
) -> IndexSummary:
    """Index the named tars of one folder and write its manifest.

    Raises ShardError if a tar is damaged, if more is left over than `max_unused` allows, or if there is no sample,
    unless it allows that too.
    """
    _check_not_ours(folder)
    base = config.index_dir or folder
    if engine.executor != "inline":
        urlpath.check_shared(folder, base)
    work = [TarUnit(urlpath.join(folder, tar), base, config.group, config.fast, config.rebuild) for tar in tars]
    log.info("%s: index of %d tars begins", folder, len(tars))
    with only_writer(base):
        records = run_units(index_tar, work, engine, on_progress)
        _check_whole(records)
        repaired = tuple(record.pop("repaired") for record in records if "repaired" in record)
        _check_unused(folder, records, config.max_unused, urlpath.join(base, INDEX_FOLDER, REJECTS_FOLDER))
        if config.max_unused < 1:
            _check_any(folder, records, urlpath.join(base, INDEX_FOLDER, REJECTS_FOLDER))
        agreement = agree_on(records)
        records = _settle(work, records, agreement, engine)
        clear_leftovers(base, INDEX_FOLDER, f"{INDEX_FOLDER}/commits", f"{INDEX_FOLDER}/{REJECTS_FOLDER}")
        write_manifest(base, records, _facts(records, agreement, config))
    summary = _summary(records, agreement, base, repaired)
    log.info("%s: index of %d tars ends: %d samples", folder, len(tars), summary.num_samples)
    return summary


def _check_whole(records: Sequence[dict[str, Any]]) -> None:
    """Raise ShardError that names the damaged tars; the indexes of the others are there and stay."""
    damaged = [record["damage"] for record in records if "damage" in record]
    if len(damaged) == 1:
        raise ShardError(damaged[0])
    if damaged:
        more = f"; and {len(damaged) - _SHOWN_TARS} more" if len(damaged) > _SHOWN_TARS else ""
        raise ShardError(f"{len(damaged)} of {len(records)} tars are damaged: {'; '.join(damaged[:_SHOWN_TARS])}{more}")


def _check_unused(folder: str, records: Sequence[dict[str, Any]], max_unused: float, rejects: str) -> None:
    """Raise ShardError if more samples or images were left over than declared."""
    lost = sum(record["num_lost"] for record in records)
    check_budget(
        lost,
        lost + sum(record["num_samples"] for record in records),
        max_unused,
        where=f"{folder}: {_reasons(records)}, named in {rejects}",
        remedy=CHOOSE_MEMBERS,
    )


def _check_any(folder: str, records: Sequence[dict[str, Any]], rejects: str) -> None:
    """Raise ShardError if no tar holds a sample: there is nothing to stream, whatever the reasons."""
    if any(record["num_samples"] for record in records):
        return
    reasons = _reasons(records)
    told = f"{reasons}, named in {rejects}" if reasons else "no files in them"
    raise ShardError(
        f"{folder}: no sample in {len(records)} tars: {told}; an image is named KEY.jpg, KEY.png, ... "
        "(--max-unused 1 allows it)"
    )


def check_budget(lost: int, total: int, max_unused: float, *, where: str, remedy: str) -> None:
    """Raise ShardError if `lost` of `total` is over the share; under 100, if it is half of them or more."""
    over = lost > max_unused * total and (total >= _JUDGED_FROM or 2 * lost >= total)
    if over:
        raise ShardError(
            f"{where}: {lost} of {total} samples or images would be left out, over --max-unused {max_unused:g}; "
            f"{remedy}, or allow more"
        )


def _reasons(records: Sequence[dict[str, Any]]) -> str:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({name: count for name, count in record["members"].items() if name not in _USED})
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _settle(
    tars: Sequence[TarUnit], records: Sequence[dict[str, Any]], agreement: Agreement, engine: EngineConfig
) -> list[dict[str, Any]]:
    """Write again the indexes that are not as agreed; return the records of all."""
    pairs = zip(tars, records, strict=True)
    units = [SettleUnit(tar, record, agreement) for tar, record in pairs if not agreement.fits(record)]
    settled = {record["name"]: record for record in run_units(settle_index, units, engine)}
    return [settled.get(record["name"], record) for record in records]


def _facts(records: Sequence[dict[str, Any]], agreement: Agreement, config: IndexConfig) -> dict[str, Any]:
    """Return what dataset.json says beside the totals."""
    fast = any(record["fast"] for record in records)
    return {
        "recipe_digest": None,
        "layout": FOREIGN_LAYOUT,
        "not_held": [*fast_not_held(), *agreement.columns] if fast else [],
        "classes": list(agreement.classes),
        "columns": agreement.columns,
        "group": config_to_dict(config.group),
        "members": _added(records, "members"),
        "not_read": _added(records, "not_read"),
    }


def _summary(
    records: Sequence[dict[str, Any]], agreement: Agreement, base: str, repaired: tuple[str, ...]
) -> IndexSummary:
    some = any(record["num_rejects"] for record in records)
    return IndexSummary(
        num_shards=len(records),
        num_samples=sum(record["num_samples"] for record in records),
        without_image=sum(record["without_image"] for record in records),
        faults=tuple((record["name"], *fault) for record in records for fault in record["faults"]),
        repaired=repaired,
        rules=dict(Counter(record["rule"] for record in records)),
        members=_added(records, "members"),
        not_read=_added(records, "not_read"),
        left_out=_added(records, "left_out"),
        columns=tuple(agreement.columns),
        classes=agreement.classes,
        unnumbered=agreement.unnumbered,
        rejects=urlpath.join(base, INDEX_FOLDER, REJECTS_FOLDER) if some else None,
    )


def _added(records: Sequence[dict[str, Any]], field: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record[field])
    return dict(sorted(counts.items()))


def _check_not_ours(folder: str) -> None:
    for place in (folder, folder.rpartition("/")[0]):
        if place and layout_of(place) == OWN_LAYOUT:
            raise ValueError(
                f"{place} is a dataset of headrace with an index already; nothing to do: name it, not its tars"
            )

"""Compare what curation did with what was planted: one row a kind.

A fault counts as found only if a step that is meant for it dropped it (or, for faces and metadata, if the built bytes
show it). The one thing a reader would get wrong: dropped by another step is not found; such rows are listed as missed.
"""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from headrace.demo.encode import QUARTER_TURNS
from headrace.demo.scenes import Pixels
from headrace.demo.web import BLURRED, CLEANED, Entry
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.parquet import read_table
from headrace.shards.payloads import read_sample

DUPLICATE_STEPS = ("exact_duplicates", "near_duplicates")
# Gradients inside a blurred face against those before; a face that was re-encoded only keeps about all of them.
MAX_BLURRED_SHARE = 0.5
# Mean difference to the planted picture, of 255: JPEG at quality 90 stays under 6, another turn or picture is over 20.
MAX_DIFFERENCE = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one entry."""

    kept: bool
    by: str
    """The step that dropped it, `fetch:REASON` for a failed fetch; empty if kept."""
    good: bool
    """True if this is what should have become of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    kind: str
    planted: int
    found: int
    missed: int
    wrongly_dropped: int
    near_misses: int
    """Rows of this kind that look like the fault and must survive."""


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """One sample of the curated dataset."""

    data: bytes
    orientation: int


def read_ledger(url: str) -> dict[str, tuple[bool, str]]:
    """Return (kept, by) of every URL. Raises ValueError if one has two rows."""
    columns = ["url", "kept", "step", "reason"]
    result: dict[str, tuple[bool, str]] = {}
    for row in read_table(url, columns).to_pylist():
        if row["url"] in result:
            raise ValueError(f"{url}: {row['url']} has two rows; expected one row for every input row")
        by = "" if row["kept"] else f"fetch:{row['reason']}" if row["step"] == "fetch" else str(row["step"])
        result[row["url"]] = bool(row["kept"]), by
    return result


def read_built(dataset_url: str, urls: Iterable[str]) -> tuple[dict[str, Built], int]:
    """Return those of `urls` that are in the dataset, and the number of its samples."""
    wanted = set(urls)
    dataset = open_dataset(dataset_url)
    found: dict[str, Built] = {}
    for shard in range(len(dataset.shards)):
        found.update(_built_of_shard(dataset, shard, wanted))
    return found, dataset.num_samples


def _built_of_shard(dataset: Dataset, shard: int, wanted: set[str]) -> dict[str, Built]:
    index = dataset.index(shard).select(["url", "orientation"]).to_pylist()
    return {
        row["url"]: Built(read_sample(dataset, shard, place), int(row["orientation"] or 1))
        for place, row in enumerate(index)
        if row["url"] in wanted
    }


def judge(
    entries: Iterable[tuple[str, Entry]], ledger: Mapping[str, tuple[bool, str]], built: Mapping[str, Built]
) -> dict[str, Verdict]:
    """Return the verdict of every (url, entry)."""
    pairs = list(entries)
    outcomes = {url: ledger.get(url, (False, "not in the ledger")) for url, _ in pairs}
    _settle_groups(pairs, outcomes)
    return {url: Verdict(*outcomes[url], _is_good(entry, outcomes[url], built.get(url))) for url, entry in pairs}


def _settle_groups(pairs: list[tuple[str, Entry]], outcomes: dict[str, tuple[bool, str]]) -> None:
    """Of two that show one picture, either may be kept: if the copy was, exchange the two."""
    originals = {entry.group: url for url, entry in pairs if entry.group and not entry.fault}
    for url, entry in pairs:
        if not entry.group or not entry.fault:
            continue
        original = originals[entry.group]
        if outcomes[url][0] and outcomes[original][1] in DUPLICATE_STEPS:
            outcomes[url], outcomes[original] = outcomes[original], outcomes[url]


def _is_good(entry: Entry, outcome: tuple[bool, str], built: Built | None) -> bool:
    kept, by = outcome
    if not entry.fault:
        return kept
    if BLURRED in entry.found_by:
        return kept and built is not None and is_blurred(built, entry)
    if CLEANED in entry.found_by:
        return kept and built is not None and is_clean(built, entry)
    return by in entry.found_by


def is_blurred(built: Built, entry: Entry) -> bool:
    """True if the face lost its detail and the rest of the picture is as it was planted."""
    assert entry.pixels is not None  # planted with every face
    assert entry.face_box is not None
    seen = upright(built)
    if seen.shape != entry.pixels.shape:
        return False
    height, width = seen.shape[:2]
    x0, y0, x1, y1 = (round(value * side) for value, side in zip(entry.face_box, (width, height) * 2, strict=True))
    face = np.s_[y0:y1, x0:x1]
    return _detail(seen[face]) < MAX_BLURRED_SHARE * _detail(entry.pixels[face]) and _is_same(seen, entry)


def is_clean(built: Built, entry: Entry) -> bool:
    """True if nothing but the picture is left, and it stands as it was planted."""
    with Image.open(io.BytesIO(built.data)) as image:
        left = {"exif", "xmp", "XML:com.adobe.xmp", "comment", "Comment"} & set(image.info)
        if left or dict(image.getexif()) or b"taken at home" in built.data:
            return False
    return _is_same(upright(built), entry)


def upright(built: Built) -> Pixels:
    """Return the picture as the index says it stands."""
    with Image.open(io.BytesIO(built.data)) as image:
        stored = np.asarray(image.convert("RGB"))
    return np.rot90(stored, -QUARTER_TURNS.get(built.orientation, 0))


def _is_same(seen: Pixels, entry: Entry) -> bool:
    assert entry.pixels is not None
    if seen.shape != entry.pixels.shape:
        return False
    return float(np.abs(seen.astype(np.float32) - entry.pixels).mean()) < MAX_DIFFERENCE


def _detail(pixels: Pixels) -> float:
    grey = pixels.astype(np.float32).mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def table(entries: Iterable[tuple[str, Entry]], verdicts: Mapping[str, Verdict]) -> list[Row]:
    """Return one row a kind, pairs first, then by name. For kinds without a fault, to be kept is to be found."""
    by_kind: dict[str, list[tuple[Entry, Verdict]]] = {}
    for url, entry in entries:
        by_kind.setdefault(entry.kind, []).append((entry, verdicts[url]))
    rows = []
    for kind, items in by_kind.items():
        faults = [verdict.good for entry, verdict in items if entry.fault]
        others = [verdict.good for entry, verdict in items if not entry.fault]
        planted = faults or others
        rows.append(
            Row(
                kind=kind,
                planted=len(planted),
                found=sum(planted),
                missed=len(planted) - sum(planted),
                wrongly_dropped=len(others) - sum(others),
                near_misses=len(others) if faults else 0,
            )
        )
    return sorted(rows, key=lambda row: (row.kind not in ("true_pair", "wrong_caption"), row.kind))


def not_as_planted(entries: Iterable[tuple[str, Entry]], verdicts: Mapping[str, Verdict]) -> list[dict[str, Any]]:
    """Return what the table counts as missed or wrongly dropped, row by row."""
    return [
        {"url": url, "kind": entry.kind, "fault": entry.fault, "kept": verdict.kept, "dropped_by": verdict.by}
        for url, entry in entries
        if not (verdict := verdicts[url]).good
    ]

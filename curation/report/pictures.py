"""Thumbnails that may be shown: faces blurred, nothing unsafe.

A kept row's picture comes from the curated dataset, a dropped row's from the raw shard with its face boxes blurred
here. Where it is not known that a picture is harmless (no face boxes, no score where the recipe removes unsafe images),
it is not shown.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from headrace.curation.blur import blur_boxes
from headrace.curation.build.inputs import load_raw_shard
from headrace.curation.ledger import Decision, dataset_key
from headrace.curation.select.steps import step_of
from headrace.shards.dataset import Dataset
from headrace.shards.errors import ShardError
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import ImageHeader
from headrace.shards.payloads import check_crc, read_payloads

THUMBNAIL_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture that may be shown, and the captions and URL that came with it."""

    data: bytes
    caption: str
    url: str
    more: tuple[str, ...] = ()
    """Captions behind the first."""


def thumbnail(pixels: NDArray[np.uint8], pixels_per_side: int) -> bytes:
    """Return a small JPEG of upright RGB pixels, its longer side at most `pixels_per_side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((pixels_per_side, pixels_per_side), Image.Resampling.LANCZOS)
    output = io.BytesIO()
    image.save(output, "JPEG", quality=THUMBNAIL_QUALITY)
    return output.getvalue()


class Pictures:
    """Finds thumbnails of ledger rows and of dataset rows; None for what may not or cannot be shown."""

    def __init__(
        self, decision: Decision | None, dataset: Dataset | None, pixels_per_side: int, *, all_shown: bool = False
    ) -> None:
        """Take what there is; `all_shown` shows pictures whose faces nobody looked for, too."""
        load_raw_shard.cache_clear()
        _index.cache_clear()
        self._job = None if decision is None else decision.job
        self._steps = {} if decision is None else {step.name: step_of(step) for step in decision.summary.steps}
        self._annotations = () if decision is None else tuple(decision.annotation_folders().items())
        self._dataset = dataset
        self._pixels_per_side = pixels_per_side
        self._all_shown = all_shown
        self._shard_numbers = {shard.name: number for number, shard in enumerate(dataset.shards)} if dataset else {}

    def of_ledger_row(self, row: Mapping[str, Any]) -> Thumbnail | None:
        """Return the thumbnail of a ledger row: as published if it was, from the raw shard if it was dropped."""
        if row["kept"]:
            key = row["out_key"] if "out_key" in row else dataset_key(row["out_shard"], row["out_index"])
            return self.of_sample(row["out_shard"], key)
        step = self._steps.get(row["step"])
        if step is None or not step.shows_dropped:
            return None
        return self._of_raw(row["raw_shard"], row["key"])

    def of_any_row(self, row: Mapping[str, Any]) -> Thumbnail | None:
        """Return the thumbnail of a row from its raw shard, so that rows beside each other are read together."""
        if "out_key" in row:
            return self.of_sample(row["out_shard"], row["out_key"])
        step = self._steps.get(row["step"])
        if row["step"] is not None and (step is None or not step.shows_dropped):
            return None
        found = self._of_raw(row["raw_shard"], row["key"])
        return self.of_ledger_row(row) if found is None and row["kept"] else found

    def of_sample(self, shard: str, key: str) -> Thumbnail | None:
        """Return the thumbnail of one sample of the dataset."""
        if self._dataset is None or shard not in self._shard_numbers:
            return None
        number = self._shard_numbers[shard]
        table, places = _index(self._dataset, number)
        if key not in places:
            return None
        row = table.slice(places[key], 1).to_pylist()[0]
        # A dataset built without blurring, or without looking for faces, is published that way, but not shown here.
        known = row.get("num_faces") is not None and row["num_faces"] <= (row.get("faces_blurred") or 0)
        if not known and not self._all_shown:
            return None
        url = self._dataset.tar_url(number)
        try:
            (data,) = read_payloads(url, [(row["offset"], row["size"])])
            check_crc(data, row["crc32"], url=url, key=key, offset=row["offset"])
            pixels = decode_rgb(
                data, header=ImageHeader(row["format"], row["width"], row["height"], row["orientation"])
            )
        except ValueError:
            return None
        return self._made(pixels, row)

    def _of_raw(self, shard: str, key: str) -> Thumbnail | None:
        if self._job is None:
            return None
        try:
            raw = load_raw_shard(self._job, shard, self._annotations)
        except FileNotFoundError:
            # Raw tars are often deleted once the dataset is built; the numbers need none of them.
            return None
        facts = raw.facts(key)
        if facts is None or (facts.get("face_boxes") is None and not self._all_shown):
            return None
        if not all(step.may_show(facts) for step in self._steps.values()):
            return None
        try:
            (data,) = raw.read([key])
            boxes = [box for name in ("face_boxes", *raw.hidden()) for box in facts.get(name) or ()]
            pixels = blur_boxes(decode_rgb(data or b""), boxes)
        except (ValueError, ShardError):
            return None
        return self._made(pixels, facts)

    def _made(self, pixels: NDArray[np.uint8], facts: Mapping[str, Any]) -> Thumbnail:
        data = thumbnail(pixels, self._pixels_per_side)
        held = facts.get("captions")
        more = tuple(text for text in held[1:] if isinstance(text, str)) if isinstance(held, list) else ()
        return Thumbnail(data, facts.get("caption") or "", facts.get("url") or "", more)


@lru_cache(maxsize=8)
def _index(dataset: Dataset, number: int) -> tuple[pa.Table, dict[str, int]]:
    table = dataset.index(number)
    return table, {key: row for row, key in enumerate(table["key"].to_pylist())}

"""A small finished job (raw shards, annotations, ledger) made from the contract's tables, for build and report."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.config import canonical_json
from headrace.curation.annotate.annotators.faces import FacesConfig
from headrace.curation.annotate.config import annotate_config
from headrace.curation.annotate.unit import write_annotations
from headrace.curation.build.config import BuildConfig
from headrace.curation.fetch.config import InputConfig
from headrace.curation.job import Job
from headrace.curation.ledger import (
    LEDGER_SCHEMA,
    Decision,
    LedgerSummary,
    StepSummary,
    digest_of,
    ledger_named,
    set_latest,
    write_ledger,
    write_summary,
)
from headrace.curation.recipe import Recipe
from headrace.curation.select.place import PlacementConfig
from headrace.curation.stages import decided_by
from headrace.shards.commit import commit
from headrace.shards.tar import ShardWriter
from headrace.shards.units import EngineConfig

cv2.setNumThreads(1)

RAW_SHARDS, ROWS_PER_SHARD = 3, 8
FACE = [0.25, 0.2, 0.6, 0.7]
SECRET = b"GPS 51.5007 N"
KINDS = ("JPEG", "JPEG", "PNG", "WEBP", "JPEG", "GIF", "BMP", "JPEG")
FORMATS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
ANNOTATION_TYPES: dict[str, dict[str, pa.DataType]] = {
    "hashes": {"sha256": pa.string(), "pdq": pa.binary(32), "pdq_quality": pa.int16()},
    "image": {
        "image_width": pa.int32(),
        "image_height": pa.int32(),
        "aspect": pa.float32(),
        "decode_error": pa.string(),
    },
    "caption": {"caption_chars": pa.int32(), "caption_words": pa.int32()},
    "clip": {"clip_score": pa.float32(), "clip_embedding": pa.list_(pa.float16())},
    "unsafe_image": {"unsafe_image_score": pa.float32()},
    "faces": {"num_faces": pa.int16(), "face_boxes": pa.list_(pa.list_(pa.float32()))},
}


def draw_image(number: int) -> bytes:
    """One picture with fine detail everywhere, an Exif block with a secret, and every fourth one on its side."""
    rng = np.random.default_rng(number)
    width, height = 96 + 8 * (number % 3), 72
    pixels = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif[0x0112] = 6 if number % 4 == 1 else 1
    output = io.BytesIO()
    kind = KINDS[number % len(KINDS)]
    options = {"exif": exif.tobytes()} if kind in ("JPEG", "PNG", "WEBP") else {}
    Image.fromarray(pixels).save(output, kind, **options)
    return output.getvalue()


def rows_of(number: int) -> dict[str, Any]:
    """Every column of one input row."""
    data = draw_image(number)
    shard, place = divmod(number, ROWS_PER_SHARD)
    caption, url = f"a picture, number {number} <b>&", f"http://host{number % 4}.test/{number}.img?a=1&b=<2>"
    failed = number % ROWS_PER_SHARD == 7 and shard == 1
    has_face = number % 3 == 0
    return {
        "data": data,
        "key": f"{shard:05d}{place:04d}",
        "uid": hashlib.md5((caption + url).encode()).hexdigest(),
        "url": url,
        "caption": caption,
        "status": "failed_to_download" if failed else "success",
        "error_class": "http-4xx" if failed else None,
        "error_message": "404 <script>alert(1)</script>" if failed else None,
        "width": 96 + 8 * (number % 3),
        "height": 72,
        "original_width": 96 + 8 * (number % 3),
        "original_height": 72,
        "format": FORMATS[KINDS[number % len(KINDS)]],
        "sha256": None if failed else hashlib.sha256(data).hexdigest(),
        "input_file": "urls.parquet",
        "input_row": 1000 - number,
        "source": f"source-{number % 2}",
        "pdq": hashlib.sha256(str(number).encode()).digest(),
        "pdq_quality": 90,
        "image_width": 72 if number % 4 == 1 and KINDS[number % 8] != "BMP" else 96 + 8 * (number % 3),
        "image_height": 72,
        "aspect": 1.4,
        "decode_error": None,
        "caption_chars": len(caption),
        "caption_words": 4,
        "clip_score": number / 30,
        "clip_embedding": [number / 64, 0.5],
        "unsafe_image_score": 0.9 if number == 5 else 0.1,
        "num_faces": int(has_face),
        "face_boxes": [FACE] if has_face else [],
        "num_regions": int(number % 4 == 1),
        "region_boxes": [[0.0, 0.7, 0.3, 1.0]] if number % 4 == 1 else [],
    }


RAW_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("key", "uid", "url", "caption", "status", "error_class", "error_message"), pa.string()),
    **dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int32()),
    **dict.fromkeys(("format", "sha256", "input_file"), pa.string()),
    "input_row": pa.int64(),
    "source": pa.string(),
}


def _table(rows: list[dict[str, Any]], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})


REGION_TYPES = {"num_regions": pa.int16(), "region_boxes": pa.list_(pa.list_(pa.float32()))}
STEP_SETTINGS: dict[str, dict[str, Any]] = {
    "unsafe": {"image_threshold": 0.5, "text_threshold": None},
    "rule": {"name": "rule", "keep": "true"},
    "top_fraction": {"score": "clip_score", "fraction": 0.8},
}


def _write_raw(job: Job, shard: int, rows: list[dict[str, Any]], regions: bool) -> None:
    folder = Path(job.raw)
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder / f"{shard:05d}.tar") as writer:
        for row in rows:
            if row["status"] == "success":
                meta = canonical_json({"url": row["url"]}).encode()
                writer.write(row["key"], {row["format"]: row["data"], "txt": row["caption"].encode(), "json": meta})
    pq.write_table(_table(rows, RAW_TYPES), folder / f"{shard:05d}.parquet")
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows)}))
    commit(job.raw, f"{shard:05d}", {"rows": len(rows)})
    for name, types in (ANNOTATION_TYPES | ({"regions": REGION_TYPES} if regions else {})).items():
        target = job.annotations(name, "0123456789abcdef")
        succeeded = [row for row in rows if row["status"] == "success"]
        write_annotations(target, f"{shard:05d}", _table(succeeded, {"key": pa.string(), **types}), {})


def _decision(row: dict[str, Any], number: int) -> dict[str, Any]:
    nothing = {"kept": False, "reason": None, "value": None, "threshold": None, "duplicate_of": None}
    if row["error_class"]:
        return {**nothing, "step": "fetch", "reason": row["error_class"]}
    if row["unsafe_image_score"] >= 0.5:
        return {**nothing, "step": "unsafe", "reason": "image", "value": row["unsafe_image_score"], "threshold": 0.5}
    if number in (20, 22):
        return {
            **nothing,
            "step": "near_duplicates",
            "reason": "near",
            "duplicate_of": rows_of(18)["uid"],
            "value": 4.0,
        }
    if row["clip_score"] < 0.1:
        return {**nothing, "step": "top_fraction", "reason": "below", "value": row["clip_score"], "threshold": 0.1}
    return {**nothing, "kept": True, "step": None}


def write_job_ledger(recipe: Recipe, *, drop: tuple[int, ...] = (), regions: bool = False) -> None:
    """Write the ledger of the small job; `drop` drops more rows, which makes it another ledger."""
    job, samples_per_shard = Job(recipe.job), recipe.placement.samples_per_shard
    rows = [rows_of(number) for number in range(RAW_SHARDS * ROWS_PER_SHARD)]
    decisions = [_decision(row, number) for number, row in enumerate(rows)]
    for number in drop:
        decisions[number] = {**decisions[number], "kept": False, "step": "rule", "reason": "rule"}
    # Any order will do, so long as output shards mix raw shards.
    kept = sorted((n for n, decision in enumerate(decisions) if decision["kept"]), key=lambda n: (n * 7) % 24)
    places = {number: divmod(place, samples_per_shard) for place, number in enumerate(kept)}
    ledger = []
    for number, (row, decision) in enumerate(zip(rows, decisions, strict=True)):
        out_shard, out_index = places.get(number, (None, None))
        place = {"out_shard": None if out_shard is None else f"{out_shard:05d}", "out_index": out_index}
        known = {name: row[name] for name in ("uid", "input_file", "input_row", "url", "key")}
        ledger.append({**known, "raw_shard": row["key"][:5], **decision, **place})
    inputs = digest_of({"drop": list(drop)})
    place = ledger_named(job, inputs)
    digest = write_ledger(place, [pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)])
    steps, remaining = [], len(rows)
    for name in ("fetch", "decode", "unsafe", "near_duplicates", "rule", "top_fraction"):
        reasons = [decision["reason"] for decision in decisions if decision["step"] == name]
        thresholds = {"unsafe": 0.5, "top_fraction": 0.1}
        step = StepSummary(
            name=name,
            step=name,
            settings=STEP_SETTINGS.get(name, {}),
            rows_in=remaining,
            dropped={reason: reasons.count(reason) for reason in sorted(set(reasons))},
            rows_out=remaining - len(reasons),
            threshold=thresholds.get(name),
        )
        remaining -= len(reasons)
        steps.append(step)
    summary = LedgerSummary(
        decided_by=decided_by(recipe),
        digest=digest,
        inputs=inputs,
        ledger_sha256=digest,
        rows=len(rows),
        kept=len(kept),
        out_shards=-(-len(kept) // samples_per_shard),
        samples_per_shard=samples_per_shard,
        annotations={name: f"{name}-01234567" for name in (*ANNOTATION_TYPES, *(("regions",) if regions else ()))},
        steps=steps,
    )
    write_summary(place, summary)
    set_latest(Decision(job, place, summary))


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Recipe]:
    """Return a function that writes the small job into a folder and returns its recipe."""

    def make(name: str = "job", *, workers: int = 0, **build: Any) -> Recipe:
        job, regions = Job(str(tmp_path / name)), bool(build.pop("regions", False))
        for shard in range(RAW_SHARDS):
            numbers = range(shard * ROWS_PER_SHARD, (shard + 1) * ROWS_PER_SHARD)
            _write_raw(job, shard, [rows_of(number) for number in numbers], regions)
        recipe = Recipe(
            job=job.url,
            unsafe_images="off",
            input=InputConfig(urls=("urls.parquet",)),
            annotate=annotate_config(faces=FacesConfig(detector="haar", accept_weak=True)),
            placement=PlacementConfig(samples_per_shard=build.pop("samples_per_shard", 5)),
            build=BuildConfig(**build),
            engine=EngineConfig(executor="local" if workers else "inline", workers=workers),
        )
        write_job_ledger(recipe, regions=regions)
        Path(job.url, "job.json").write_text('{"schema": 1}\n')
        return recipe

    return make


@pytest.fixture
def write_ledger_again() -> Callable[..., None]:
    """Return a function that replaces the small job's ledger by another one."""

    def write(recipe: Recipe, *, drop: tuple[int, ...] = ()) -> None:
        write_job_ledger(recipe, drop=drop)

    return write

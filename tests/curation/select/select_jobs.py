"""Jobs made of tables alone: raw shards and annotations with the contract's columns, no images."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.caption_minhash import signature
from headrace.curation.job import Job
from headrace.curation.ledger import LedgerSummary, latest_decision
from headrace.curation.select.database import Limits
from headrace.curation.select.load import find_inputs
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Selection, select_rows
from headrace.curation.select.steps import SelectStep
from headrace.shards.units import EngineConfig

RAW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error_class", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("input_file", pa.string()),
        ("input_row", pa.int64()),
    ]
)
ANNOTATIONS = {
    "image": pa.schema(
        [
            ("image_width", pa.int32()),
            ("image_height", pa.int32()),
            ("aspect", pa.float32()),
            ("decode_error", pa.string()),
        ]
    ),
    "hashes": pa.schema(
        [("sha256", pa.string()), ("pdq", pa.binary(32)), ("pdq_trimmed", pa.binary(32)), ("pdq_quality", pa.int16())]
    ),
    "quality": pa.schema(
        [
            ("file_bytes", pa.int64()),
            ("content_width", pa.int32()),
            ("content_height", pa.int32()),
            ("border", pa.float32()),
            ("colourfulness", pa.float32()),
            ("sharpness", pa.float32()),
            ("encoded_quality", pa.int16()),
            ("picture_quality", pa.int16()),
            ("earlier_quality", pa.int16()),
            ("moved_since", pa.float32()),
            ("fine_detail", pa.float32()),
        ]
    ),
    "caption": pa.schema([("caption_chars", pa.int32())]),
    "caption_minhash": pa.schema([("caption_minhash", pa.binary(256))]),
    "copy_embedding": pa.schema([("copy_embedding", pa.list_(pa.float16()))]),
    "clip": pa.schema([("clip_score", pa.float32())]),
    "unsafe_text": pa.schema([("unsafe_text_score", pa.float32())]),
    "unsafe_image": pa.schema([("unsafe_image_score", pa.float32())]),
}
Row = dict[str, Any]


def draw(seed: int, size: int = 200) -> NDArray[np.uint8]:
    """Return a picture with structure at several scales, so that its PDQ quality is high."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((size, size, 3), np.float32)
    for cells in (4, 9, 20):
        grid = rng.random((cells, cells, 3), np.float32)
        picture += cv2.resize(grid, (size, size), interpolation=cv2.INTER_NEAREST) / 3
    return (picture * 255).astype(np.uint8)


def hash_bytes(rng: np.random.Generator, count: int) -> list[bytes]:
    """Return random hashes."""
    return [row.tobytes() for row in rng.integers(0, 256, (count, 32), dtype=np.uint8)]


def flip_bits(data: bytes, bits: Sequence[int]) -> bytes:
    """Return a hash that differs in these bits."""
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def make_row(number: int, **values: Any) -> Row:
    """Return a successful row with every column of every annotator; `values` replace some."""
    row: Row = {
        "uid": f"{number:032x}",
        "url": f"http://host/{number}",
        "caption": f"caption {number}",
        "status": "success",
        "width": 100,
        "height": 100,
        "sha256": f"{number:064x}",
        "input_file": "list.parquet",
        "input_row": number,
        "image_width": 100,
        "image_height": 100,
        "aspect": 1.0,
        "pdq": bytes(32),
        "pdq_trimmed": bytes(32),
        "pdq_quality": 100,
        "file_bytes": 5000,
        "content_width": 100,
        "content_height": 100,
        "border": 0.0,
        "colourfulness": 30.0,
        "sharpness": 1.0,
        "encoded_quality": 90,
        "picture_quality": 90,
        "earlier_quality": 100,
        "moved_since": 0.0,
        "fine_detail": -3.0,
        "copy_embedding": [1.0, float(number)],
        "clip_score": 0.5,
        "unsafe_text_score": 0.0,
        "unsafe_image_score": 0.0,
    }
    caption = values.get("caption", row["caption"])
    return row | {"caption_chars": caption and len(caption), "caption_minhash": caption and signature(caption)} | values


def write_job(
    folder: Path, shards: Sequence[Sequence[Row]], *, annotators: Sequence[str] = tuple(ANNOTATIONS), carried: Any = ()
) -> Job:
    """Write raw shards and annotations of the rows; keys are the contract's."""
    schema = pa.schema([*RAW_SCHEMA, *carried])
    for number, rows in enumerate(shards):
        keyed = [{**row, "key": f"{number:05d}{place:04d}"} for place, row in enumerate(rows)]
        _write(folder / "raw" / f"{number:05d}.parquet", keyed, schema)
        (folder / "raw" / "commits").mkdir(exist_ok=True)
        (folder / "raw" / "commits" / f"{number:05d}.json").write_text("{}")
        succeeded = [row for row in keyed if row["status"] == "success"]
        for name in annotators:
            path = folder / "annotations" / f"{name}-00000000" / f"{number:05d}.parquet"
            # Hashes have a third column where a row has it, as those of today do.
            centre = name == "hashes" and any("pdq_centre" in row for row in succeeded)
            more = [("pdq_centre", pa.binary(32))] if centre else []
            _write(path, succeeded, pa.schema([("key", pa.string()), *ANNOTATIONS[name], *more]))
            commit_table(path)
    return Job(str(folder))


def commit_table(path: Path) -> None:
    """Write the commit record of an annotator's table, or one for its changed bytes."""
    (path.parent / "commits").mkdir(exist_ok=True)
    record = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (path.parent / "commits" / f"{path.stem}.json").write_text(json.dumps(record))


def _write(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema}
    pq.write_table(pa.table(columns, schema=schema), path)


def run(
    job: Job,
    steps: Sequence[SelectStep],
    *,
    placement: Placement | None = None,
    limits: Limits | None = None,
) -> LedgerSummary:
    """Run select over all annotations of a job."""
    folders = sorted((Path(job.url) / "annotations").iterdir())
    inputs = find_inputs(job, {path.name.split("-")[0]: str(path) for path in folders})
    placement = placement or Placement(seed=1, shuffle_window=2, samples_per_shard=3)
    selection = Selection(steps=tuple(steps), placement=placement)
    return select_rows(inputs, selection, limits=limits or Limits(threads=1), engine=EngineConfig(executor="inline"))


def ledger(job: Job) -> list[Mapping[str, Any]]:
    """Return the ledger's rows."""
    return list(pq.read_table(latest_decision(job).ledger.table).to_pylist())


def write_large_job(folder: Path, num_rows: int) -> Job:
    """Write a job column by column: a few sizes, five percent repeated bytes, one row in ten a near-duplicate."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (num_rows, 32), dtype=np.uint8)
    copies = rng.permutation(np.arange(num_rows // 2, num_rows))[: num_rows // 10]
    hashes[copies] = hashes[copies - num_rows // 2]
    hashes[copies, rng.integers(0, 32, copies.size)] ^= 5
    for number, start in enumerate(range(0, num_rows, 10_000)):
        rows = np.arange(start, min(start + 10_000, num_rows))
        size = rng.choice(np.array([50, 100, 200, 400], np.int32), rows.size, p=[0.1, 0.3, 0.3, 0.3])
        codes = np.where(rng.random(rows.size) < 0.05, rng.integers(0, num_rows, rows.size), rows)
        pdq = [item.tobytes() for item in hashes[rows]]
        columns: dict[str, Any] = {
            "key": [f"{number:05d}{row - start:04d}" for row in rows],
            "uid": [f"{row * 2654435761 % 2**32:032x}" for row in rows.tolist()],
            "url": [f"http://host/{row}" for row in rows],
            "status": ["success"] * rows.size,
            "width": size,
            "height": size,
            "image_width": size,
            "image_height": size,
            "sha256": [f"{code:064x}" for code in codes],
            "input_file": ["list.parquet"] * rows.size,
            "input_row": rows,
            "pdq": pdq,
            "pdq_trimmed": pdq,
            "pdq_quality": np.full(rows.size, 90, np.int16),
            "content_width": size,
            "content_height": size,
            "border": np.zeros(rows.size, np.float32),
            "colourfulness": np.full(rows.size, 30, np.float32),
            "sharpness": np.full(rows.size, 0.9, np.float32),
            "encoded_quality": np.full(rows.size, 90, np.int16),
            "picture_quality": 75 + (rows % 16).astype(np.int16),
            "earlier_quality": np.full(rows.size, 100, np.int16),
            "moved_since": np.zeros(rows.size, np.float32),
            "fine_detail": np.full(rows.size, -3, np.float32),
            "file_bytes": 1000 + rows,
            "clip_score": rng.normal(0.25, 0.05, rows.size).astype(np.float32),
        }
        _write_columns(folder / "raw" / f"{number:05d}.parquet", columns, RAW_SCHEMA, rows.size)
        (folder / "raw" / "commits").mkdir(exist_ok=True)
        (folder / "raw" / "commits" / f"{number:05d}.json").write_text("{}")
        for name in ("image", "hashes", "quality", "clip"):
            path = folder / "annotations" / f"{name}-00000000" / f"{number:05d}.parquet"
            _write_columns(path, columns, pa.schema([("key", pa.string()), *ANNOTATIONS[name]]), rows.size)
            commit_table(path)
    return Job(str(folder))


def _write_columns(path: Path, columns: Mapping[str, Any], schema: pa.Schema, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(size, field.type)
        for field in schema
    ]
    pq.write_table(pa.table(arrays, schema=schema), path)

"""The unit of work: one raw shard, all annotators that are not done for it.

Each image is read and decoded once for all of them. An annotator is done for a shard when its own commit record
exists, so a unit killed between two of them leaves the first one done.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, digest
from headrace.curation.annotate.batches import FetchedRow, batches_with_images, batches_without_images
from headrace.curation.annotate.config import AnnotateConfig, annotators
from headrace.curation.annotate.decode import error_class
from headrace.curation.job import Job
from headrace.curation.raw.read import check_raw_tar, raw_tar_url, read_raw, recorded_of
from headrace.curation.raw.schema import STORED_COLUMNS, stored_sha256
from headrace.shards.commit import commit
from headrace.shards.errors import ShardError
from headrace.shards.heartbeat import beat, expect
from headrace.shards.parquet import parquet_bytes


@dataclass(frozen=True, slots=True)
class AnnotateUnit:
    """One raw shard and the annotators to run, each with the digest its folder is named by."""

    job: Job
    shard: str
    digests: tuple[tuple[str, str], ...]
    config: AnnotateConfig

    @property
    def name(self) -> str:
        return f"annotate {self.shard}"


def annotate_shard(unit: AnnotateUnit) -> None:
    """Run the unit's annotators on its shard; write and commit each one's table."""
    known = annotators(unit.config)
    chosen = {name: known[name] for name, _ in unit.digests}
    for name, expected in unit.digests:
        _check_digest(chosen[name], expected)
    rows = _rows(unit)
    expect(images=len(rows))
    errors: Counter[str] = Counter()
    parts: dict[str, list[pa.Table]] = {name: [] for name in chosen}
    for batch in _batches(unit, rows, chosen):
        for error in batch.errors:
            if error is not None:
                errors[error_class(error)] += 1
                beat(failed=error_class(error))
        for name, annotator in chosen.items():
            parts[name].append(_table(annotator, batch))
        beat(images=len(batch.keys))
    if rows and errors["missing"] == len(rows):
        raise ShardError(
            f"holds none of the {len(rows)} images of its table; is it the tar of another shard?",
            shard=raw_tar_url(unit.job, unit.shard),
        )
    for name, expected in unit.digests:
        table = pa.concat_tables([_schema(chosen[name]).empty_table(), *parts[name]])
        found = dict(sorted(errors.items())) if chosen[name].needs_pixels else {}
        write_annotations(unit.job.annotations(name, expected), unit.shard, table, found)


def write_annotations(folder: str, shard: str, table: pa.Table, errors: Mapping[str, int]) -> None:
    """Write one annotator's table of one shard, then its commit record."""
    data = parquet_bytes(table)
    files.write_atomic(files.join(folder, f"{shard}.parquet"), data)
    record = {
        "bytes": len(data),
        "errors": dict(errors),
        "rows": len(table),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    commit(folder, shard, record)


def _check_digest(annotator: Annotator, expected: str) -> None:
    if digest(annotator) != expected:
        models = ", ".join(annotator.files().values()) or "none"
        raise ValueError(
            f"annotator {annotator.name}: this worker has another version of it, or other model files ({models}), than "
            "the run was planned with; do not change them during a run, and give every machine the same ones"
        )


def _rows(unit: AnnotateUnit) -> list[FetchedRow]:
    table = read_raw(unit.job, unit.shard).select(["key", "caption", "status", *STORED_COLUMNS])
    known = recorded_of(unit.job, unit.shard).fixes_images
    return [
        FetchedRow(row["key"], row["caption"], row["sha256"] or None, stored_sha256(row) if known else None)
        for row in table.to_pylist()
        if row["status"] == "success"
    ]


def _batches(unit: AnnotateUnit, rows: list[FetchedRow], chosen: Mapping[str, Annotator]) -> Iterator[AnnotationBatch]:
    if not any(annotator.needs_pixels for annotator in chosen.values()):
        return batches_without_images(rows, unit.config.batch_size)
    return _checked_batches(unit, rows)


def _checked_batches(unit: AnnotateUnit, rows: list[FetchedRow]) -> Iterator[AnnotationBatch]:
    recorded = check_raw_tar(unit.job, unit.shard)
    try:
        yield from batches_with_images(rows, raw_tar_url(unit.job, unit.shard), unit.config.batch_size)
    except ShardError as error:
        error.add_note(recorded.advice)
        raise


def _table(annotator: Annotator, batch: AnnotationBatch) -> pa.Table:
    columns = {"key": batch.keys, **annotator.annotate(batch)}
    return pa.Table.from_pydict(columns, schema=_schema(annotator))


def _schema(annotator: Annotator) -> pa.Schema:
    return pa.schema([pa.field("key", pa.string()), *annotator.columns])

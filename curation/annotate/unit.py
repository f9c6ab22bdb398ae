"""The unit of work: one raw shard, all annotators that are not done for it.

Each image is read and decoded once for all of them. An annotator is done for a shard when its own commit record
exists, so a unit killed between two of them leaves the first one done.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from headrace import atomic, urlpath
from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, digest
from headrace.curation.annotate.batches import FetchedRow, batches_with_images, batches_without_images
from headrace.curation.annotate.config import AnnotateConfig, annotators, versions
from headrace.curation.annotate.decode import error_class
from headrace.curation.annotate.threads import one_ahead, one_thread_each
from headrace.curation.job import Job
from headrace.curation.raw.read import check_raw_tar, raw_tar_url, read_raw, recorded_of, tar_of
from headrace.curation.raw.schema import STORED_COLUMNS, stored_sha256
from headrace.lease import NO_FENCE, Fence
from headrace.shards.commit import commit
from headrace.shards.errors import ShardError
from headrace.shards.heartbeat import beat, expect
from headrace.shards.parquet import parquet_bytes
from headrace.shards.resources import ONE_CPU, Resources


@dataclass(frozen=True, slots=True)
class AnnotateUnit:
    """One raw shard and the annotators to run, each with the digest its folder is named by."""

    job: Job
    shard: str
    digests: tuple[tuple[str, str], ...]
    config: AnnotateConfig
    decode_threads: int = 1
    """Threads that decode ahead; never changes the result."""
    resources: Resources = ONE_CPU
    """What the annotators take."""
    fence: Fence = NO_FENCE
    """Asked before each file is put in its place: another process may have taken rows down meanwhile."""

    @property
    def name(self) -> str:
        return f"annotate {self.shard}{' on a GPU' if self.resources.gpu != 'none' else ''}"

    def decoding_with(self, threads: int) -> "AnnotateUnit":
        """Return the same work with so many threads that decode ahead."""
        return replace(self, decode_threads=threads)


@dataclass(frozen=True, slots=True)
class Found:
    """What the annotators found in some rows of a shard."""

    tables: Mapping[str, pa.Table]
    """By annotator."""
    errors: Mapping[str, int]
    """Images that do not decode, by class."""
    num_rows: int


def find(unit: AnnotateUnit, start: int = 0, stop: int | None = None) -> Found:
    """Run the unit's annotators on its shard, or on the images [start, stop) among those that were fetched."""
    chosen = _chosen(unit)
    rows = _rows(unit)[start:stop]
    expect(images=len(rows))
    errors: Counter[str] = Counter()
    tables: dict[str, list[pa.Table]] = {name: [_schema(annotator).empty_table()] for name, annotator in chosen.items()}
    with_torch = any("torch" in annotator.needed_packages() for annotator in chosen.values())
    with one_thread_each(torch=with_torch), contextlib.closing(_batches(unit, rows, chosen)) as batches:
        for batch in batches:
            for error in batch.errors:
                if error is not None:
                    errors[error_class(error)] += 1
                    beat(failed=error_class(error))
            for name, annotator in chosen.items():
                tables[name].append(_table(annotator, batch))
            beat(images=len(batch.keys))
    return Found({name: pa.concat_tables(found) for name, found in tables.items()}, errors, len(rows))


def annotate_shard(unit: AnnotateUnit) -> None:
    """Run the unit's annotators on its shard; write and commit each one's table."""
    write_found(unit, find(unit))


def write_found(unit: AnnotateUnit, found: Found) -> None:
    """Write and commit each annotator's table of a whole shard. Raises ShardError if its tar is that of another."""
    if found.num_rows and found.errors.get("missing") == found.num_rows:
        raise ShardError(
            f"holds none of the {found.num_rows} images of its table; is it the tar of another shard?",
            shard=raw_tar_url(unit.job, unit.shard),
        )
    for name, annotator in _chosen(unit).items():
        errors = dict(sorted(found.errors.items())) if annotator.needs_pixels else {}
        table = pa.table(found.tables[name].columns, schema=_schema(annotator))
        write_annotations(unit.job.annotations(name, digest(annotator)), unit.shard, table, errors, unit.fence)


def write_annotations(
    folder: str, shard: str, table: pa.Table, errors: Mapping[str, int], fence: Fence = NO_FENCE
) -> None:
    """Write one annotator's table of one shard, then its commit record."""
    data = parquet_bytes(table)
    fence.check()
    atomic.write_atomic(urlpath.join(folder, f"{shard}.parquet"), data)
    record = {
        "bytes": len(data),
        "errors": dict(errors),
        "rows": len(table),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    fence.check()
    commit(folder, shard, record)


def _chosen(unit: AnnotateUnit) -> dict[str, Annotator]:
    known = annotators(unit.config)
    return {name: _of_digest(known[name], expected) for name, expected in unit.digests}


def _of_digest(annotator: Annotator, expected: str) -> Annotator:
    for made in versions(annotator):
        if digest(made) == expected:
            return made
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


def _batches(
    unit: AnnotateUnit, rows: list[FetchedRow], chosen: Mapping[str, Annotator]
) -> Generator[AnnotationBatch, None, None]:
    if not any(annotator.needs_pixels for annotator in chosen.values()):
        yield from batches_without_images(rows, unit.config.batch_size)
    elif unit.decode_threads > 1:
        yield from one_ahead(_checked_batches(unit, rows))
    else:
        yield from _checked_batches(unit, rows)


def _checked_batches(unit: AnnotateUnit, rows: list[FetchedRow]) -> Generator[AnnotationBatch, None, None]:
    recorded = check_raw_tar(unit.job, unit.shard)
    try:
        url = tar_of(recorded, unit.shard)
        yield from batches_with_images(rows, url, unit.config.batch_size, threads=unit.decode_threads)
    except ShardError as error:
        error.add_note(recorded.advice)
        raise


def _table(annotator: Annotator, batch: AnnotationBatch) -> pa.Table:
    columns = {"key": batch.keys, **annotator.annotate(batch)}
    schema = _schema(annotator)
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def _schema(annotator: Annotator) -> pa.Schema:
    return pa.schema([pa.field("key", pa.string()), *annotator.schema()])

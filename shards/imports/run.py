"""Turn an image folder, tars or parquet files of image bytes into a dataset.

The unit of work is one output shard, made of `samples_per_shard` consecutive inputs, so input order is kept, any unit
can be done again alone, and equal inputs give equal bytes. The one thing a reader would get wrong: a shard holds fewer
samples than that where inputs were rejected; every reject has its line in rejects.parquet.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.config import canonical_json, config_to_dict
from headrace.shards.commit import committed, read_commit
from headrace.shards.dataset import SUMMARY_NAME
from headrace.shards.foreign.find import expand_files
from headrace.shards.heartbeat import beat, expect
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import check_complete, read_header
from headrace.shards.imports.folder import FolderSource, open_folder
from headrace.shards.imports.parquet import open_parquet_files
from headrace.shards.imports.source import Input, Source, SourceUnit
from headrace.shards.imports.tar import open_tars
from headrace.shards.parquet import write_parquet
from headrace.shards.progress import Progress
from headrace.shards.units import INLINE, EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import Sample, commit_shard, finish_dataset, write_shard_files

log = logging.getLogger(__name__)

JOB_NAME = "import.json"
REJECTS_NAME = "rejects.parquet"

REJECTS_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("name", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("imported", pa.bool_()),
    ]
)
_EXTRA_SCHEMA = pa.schema([("source", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How inputs become a dataset."""

    samples_per_shard: int = 1000
    """Inputs of one output shard."""
    image_column: str | None = None
    """Column of the image bytes in parquet; None = the first of the usual names."""
    label_column: str = "label"
    """Column of the label in parquet; unlabelled where there is none."""
    decode: bool = True
    """Decode every image; False looks at header and end only."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples_per_shard <= 1_000_000:
            raise ValueError(f"samples_per_shard must be 1 to 1000000, got {self.samples_per_shard}")


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What was imported; `rejects` counts by reason, `notes` those imported without some of their text."""

    num_inputs: int
    num_samples: int
    num_shards: int
    rejects: dict[str, int]
    notes: int


@dataclass(frozen=True, slots=True)
class _Unit:
    out: str
    number: int
    first: int
    num_inputs: int
    inputs: SourceUnit
    decode: bool

    @property
    def shard(self) -> str:
        return f"{self.number:05d}"

    @property
    def name(self) -> str:
        return f"shard {self.shard}"


def open_source(source: str, config: ImportConfig) -> Source:
    """Find out what `source` is. Raises ValueError if nothing there can be imported."""
    for suffix in (".tar", ".parquet"):
        urls = expand_files(source, suffix)
        if urls and suffix == ".tar":
            return open_tars(urls)
        if urls:
            return open_parquet_files(urls, image_column=config.image_column, label_column=config.label_column)
    if not files.exists(source):
        raise ValueError(f"{source}: nothing there; expected an image folder, a .tar or a .parquet")
    if not files.is_folder(source):
        raise ValueError(f"{source}: expected an image folder, a .tar or a .parquet")
    return open_folder(source)


def import_images(
    source: Source,
    out: str,
    config: ImportConfig,
    *,
    engine: EngineConfig = INLINE,
    on_progress: OnProgress = no_progress,
) -> ImportSummary:
    """Import `source` into the dataset `out`; what an earlier, killed run committed is kept.

    Raises ValueError if there is nothing to import, or if `out` was begun from other inputs or settings, or lies inside
    the folder that is read.
    """
    if isinstance(source, FolderSource) and files.join(out, "").startswith(files.join(source.url, "")):
        raise ValueError(f"{out} lies inside {source.url}, which is read; choose a folder outside")
    if not source.num_inputs:
        raise ValueError(f"{source.url}: nothing in it to import")
    if engine.executor != "inline":
        files.check_shared(out, source.url)
    with files.only_writer(out):
        digest = _own(source, out, config)
        num_units = -(-source.num_inputs // config.samples_per_shard)
        units = _units_to_do(source, out, config)
        skipped = num_units - len(units)
        log.info("import into %s: %d of %d shards are done already", out, skipped, num_units)

        def report(progress: Progress) -> None:
            on_progress(replace(progress, done=skipped + progress.done, total=num_units))

        run_units(_import_unit, units, engine, report)
        return _finish(source, out, digest)


def _units_to_do(source: Source, out: str, config: ImportConfig) -> list[_Unit]:
    done, step = set(committed(out)), config.samples_per_shard
    return [
        _Unit(
            out,
            number,
            start,
            min(step, source.num_inputs - start),
            source.unit(start, start + step),
            config.decode,
        )
        for number, start in enumerate(range(0, source.num_inputs, step))
        if f"{number:05d}" not in done
    ]


def _own(source: Source, out: str, config: ImportConfig) -> str:
    """Put the job's record in `out`, or check that the one there is the same; return its digest."""
    identity = hashlib.sha256()
    for item in source.identity():
        identity.update(canonical_json(item).encode() + b"\n")
    job = {
        "schema": 1,
        "kind": source.kind,
        "num_inputs": source.num_inputs,
        "inputs_sha256": identity.hexdigest(),
        "settings": config_to_dict(config),
    }
    text = (canonical_json(job) + "\n").encode()
    url = files.join(out, JOB_NAME)
    if not files.exists(url) and files.exists(files.join(out, SUMMARY_NAME)):
        raise ValueError(f"{out} is already a dataset that was not imported; choose another folder")
    if not files.put_if_absent(url, text) and files.read_bytes(url) != text:
        raise ValueError(f"{out} was begun from other inputs or with other settings ({url}); choose another folder")
    return hashlib.sha256(text).hexdigest()


def _import_unit(unit: _Unit) -> None:
    rejects: list[list[Any]] = []
    expect(images=unit.num_inputs)
    record = write_shard_files(unit.out, unit.shard, _samples(unit, rejects), _EXTRA_SCHEMA)
    commit_shard(unit.out, unit.shard, {**record, "rejects": rejects})


def _samples(unit: _Unit, rejects: list[list[Any]]) -> Iterator[Sample]:
    for position, item in enumerate(unit.inputs.read(), start=unit.first):
        try:
            extension = check_image(item, decode=unit.decode)
        except Reject as reject:
            rejects.append([position, item.name, reject.reason, str(reject)[:200], False])
            beat(images=1, failed=reject.reason)
            continue
        if item.note is not None:
            rejects.append([position, item.name, "bad-text", item.note[:200], True])
        columns = {"label": item.label, "caption": item.caption, "url": item.url, "source": item.name}
        if item.orientation is not None:
            columns["orientation"] = item.orientation
        assert item.image is not None
        yield Sample(f"{position:09d}", item.image, extension, columns)
        beat(images=1, bytes=len(item.image))


class Reject(ValueError):
    """An input that cannot become a sample, and the reason it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_image(item: Input, *, decode: bool) -> str:
    """Return the extension of an input's image. Raises Reject with the reason it cannot be used."""
    if item.image is None:
        raise Reject(item.missing, item.note or "null")
    if not item.image:
        raise Reject("empty", "0 bytes")
    reason = "not-image"
    try:
        header = read_header(item.image)
        reason = "truncated"
        check_complete(item.image, header)
        reason = "undecodable"
        if decode:
            decode_rgb(item.image, header=header)
    except ValueError as error:
        raise Reject(reason, str(error)) from error
    return EXTENSIONS[header.format]


def _finish(source: Source, out: str, digest: str) -> ImportSummary:
    names = committed(out)
    records = [read_commit(out, name) for name in names]
    rejects = [dict(zip(REJECTS_SCHEMA.names, row, strict=True)) for record in records for row in record["rejects"]]
    table = pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA)
    write_parquet(files.join(out, REJECTS_NAME), table)
    finish_dataset(out, recipe_digest=digest, facts={"classes": list(source.classes)})
    counts: dict[str, int] = {}
    for row in rejects:
        if not row["imported"]:
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    return ImportSummary(
        num_inputs=source.num_inputs,
        num_samples=sum(record["num_samples"] for record in records),
        num_shards=len(names),
        rejects=dict(sorted(counts.items())),
        notes=sum(row["imported"] for row in rejects),
    )

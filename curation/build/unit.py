"""One output shard: what it is made of, and making it.

A unit is a pure function of the ledger's rows for one output shard; it writes tar, index and failures, then commits.
A row that fails leaves a gap in the keys and a row in the failures table; the places of all others stay what the ledger
says.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import atomic, urlpath
from headrace.curation.build.captions import ALL_CAPTIONS, CAPTION_OF, CAPTIONS, all_captions
from headrace.curation.build.clean import clean_image
from headrace.curation.build.config import BuildConfig
from headrace.curation.build.inputs import FACE_BOXES, KeptRow, ShardInputs, load_raw_shard, read_kept
from headrace.curation.build.labels import CLASSES, LABELS, Labels
from headrace.curation.job import Job
from headrace.curation.ledger import Ledger, dataset_key, held_captions
from headrace.lease import NO_FENCE, Fence
from headrace.shards.commit import is_committed
from headrace.shards.errors import ShardError
from headrace.shards.heartbeat import beat, expect
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.parquet import parquet_bytes
from headrace.shards.write import Sample, commit_shard, write_shard_files

FAILURES_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("input_file", pa.string()),
        ("input_row", pa.int64()),
        ("raw_shard", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)

BUILT_FIELDS = pa.schema([("faces_blurred", pa.int16()), ("reencoded", pa.bool_())])

REGIONS_BLURRED = pa.field("regions_blurred", pa.int16())
CAPTION_CHOSEN = pa.schema([("caption_from", pa.string()), ("caption_listed", pa.string())])
"""Where captions may come from several columns: which it is, and the one of the list."""

# One read of payloads holds at most this much, so that memory does not grow with the shard.
READ_BYTES = 64 << 20
MIN_JUDGED_ROWS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildUnit:
    """One output shard, described so that any process can make it."""

    name: str
    """The output shard."""
    job: str
    """URL of the job."""
    ledger: str
    """URL of the ledger's folder."""
    ledger_digest: str
    """What the commit record names, so that an unfinished dataset too can say what explains it."""
    annotations: tuple[tuple[str, str], ...]
    """(annotator, folder of its tables)."""
    config: BuildConfig
    takes_captions: bool
    """True if rows of this ledger have the captions of others: the index then says whose."""
    merges_captions: bool = False
    """True if rows of this ledger may have several captions: the index then holds them all."""
    labels: Labels | None = None
    """How samples get their labels; None: the column `label` has them, if any."""
    inputs_digest: str
    """Of the ledger and the settings: shards of another digest must not stand beside this one."""
    fence: Fence = NO_FENCE
    """Asked before each file is put in its place."""


class RowError(ValueError):
    """One row cannot be built; `reason` is its class."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def build_unit(unit: BuildUnit) -> None:
    """Write and commit one output shard, unless it is committed."""
    job = Job(unit.job)
    dataset = job.dataset_named(unit.config.dataset)
    if is_committed(dataset, unit.name):
        return
    rows = read_kept(Ledger(unit.ledger), unit.name)
    expect(rows=len(rows))
    names = sorted({row.raw_shard for row in rows})
    shards = {name: load_raw_shard(job, name, unit.annotations, unit.config.read) for name in names}
    fields = _carried_fields(unit, next(iter(shards.values())))
    failures: list[dict[str, Any]] = []
    samples, schema = _samples(unit, rows, shards, fields, failures), _schema(unit, fields, next(iter(shards.values())))
    record = write_shard_files(dataset, unit.name, samples, schema, fence=unit.fence)
    _check_budget(unit, len(rows), failures)
    table = parquet_bytes(pa.Table.from_pylist(failures, schema=FAILURES_SCHEMA))
    unit.fence.check()
    atomic.write_atomic(urlpath.join(job.build_failures(unit.config.dataset), f"{unit.name}.parquet"), table)
    facts = {
        "inputs": unit.inputs_digest,
        "ledger": unit.ledger_digest,
        "num_failed": len(failures),
        "failures_sha256": hashlib.sha256(table).hexdigest(),
    }
    if unit.labels is not None and unit.labels.classes:
        facts[CLASSES] = unit.labels.digest
    unit.fence.check()
    commit_shard(dataset, unit.name, {**record, **facts})


def _schema(unit: BuildUnit, fields: list[pa.Field], shard: ShardInputs) -> pa.Schema:
    regions = (REGIONS_BLURRED,) if unit.config.blur_regions and shard.hidden() else ()
    taken = (*((CAPTION_OF,) if unit.takes_captions else ()), *(ALL_CAPTIONS if unit.merges_captions else ()))
    chosen = CAPTION_CHOSEN if unit.config.chooses_captions else ()
    several = (LABELS,) if unit.labels is not None and unit.labels.several else ()
    return pa.schema([*fields, *BUILT_FIELDS, *regions, *taken, *chosen, *several])


def _samples(
    unit: BuildUnit,
    rows: list[KeptRow],
    shards: Mapping[str, ShardInputs],
    fields: list[pa.Field],
    failures: list[dict[str, Any]],
) -> Iterator[Sample]:
    """Yield the samples in order; rows that cannot be built go to `failures`."""
    for batch in _batches(rows, shards):
        payloads = _read_batch(batch, shards)
        for row, payload in zip(batch, payloads, strict=True):
            try:
                sample = _sample(unit, row, shards[row.raw_shard], payload, fields)
            except RowError as error:
                failures.append(_failure(row, error))
                beat(rows=1, failed=error.reason)
                continue
            yield sample
            beat(rows=1, bytes=len(sample.image))


def _batches(rows: list[KeptRow], shards: Mapping[str, ShardInputs]) -> Iterator[list[KeptRow]]:
    batch: list[KeptRow] = []
    num_bytes = 0
    for row in rows:
        size = shards[row.raw_shard].size_of(row.key)
        if batch and num_bytes + size > READ_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(row)
        num_bytes += size
    if batch:
        yield batch


def _read_batch(batch: list[KeptRow], shards: Mapping[str, ShardInputs]) -> list[bytes | None]:
    """Return the payload of each row, None where the raw shard has none for it."""
    payloads: list[bytes | None] = [None] * len(batch)
    for name in sorted({row.raw_shard for row in batch}):
        numbers = [number for number, row in enumerate(batch) if row.raw_shard == name]
        found = shards[name].read([batch[number].key for number in numbers])
        for number, payload in zip(numbers, found, strict=True):
            payloads[number] = payload
    return payloads


def _sample(unit: BuildUnit, row: KeptRow, shard: ShardInputs, payload: bytes | None, fields: list[pa.Field]) -> Sample:
    """Return one sample. Raises RowError."""
    facts = shard.facts(row.key)
    if facts is None:
        raise RowError("missing", f"the tables of raw shard {row.raw_shard} have no row for key {row.key}")
    if row.caption_facts is not None:
        facts |= json.loads(row.caption_facts)
    if payload is None:
        raise _of_tar(shard, row, "missing", shard.damage or f"the raw shard has no image for key {row.key}")
    sha256, stored = hashlib.sha256(payload).hexdigest(), shard.stored_sha256(row.key, facts)
    if stored is not None and stored != sha256:
        raise _of_tar(shard, row, "sha256", f"sha256 is {sha256}, the tables say {stored}")
    faces = facts.get(FACE_BOXES) if unit.config.blur_faces else []
    regions = [facts.get(name) for name in shard.hidden()] if unit.config.blur_regions else []
    if faces is None or any(boxes is None for boxes in regions):
        what = "faces were" if faces is None else "region was"
        raise RowError("image", f"no {what} looked for in it, as it did not decode")
    boxes = [*faces, *(box for found in regions for box in found or ())]
    try:
        image = clean_image(payload, face_boxes=boxes, config=unit.config)
    except ValueError as error:
        raise RowError("image", str(error)) from error
    columns = {
        "uid": row.uid,
        "caption": facts.get("caption"),
        "url": row.url,
        "label": facts.get("label"),
        "sha256": facts.get("sha256") or sha256,
        "orientation": image.header.orientation,
        **{field.name: plain_value(facts.get(field.name), field.type) for field in fields},
        "faces_blurred": len(faces),
        "reencoded": image.reencoded,
    }
    if regions:
        columns[REGIONS_BLURRED.name] = len(boxes) - len(faces)
    if unit.takes_captions:
        columns["caption_of"] = row.caption_of
    columns |= _caption(unit.config, facts) | _labels(unit.labels, facts)
    if unit.merges_captions:
        columns |= all_captions(columns, held_captions(asdict(row)), unit.config.caption)
    key, lists = dataset_key(unit.name, row.out_index), in_json(merges=unit.merges_captions)
    return Sample(key, image.data, image.extension, columns, in_json=lists)


def in_json(*, merges: bool) -> tuple[str, ...]:
    """Return the columns of lists that stand in the samples' JSON, of a dataset that holds several captions or not."""
    return (LABELS.name, CAPTIONS) if merges else (LABELS.name,)


def _caption(config: BuildConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chosen caption, and where it comes from; nothing where there is no choice."""
    if not config.chooses_captions:
        return {}
    chosen = next((name for name in config.caption if isinstance(facts.get(name), str) and facts[name].strip()), None)
    caption = None if chosen is None else facts[chosen]
    return {"caption": caption, "caption_from": chosen, "caption_listed": facts.get("caption")}


def _labels(labels: Labels | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels. Raises RowError for a name that is no class."""
    if labels is None:
        return {}
    try:
        return labels.columns(facts.get(labels.config.column))
    except ValueError as error:
        raise RowError("label", str(error)) from error


def _of_tar(shard: ShardInputs, row: KeptRow, reason: str, message: str) -> ValueError:
    """Return what to raise for an image that is not in its tar as it should be.

    A tar that was recorded whole has been damaged since: no dataset is made of it. Else the row fails alone.
    """
    if shard.recorded.fixes_images:
        return ShardError(f"{message}; {shard.recorded.advice}", shard=shard.tar_url, key=row.key)
    return RowError(reason, message)


def plain_value(value: Any, kind: pa.DataType) -> Any:
    """Return a value of a column as the samples' JSON has it."""
    # The shortest decimal that is the same float32: 0.3, not 0.30000001192092896, in the samples' JSON.
    if isinstance(value, float) and kind == pa.float32():
        return float(str(np.float32(value)))
    return value


def _failure(row: KeptRow, error: RowError) -> dict[str, Any]:
    place = {name: getattr(row, name) for name in ("uid", "input_file", "input_row", "raw_shard", "key")}
    return {**place, "reason": error.reason, "message": str(error)[:500]}


def _carried_fields(unit: BuildUnit, shard: ShardInputs) -> list[pa.Field]:
    """Return the extra columns of the index: every scalar annotation, and what the recipe asks for by name."""
    label = next((schema.field("label").type for schema in shard.schemas if "label" in schema.names), pa.int64())
    if unit.labels is None and not pa.types.is_integer(label):
        raise ValueError(
            f"the carried column label is of type {label}; the index holds whole numbers: rename the column"
        )
    known, wanted = shard.fields(), unit.config.carried
    unknown = [name for name in wanted if name not in known and name not in INDEX_SCHEMA.names]
    if unknown:
        raise ValueError(f"build: no column {', '.join(unknown)}; known columns: {', '.join(sorted(known))}")
    found = [field for name, (field, standard) in known.items() if standard or name in wanted]
    taken = [field.name for field in found if unit.merges_captions and field.name in ALL_CAPTIONS.names]
    if taken:
        raise ValueError(
            f"build: a column {taken[0]} is carried, and captions are merged into one of that name: rename it"
        )
    for name in unit.config.caption:
        if name in known and not _is_text(known[name][0].type):
            raise ValueError(f"build.caption: column {name} is of type {known[name][0].type}, and no text")
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_budget(unit: BuildUnit, num_rows: int, failures: list[dict[str, Any]]) -> None:
    if num_rows >= MIN_JUDGED_ROWS and len(failures) > unit.config.failure_budget * num_rows:
        first = failures[0]
        raise ValueError(
            f"output shard {unit.name}: {len(failures)} of {num_rows} rows failed, over build.failure_budget "
            f"{unit.config.failure_budget}; the first: {describe_failure(first)}"
        )


def describe_failure(row: Mapping[str, Any]) -> str:
    """Return one row of the failures table as words."""
    return f"raw shard {row['raw_shard']}, key {row['key']}, {row['reason']}: {row['message']}"

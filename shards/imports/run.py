"""Turn an image folder, tars or parquet files of image bytes into a dataset.

The unit of work is one output shard, made of `samples_per_shard` consecutive inputs of the list, or of its shuffle, so
any unit can be done again alone, and equal inputs give equal bytes. A shard holds fewer samples than that where inputs
were rejected; every reject has its line in rejects.parquet, and so has whatever was no input.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.config import canonical_json, config_to_dict
from headrace.lease import only_writer
from headrace.shards.columns import TYPES
from headrace.shards.commit import SHARD_FIELDS, committed, read_commit
from headrace.shards.foreign.find import expand_files, refuse_compressed
from headrace.shards.foreign.index import CHOOSE_MEMBERS, check_budget
from headrace.shards.foreign.unit import INDEX_FOLDER
from headrace.shards.group import BY_RULE, GroupConfig
from headrace.shards.heartbeat import beat, expect
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import EXTENSIONS
from headrace.shards.images.header import check_complete, read_header
from headrace.shards.imports.folder import FolderSource, open_folder
from headrace.shards.imports.metadata import TABLE_NAMES
from headrace.shards.imports.parquet import DEFAULT_LABEL, open_parquet_files
from headrace.shards.imports.shuffle import Spool, order_of
from headrace.shards.imports.source import SOURCE_COLUMN, Input, Leftover, Source, SourceUnit
from headrace.shards.imports.tar import open_tars
from headrace.shards.manifest import MANIFEST_NAME, SUMMARY_NAME
from headrace.shards.parquet import write_parquet
from headrace.shards.progress import Progress
from headrace.shards.units import INLINE, EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import Sample, commit_shard, finish_dataset, write_shard_files
from headrace.text import shown

log = logging.getLogger(__name__)

JOB_NAME = "import.json"
REJECTS_NAME = "rejects.parquet"
JOB_SCHEMA = 2
"""2: shuffles, more columns, leftovers among the rejects."""

REJECTS_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("name", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("imported", pa.bool_()),
    ]
)
_RECORD_FIELDS = {**SHARD_FIELDS, "rejects": list}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How inputs become a dataset."""

    samples_per_shard: int = 1000
    """Inputs of one output shard."""
    shuffle: int | None = None
    """Seed of a shuffle of all inputs; None keeps their order, sorted by name."""
    image_column: str | None = None
    """Column of the image bytes in parquet; None = the first of the usual names."""
    label_column: str = DEFAULT_LABEL
    """Column of the label in parquet; unlabelled where there is none."""
    group: GroupConfig = BY_RULE
    """How the members of WebDataset tars become samples."""
    max_unused: float = 0.01
    """Share of inputs that may be no input at all: images beside the first of a sample, links out of a folder."""
    follow_links: bool = False
    """Read what links that lead out of an image folder point to."""
    decode: bool = True
    """Decode every image; False looks at header and end only."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples_per_shard <= 1_000_000:
            raise ValueError(f"samples_per_shard must be 1 to 1000000, got {self.samples_per_shard}")
        if not 0 <= self.max_unused <= 1:
            raise ValueError(f"max_unused must be 0 to 1, got {self.max_unused}")


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What was imported: `num_inputs` = `num_samples` + the sum of `rejects`."""

    num_inputs: int
    num_samples: int
    num_shards: int
    rejects: dict[str, int]
    """Inputs that became no sample, by reason."""
    notes: int
    """Things about samples that could not be read, their image could."""
    leftovers: dict[str, int]
    """What was found and is no input, by reason."""
    not_read: dict[str, int]
    """Members by extensions that are not read."""


@dataclass(frozen=True, slots=True)
class _Unit:
    out: str
    number: int
    first: int
    num_inputs: int
    inputs: SourceUnit
    columns: Mapping[str, str]
    decode: bool

    @property
    def shard(self) -> str:
        return f"{self.number:05d}"

    @property
    def name(self) -> str:
        return f"shard {self.shard}"


def open_source(source: str, config: ImportConfig) -> Source:
    """Find out what `source` is. Raises ValueError if nothing there can be imported, or too much would be left out."""
    opened = _open(source, config)
    reasons = Counter(item.reason for item in opened.leftovers)
    names = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    first = next(iter(opened.leftovers), None)
    example = f" (the first: {first.name})" if first is not None else ""
    remedy = "read them by --follow-links" if opened.kind == "folder" else CHOOSE_MEMBERS
    total = opened.num_lost + opened.num_inputs
    check_budget(opened.num_lost, total, config.max_unused, where=f"{source}: {names}{example}", remedy=remedy)
    return opened


def _open(source: str, config: ImportConfig) -> Source:
    for suffix in (".tar", ".parquet"):
        urls = expand_files(source, suffix)
        if suffix == ".parquet":
            # The table beside the images of a folder is no list of images.
            urls = [url for url in urls if urlpath.basename(url) not in TABLE_NAMES or url == source]
        if urls and suffix == ".tar":
            tars = open_tars(urls, config.group)
            return replace(tars, leftovers=(*tars.leftovers, *_others(source, urls)))
        if urls:
            rows = open_parquet_files(urls, image_column=config.image_column, label_column=config.label_column)
            return replace(rows, leftovers=(*rows.leftovers, *_others(source, urls)))
    refuse_compressed(source)
    if not files.exists(source):
        raise ValueError(f"{source}: nothing there; expected an image folder, a .tar or a .parquet")
    if not files.is_folder(source):
        raise ValueError(f"{source}: expected an image folder, a .tar or a .parquet")
    return open_folder(source, follow_links=config.follow_links, with_metadata=True)


def _others(url: str, read: Sequence[str]) -> tuple[Leftover, ...]:
    """Name what else lies in a folder of which the tars, or the parquet files, are read."""
    names = set(map(urlpath.basename, read))
    if names == {urlpath.basename(url)}:
        return ()
    beside = {f"{name.removesuffix('.tar')}.parquet" for name in names} | {SUMMARY_NAME, MANIFEST_NAME, INDEX_FOLDER}
    return tuple(
        Leftover(name, "other-file") for name in files.list_names(url) if name not in names and name not in beside
    )


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
    if isinstance(source, FolderSource) and _lies_inside(out, source.url):
        raise ValueError(f"{out} lies inside {source.url}, which is read; choose a folder outside")
    if not source.num_inputs:
        raise ValueError(f"{source.url}: nothing in it to import")
    if engine.executor != "inline":
        urlpath.check_shared(out, source.url)
    with only_writer(out):
        digest = _own(source, out, config)
        num_units = -(-source.num_inputs // config.samples_per_shard)
        spool = _spool(source, out, config, engine)
        units = _units_to_do(source, out, config, spool)
        skipped = num_units - len(units)
        log.info("import into %s: %d of %d shards are done already", out, skipped, num_units)

        def report(progress: Progress) -> None:
            on_progress(replace(progress, done=skipped + progress.done, total=num_units))

        run_units(_import_unit, units, engine, report)
        summary = _finish(source, out, digest)
        if spool is not None:
            spool.remove()
    log.info("%s: import ends: %d samples of %d inputs", out, summary.num_samples, summary.num_inputs)
    return summary


def _lies_inside(url: str, folder: str) -> bool:
    if urlpath.is_local(url) and urlpath.is_local(folder):
        return urlpath.local_path(url).resolve().is_relative_to(urlpath.local_path(folder).resolve())
    return urlpath.join(url, "").startswith(urlpath.join(folder, ""))


def _spool(source: Source, out: str, config: ImportConfig, engine: EngineConfig) -> Spool | None:
    """Spread the inputs of a source that is read forwards only, so that a shuffle can pick them up."""
    if config.shuffle is None or source.random_access:
        return None
    spool = Spool(out, source.num_inputs, config.samples_per_shard, config.shuffle)
    if len(committed(out)) < spool.num_shards:
        spool.fill(source, engine)
    return spool


def _units_to_do(source: Source, out: str, config: ImportConfig, spool: Spool | None) -> list[_Unit]:
    done, step = set(committed(out)), config.samples_per_shard
    order = order_of(source.num_inputs, config.shuffle)
    units = []
    for number, start in enumerate(range(0, source.num_inputs, step)):
        if f"{number:05d}" not in done:
            chosen = [int(position) for position in order[start : start + step]]
            inputs = spool.shard(number) if spool is not None else source.unit(chosen)
            units.append(_Unit(out, number, start, len(chosen), inputs, source.columns, config.decode))
    return units


def _own(source: Source, out: str, config: ImportConfig) -> str:
    """Put the job's record in `out`, or check that the one there is the same; return its digest."""
    identity = hashlib.sha256()
    for item in source.identity():
        identity.update(canonical_json(item).encode() + b"\n")
    job = {
        "schema": JOB_SCHEMA,
        "kind": source.kind,
        "num_inputs": source.num_inputs,
        "inputs_sha256": identity.hexdigest(),
        "settings": config_to_dict(config),
    }
    text = (canonical_json(job) + "\n").encode()
    url = urlpath.join(out, JOB_NAME)
    if not files.exists(url) and files.exists(urlpath.join(out, SUMMARY_NAME)):
        raise ValueError(f"{out} is already a dataset that was not imported; choose another folder")
    if not atomic.put_if_absent(url, text) and files.read_bytes(url) != text:
        raise ValueError(f"{out} was begun from other inputs or with other settings ({url}); choose another folder")
    return hashlib.sha256(text).hexdigest()


def _import_unit(unit: _Unit) -> None:
    rejects: list[list[Any]] = []
    expect(images=unit.num_inputs)
    schema = pa.schema([(SOURCE_COLUMN, pa.string()), *((name, TYPES[kind]) for name, kind in unit.columns.items())])
    record = write_shard_files(unit.out, unit.shard, _samples(unit, rejects), schema)
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
        columns = {"label": item.label, "caption": item.caption, "url": item.url, SOURCE_COLUMN: item.name}
        if item.orientation is not None:
            columns["orientation"] = item.orientation
        assert item.image is not None
        yield Sample(f"{position:09d}", item.image, extension, {**item.extras, **columns})
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


def _reject(out: str, name: str, row: Any) -> dict[str, Any]:
    """Return one reject of a commit record as a row."""
    kinds = [int, str, str, str, bool]
    if not isinstance(row, list) or [type(value) for value in row] != kinds:
        raise ValueError(f"{out}/commits/{name}.json: damaged commit record: a reject is {shown(row)}")
    return dict(zip(REJECTS_SCHEMA.names, row, strict=True))


def _finish(source: Source, out: str, digest: str) -> ImportSummary:
    names = committed(out)
    records = [read_commit(out, name, fields=_RECORD_FIELDS) for name in names]
    rejects = [
        _reject(out, name, row) for name, record in zip(names, records, strict=True) for row in record["rejects"]
    ]
    left = [
        {"name": item.name, "reason": item.reason, "message": item.message, "imported": False}
        for item in source.leftovers
    ]
    table = pa.Table.from_pylist([*rejects, *left], schema=REJECTS_SCHEMA)
    write_parquet(urlpath.join(out, REJECTS_NAME), table)
    counts = Counter(row["reason"] for row in rejects if not row["imported"])
    summary = ImportSummary(
        num_inputs=source.num_inputs,
        num_samples=sum(record["num_samples"] for record in records),
        num_shards=len(names),
        rejects=dict(sorted(counts.items())),
        notes=sum(row["imported"] for row in rejects),
        leftovers=dict(sorted(Counter(item.reason for item in source.leftovers).items())),
        not_read=dict(source.not_read),
    )
    accounted = summary.num_samples + sum(counts.values())
    if accounted != source.num_inputs:
        raise ValueError(
            f"{out}: its shards account for {accounted} of {source.num_inputs} inputs; import into another folder"
        )
    accounts = {
        "inputs": source.num_inputs,
        "rejects": summary.rejects,
        "leftovers": summary.leftovers,
        "not_read": summary.not_read,
    }
    finish_dataset(out, recipe_digest=digest, facts={"classes": list(source.classes), "import": accounts})
    return summary

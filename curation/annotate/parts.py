"""A raw shard in parts: ranges of its rows, annotated side by side and joined in order.

So a list under one shard uses every core, and a kill costs the parts under way. Where a shard is cut depends on its
rows, never on the workers, and the joined table is the same bytes as one that was made in one go. A part counts when
its file is there; it is removed when its shard is committed.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.curation.annotate.unit import AnnotateUnit, Found, annotate_shard, find, write_found
from headrace.curation.job import Job
from headrace.curation.raw.read import recorded_of
from headrace.shards.parquet import open_parquet, write_parquet
from headrace.shards.resources import Resources

MIN_PART_ROWS = 256
MOST_PARTS = 16
"""Of one shard: each worker that takes one reads the tar's directory anew."""

_ERRORS = b"headrace.errors"


@dataclass(frozen=True, slots=True)
class PartUnit:
    """Some images of a raw shard, counted among those that were fetched: [start, stop)."""

    whole: AnnotateUnit
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.whole.name} images {self.start}-{self.stop}"

    @property
    def resources(self) -> Resources:
        """What the annotators take."""
        return self.whole.resources

    def decoding_with(self, threads: int) -> "PartUnit":
        """Return the same work with so many threads that decode ahead."""
        return replace(self, whole=self.whole.decoding_with(threads))

    def place(self, name: str, digest: str) -> str:
        """Return where an annotator's table of this part is."""
        folder = urlpath.join(parts_folder(self.whole.job), f"{name}-{digest[:8]}")
        return urlpath.join(folder, f"{self.whole.shard}-{self.start:07d}-{self.stop:07d}.parquet")


def parts_folder(job: Job) -> str:
    """Return the folder of all parts of a job."""
    return urlpath.join(job.spool, "annotations")


def cut(unit: AnnotateUnit) -> list[PartUnit]:
    """Return the parts of a shard; a small one, and one of which nobody counted the images, is one part."""
    images = recorded_of(unit.job, unit.shard).successes or 0
    size = max(MIN_PART_ROWS, -(-images // MOST_PARTS))
    starts = range(0, max(images, 1), size)
    return [PartUnit(unit, start, min(start + size, images)) for start in starts] if len(starts) > 1 else []


def known_parts(job: Job) -> set[str]:
    """Return the places of all tables of parts that are there."""
    root = parts_folder(job)
    folders = [urlpath.join(root, folder) for folder in files.list_names(root)]
    return {urlpath.join(folder, name) for folder in folders for name in files.list_names(folder)}


def is_done(part: PartUnit, known: Collection[str]) -> bool:
    """True if every table of the part is among the known places."""
    return all(part.place(name, digest) in known for name, digest in part.whole.digests)


def annotate_part(part: AnnotateUnit | PartUnit) -> None:
    """Annotate a part and write its tables; a whole shard is committed at once."""
    if isinstance(part, AnnotateUnit):
        annotate_shard(part)
        return
    found = find(part.whole, part.start, part.stop)
    errors = json.dumps(dict(found.errors)).encode()
    for name, digest in part.whole.digests:
        table = found.tables[name]
        part.whole.fence.check()
        metadata = {**(table.schema.metadata or {}), _ERRORS: errors}
        write_parquet(part.place(name, digest), table.replace_schema_metadata(metadata))


def join(unit: AnnotateUnit, parts: Sequence[PartUnit]) -> None:
    """Commit a shard of which all parts are done, and remove them."""
    tables: dict[str, pa.Table] = {}
    errors: Counter[str] = Counter()
    for name, digest in unit.digests:
        read, errors = [], Counter()
        for part in parts:
            with open_parquet(part.place(name, digest)) as file:
                table = file.read()
            errors.update(json.loads((table.schema.metadata or {})[_ERRORS]))
            read.append(table.replace_schema_metadata(None))
        tables[name] = pa.concat_tables(read)
    write_found(unit, Found(tables=tables, errors=errors, num_rows=parts[-1].stop))
    for part in parts:
        for name, digest in unit.digests:
            atomic.remove(part.place(name, digest))


def remove_parts(job: Job, kept: Sequence[PartUnit]) -> None:
    """Remove parts of other settings, of other cuts, and of shards that are done."""
    wanted = {part.place(name, digest) for part in kept for name, digest in part.whole.digests}
    for place in known_parts(job) - wanted:
        atomic.remove(place)
    root = parts_folder(job)
    for folder in files.list_names(root):
        atomic.remove_leftovers(urlpath.join(root, folder))
        atomic.remove_folder(urlpath.join(root, folder))
    atomic.remove_folder(root)
    atomic.remove_folder(job.spool)

"""The stage: what annotate would do, and doing it.

The driver schedules a unit for each raw shard that an annotator has not done. All model files are read before anything
is written, as their content is part of each folder's name.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from headrace import files
from headrace.config import canonical_json
from headrace.curation.annotate.annotator import digest, file_sha256, identity
from headrace.curation.annotate.config import AnnotateConfig, annotators
from headrace.curation.annotate.tables import annotated_shards, annotation_digests, annotation_folders
from headrace.curation.annotate.unit import AnnotateUnit, annotate_shard
from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards
from headrace.shards.commit import committed, read_commit
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units

log = logging.getLogger(__name__)

NUM_RECORD_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateSummary:
    """What all finished shards hold, whichever run did them."""

    shards: int
    samples: int
    tables_written: int
    """Tables of this run; the others were there."""
    decode_errors: dict[str, int]
    """Images that do not decode, by class."""

    def __str__(self) -> str:
        failed = ", ".join(f"{kind} {count}" for kind, count in self.decode_errors.items())
        return (
            f"{self.samples} samples in {self.shards} shards, {self.tables_written} tables written; "
            f"{sum(self.decode_errors.values())} images do not decode{f' ({failed})' if failed else ''}"
        )


def plan_annotate(job: Job, config: AnnotateConfig) -> list[str]:
    """Return what `run_annotate` would do."""
    shards = raw_shards(job)
    lines = [] if shards else [f"{job.raw} has no raw shards yet; fetch comes first"]
    for name, annotator in annotators(config).items():
        folder = job.annotations(name, digest(annotator))
        models = "".join(f", {role} {url} ({file_sha256(url)[:8]})" for role, url in annotator.files().items())
        todo = len(set(shards) - annotated_shards(folder))
        lines.append(f"{name}: {todo} of {len(shards)} shards to do in {folder}{models}")
    return lines


def run_annotate(
    job: Job, config: AnnotateConfig, *, engine: EngineConfig, on_progress: OnProgress = no_progress
) -> AnnotateSummary:
    """Run every annotator of `config` on every raw shard it has not done yet."""
    shards = raw_shards(job)
    if not shards:
        raise ValueError(f"{job.raw} has no raw shards; run headrace fetch first")
    # All model files are read before anything is written.
    identities = {name: identity(annotator) for name, annotator in annotators(config).items()}
    for name, folder in annotation_folders(config, job).items():
        for written in (folder, files.join(folder, "commits")):
            files.remove_leftovers(written)
        # A commit record whose table is gone speaks of nothing: without it the table is made again.
        for shard in set(committed(folder)) - annotated_shards(folder):
            files.remove(files.join(folder, "commits", f"{shard}.json"))
        text = canonical_json(identities[name]) + "\n"
        files.put_if_absent(files.join(folder, "annotator.json"), text.encode())
    units = _units(job, config, shards)
    log.info("%d raw shards, %d of them have all annotations already", len(shards), len(shards) - len(units))
    run_units(annotate_shard, units, engine, on_progress)
    return _summary(job, config, shards, tables_written=sum(len(unit.digests) for unit in units))


def _units(job: Job, config: AnnotateConfig, shards: Iterable[str]) -> list[AnnotateUnit]:
    digests = annotation_digests(config)
    done = {name: set(committed(job.annotations(name, value))) for name, value in digests.items()}
    units = []
    for shard in shards:
        todo = tuple((name, value) for name, value in digests.items() if shard not in done[name])
        if todo:
            units.append(AnnotateUnit(job, shard, todo, config))
    return units


def _summary(job: Job, config: AnnotateConfig, shards: list[str], *, tables_written: int) -> AnnotateSummary:
    # Any annotator that needs pixels counted the images that have none.
    chosen = sorted(annotators(config).values(), key=lambda annotator: not annotator.needs_pixels)[0]
    folder = job.annotations(chosen.name, digest(chosen))
    with ThreadPoolExecutor(NUM_RECORD_READERS) as readers:
        records = list(readers.map(lambda shard: read_commit(folder, shard), shards))
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(record["errors"])
    return AnnotateSummary(
        shards=len(shards),
        samples=sum(record["rows"] for record in records),
        tables_written=tables_written,
        decode_errors=dict(sorted(errors.items())),
    )

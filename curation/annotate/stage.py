"""The stage: what annotate would do, and doing it.

The driver schedules a unit for each raw shard that an annotator has not done. All model files are read before anything
is written, as their content is part of each folder's name.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from headrace import atomic, urlpath
from headrace.config import canonical_json
from headrace.curation.annotate.annotator import Annotator, digest, file_sha256, identity
from headrace.curation.annotate.config import AnnotateConfig
from headrace.curation.annotate.parts import PartUnit, annotate_part, cut, is_done, join, known_parts, remove_parts
from headrace.curation.annotate.tables import annotated_shards, annotators_of
from headrace.curation.annotate.threads import spare_threads
from headrace.curation.annotate.unit import AnnotateUnit
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.part import Divided
from headrace.curation.raw.read import raw_shards
from headrace.lease import Fence
from headrace.shards.commit import committed, read_commit
from headrace.shards.progress import Progress
from headrace.shards.resources import all_of, has_gpu
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import clear_leftovers

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
    for name, annotator in annotators_of(config, job).items():
        folder = job.annotations(name, digest(annotator))
        models = "".join(f", {role} {url} ({file_sha256(url)[:8]})" for role, url in annotator.files().items())
        todo = len(set(shards) - annotated_shards(folder))
        lines.append(f"{name}: {todo} of {len(shards)} shards to do in {folder}{models}{_older(annotator)}")
    return lines


def _older(annotator: Annotator) -> str:
    """Say which columns the job does without, as its tables were begun by an older version."""
    if annotator.made_as == annotator.version:
        return ""
    missing = ", ".join(name for name in annotator.columns.names if name not in annotator.schema().names)
    return f", as version {annotator.made_as} had it" + (f" (without {missing})" if missing else "")


def run_annotate(
    job: Job, config: AnnotateConfig, *, engine: EngineConfig, on_progress: OnProgress = no_progress
) -> AnnotateSummary:
    """Run every annotator of `config` on every raw shard it has not done yet."""
    shards = raw_shards(job)
    if not shards:
        raise ValueError(f"{job.raw} has no raw shards; run headrace fetch first")
    # All model files are read before anything is written.
    chosen = annotators_of(config, job)
    digests = {name: digest(annotator) for name, annotator in chosen.items()}
    fence = fence_of_owner(job)
    _begin(job, chosen, digests)
    units = _units(job, config, chosen, shards, engine)
    left = {unit.shard for unit in units}
    log.info("%d raw shards, %d of them have all annotations already", len(shards), len(shards) - len(left))
    _run(job, units, engine, on_progress, fence)
    _remove_leftovers(job, digests)  # of a machine that was lost meanwhile
    job.quarantine("annotate").empty()
    remove_parts(job, [])
    return _summary(job, chosen, shards, tables_written=sum(len(unit.digests) for unit in units))


def divide_annotate(
    job: Job, config: AnnotateConfig, *, engine: EngineConfig, on_progress: OnProgress = no_progress
) -> Divided:
    """Return annotate as units, one a raw shard."""
    chosen = annotators_of(config, job)
    digests = {name: digest(annotator) for name, annotator in chosen.items()}

    def prepare() -> None:
        _begin(job, chosen, digests)
        remove_parts(job, [part for unit in _units(job, config, chosen, raw_shards(job), engine) for part in cut(unit)])

    def done() -> set[str]:
        return set(raw_shards(job)) - {unit.shard for unit in _units(job, config, chosen, raw_shards(job), engine)}

    def run(names: Sequence[str], fence: Fence) -> None:
        _run(job, _units(job, config, chosen, names, engine), engine, on_progress, fence, alone=False)

    return Divided(prepare=prepare, units=lambda: sorted(raw_shards(job)), done=done, run=run)


def _begin(job: Job, chosen: Mapping[str, Annotator], digests: Mapping[str, str]) -> None:
    """Say what each annotator's folder is of, and remove what killed runs left there."""
    _remove_leftovers(job, digests)
    for name, value in digests.items():
        folder = job.annotations(name, value)
        if chosen[name].made_as != chosen[name].version:
            log.info("%s goes on%s; without %s it is made anew", name, _older(chosen[name]), folder)
        # A commit record whose table is gone speaks of nothing: without it the table is made again.
        for shard in set(committed(folder)) - annotated_shards(folder):
            atomic.remove(urlpath.join(folder, "commits", f"{shard}.json"))
        text = canonical_json(identity(chosen[name])) + "\n"
        atomic.put_if_absent(urlpath.join(folder, "annotator.json"), text.encode())


def _remove_leftovers(job: Job, digests: Mapping[str, str]) -> None:
    for name, value in digests.items():
        clear_leftovers(job.annotations(name, value), "commits")


def _run(
    job: Job,
    units: list[AnnotateUnit],
    engine: EngineConfig,
    on_progress: OnProgress,
    fence: Fence,
    *,
    alone: bool = True,
) -> None:
    """Annotate shards, the large ones in parts; a shard is joined when the last of its parts is done.

    Where this process is `alone`, what lies there of other shards is of killed runs.
    """
    units = [replace(unit, fence=fence) for unit in units]
    parts = {unit.name: cut(unit) for unit in units}
    if alone:
        remove_parts(job, [part for several in parts.values() for part in several])
    known = known_parts(job)
    left = {name: {part.start for part in several if not is_done(part, known)} for name, several in parts.items()}
    todo: list[AnnotateUnit | PartUnit] = []
    for unit in units:
        several = parts[unit.name]
        todo += [part for part in several if part.start in left[unit.name]] if several else [unit]
        if several and not left[unit.name]:  # a run was killed before it joined them
            join(unit, several)

    def ended(number: int, _: None) -> None:
        part = todo[number]
        if isinstance(part, PartUnit):
            name = part.whole.name
            left[name].remove(part.start)
            if not left[name]:
                join(part.whole, parts[name])

    def tell(progress: Progress) -> None:
        on_progress(replace(progress, noun="parts of shards") if len(todo) > len(units) else progress)

    if engine.executor != "ray":  # of the machines of a cluster nothing is known here
        threads = spare_threads(len(todo), 1 if engine.executor == "inline" else engine.workers)
        todo = [item.decoding_with(threads) for item in todo]
    run_units(annotate_part, todo, engine, tell, ended, quarantine=job.quarantine("annotate"))
    fence.check()


def _units(
    job: Job, config: AnnotateConfig, chosen: Mapping[str, Annotator], shards: Iterable[str], engine: EngineConfig
) -> list[AnnotateUnit]:
    """Return what is to do; annotators that take a GPU have units of their own, which wait for one."""
    done = {name: set(committed(job.annotations(name, digest(chosen[name])))) for name in chosen}
    # Of the machines of a cluster nothing is known here.
    there_are = has_gpu() if engine.executor != "ray" else True
    on_gpu = {name for name, kind in chosen.items() if kind.resources().takes_gpu(there_are=there_are)}
    units = []
    for shard in shards:
        todo = [name for name in chosen if shard not in done[name]]
        for names in ([name for name in todo if name not in on_gpu], [name for name in todo if name in on_gpu]):
            if names:
                resources = all_of(chosen[name].resources() for name in names)
                if not on_gpu.intersection(names):
                    resources = replace(resources, gpu="none")
                digests = tuple((name, digest(chosen[name])) for name in names)
                units.append(AnnotateUnit(job, shard, digests, config, resources=resources))
    return units


def _summary(job: Job, chosen: Mapping[str, Annotator], shards: list[str], *, tables_written: int) -> AnnotateSummary:
    # Any annotator that needs pixels counted the images that have none.
    counting = sorted(chosen.values(), key=lambda annotator: not annotator.needs_pixels)[0]
    folder = job.annotations(counting.name, digest(counting))
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

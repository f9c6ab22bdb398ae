"""Build all output shards of a ledger and finish the dataset.

Each shard's commit record names the ledger and the settings it was made with, so that no dataset mixes two ledgers. A
finished dataset is never replaced silently: `start_over` removes it first, its commits last, so that a killed removal
is still seen as another ledger's. Another decision can be built beside it under a name of its own (`build.dataset`).
"""

import logging
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from headrace import atomic, files, urlpath
from headrace.curation.build.card.about import CARD_NAMES, about_dataset, write_card
from headrace.curation.build.config import BuildConfig, settings_of
from headrace.curation.build.inputs import load_raw_shard, open_table
from headrace.curation.build.labels import CLASSES, Labels, class_facts, find_labels, published_classes
from headrace.curation.build.unit import MIN_JUDGED_ROWS, BuildUnit, build_unit, describe_failure
from headrace.curation.datasets import shown_name
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.ledger import Decision, check_ledger, digest_of, latest_decision
from headrace.curation.part import Divided
from headrace.curation.raw.read import check_raw_tar, read_raw
from headrace.lease import Fence
from headrace.shards.commit import committed, read_commit
from headrace.shards.manifest import MANIFEST_NAME, SUMMARY_NAME
from headrace.shards.parquet import read_equal, read_table
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import clear_leftovers, finish_dataset

log = logging.getLogger(__name__)

# Raised whenever the same ledger and settings would give other bytes.
BUILD_VERSION = 1
# Each holds one raw shard's tables.
NUM_READERS = 4
NUM_RECORD_READERS = 16
# Of a job with fewer rows than a share can be judged by: one of its three rows may fail.
SMALL_JOB_BUDGET = 0.5
# Settings that stand for what build did before it had these keys.
_BEFORE = {"encoding": "fixed", "upright": False, "blur_regions": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What the dataset holds."""

    dataset: str
    """Its folder in the job."""
    failures: str
    """The folder in the job of what could not be built."""
    ledger: str
    """Name of the ledger that explains it."""
    num_shards: int
    num_samples: int
    num_bytes: int
    num_failed: int

    def __str__(self) -> str:
        failed = f"; {self.num_failed} rows failed, see {self.failures}" if self.num_failed else ""
        return (
            f"{self.num_samples} samples in {self.num_shards} shards, {self.num_bytes} bytes{failed}; "
            f"{self.dataset} from ledger {self.ledger}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What a dataset must follow from, and what it says of itself."""

    decided_by: str
    """`decided_by` of the ledger to build: of the ledgers there are, the recipe's own."""
    placement: Mapping[str, int]
    """Where select places the rows; part of what each shard's commit record names."""
    recipe_digest: str
    """Written into the finished dataset."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What of the recipe the card tells."""


def plan_build(
    job: Job, config: BuildConfig, origin: Origin, *, start_over: bool = False, select_first: bool = False
) -> list[str]:
    """Return what `run_build` would do; with `select_first` after a run of select with this recipe."""
    dataset = job.dataset_named(config.dataset)
    how = "at" if config.encoding == "fixed" else "as they were encoded, at most"
    lines = [
        f"write {dataset}: {_shard_size(origin.placement)}, shuffled within "
        f"{origin.placement['shuffle_window']} raw shards; cut metadata",
        f"blur faces, encode those images again {how} quality {config.jpeg_quality}"
        if config.blur_faces
        else "keep faces",
        *_plan_images(config),
    ]
    there = committed(dataset)
    if there and start_over:
        lines.append(f"remove the dataset that is there first ({len(there)} shards)")
    try:
        decision = latest_decision(job, origin.decided_by)
    except ValueError as error:
        if not select_first:
            return [*lines, f"cannot start yet: {error}"]
        if there and not start_over:
            lines.append(f"would be refused: {_other_dataset(job, config.dataset, there)}")
        return [*lines, "rows and shards are what select will decide"]
    try:
        if not start_over:
            config = _as_begun(job, config, origin, decision)
        done = set() if start_over else _committed(job, config, _inputs_digest(config, origin, decision))
    except ValueError as error:
        return [*lines, f"would be refused: {error}"]
    summary = decision.summary
    return [
        *lines,
        f"{summary.kept} rows in {summary.out_shards} shards, as ledger {decision.ledger.name} says; "
        f"{len(done)} of them are done",
    ]


def _shard_size(placement: Mapping[str, int]) -> str:
    size = f"{placement['samples_per_shard']} samples a shard"
    most = placement.get("bytes_per_shard")
    return f"at most {size} and {most} bytes of images as fetched" if most else size


def _plan_images(config: BuildConfig) -> list[str]:
    """Say how the images, captions and labels differ from what was fetched."""
    side = "longest" if config.longest_side else "shortest" if config.shortest_side else ""
    lines = [f"make images smaller until their {side} side has {config.longest_side or config.shortest_side} pixels"]
    lines = lines if side else []
    if config.format != "source":
        lines.append(f"encode every image that is none as {config.format}")
    if config.chooses_captions:
        lines.append(f"caption: the first of {', '.join(config.caption)} that has a text")
    if config.labels.column:
        lines.append(f"label: column {config.labels.column}")
    return lines


def run_build(
    job: Job,
    config: BuildConfig,
    origin: Origin,
    *,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    start_over: bool = False,
) -> BuildSummary:
    """Build every output shard of the recipe's ledger that is not committed, then write the manifest.

    Raises ValueError if the dataset there was built from another ledger (unless `start_over`), or nothing is kept.
    """
    load_raw_shard.cache_clear()
    name, dataset, fence = config.dataset, job.dataset_named(config.dataset), fence_of_owner(job)
    decision = _decision(job, origin)
    fence.check()
    _begin(job, config, decision, start_over=start_over)
    config = _as_begun(job, config, origin, decision)
    inputs = _inputs_digest(config, origin, decision)
    done = _committed(job, config, inputs)
    names = out_shards(decision)
    labels = _labels(job, config, decision, done)
    units = [_unit(decision, config, inputs, shard, labels, fence) for shard in names if shard not in done]
    log.info("ledger %s: %d shards, %d of them are done already", decision.ledger.name, len(names), len(done))
    run_units(build_unit, units, engine, on_progress, quarantine=job.quarantine("build"))
    fence.check()
    atomic.remove_leftovers(job.build_failures(config.dataset))  # of a machine that was lost meanwhile
    job.quarantine("build").empty()
    _remove_strays(job, name, names)
    with ThreadPoolExecutor(NUM_RECORD_READERS) as readers:
        records = list(readers.map(lambda shard: read_commit(dataset, shard), names))
    if any(record.get("inputs") != inputs for record in records):
        raise ValueError(_other_dataset(job, name, names))
    built = BuildSummary(
        dataset=shown_name(name),
        failures=job.build_failures(name).removeprefix(f"{job.url}/"),
        ledger=decision.ledger.name,
        num_shards=len(records),
        num_samples=sum(record["num_samples"] for record in records),
        num_bytes=sum(record["num_bytes"] for record in records),
        num_failed=sum(record["num_failed"] for record in records),
    )
    _check_budget(job, config, built, names)
    fence.check()
    write_card(dataset, about_dataset(decision, origin.card, classes=labels.classes if labels else ()))
    finish_dataset(
        dataset, recipe_digest=origin.recipe_digest, facts={"ledger": decision.summary.digest, **class_facts(labels)}
    )
    return built


def divide_build(
    job: Job,
    config: BuildConfig,
    origin: Origin,
    *,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    start_over: bool = False,
) -> Divided:
    """Return build as units, one an output shard of the recipe's ledger."""
    decision = _decision(job, origin)

    def begun() -> tuple[BuildConfig, str]:
        as_begun = _as_begun(job, config, origin, decision)
        return as_begun, _inputs_digest(as_begun, origin, decision)

    def done() -> set[str]:
        return _committed(job, *begun())

    def prepare() -> None:
        _begin(job, config, decision, start_over=start_over)
        done()  # refuses the dataset of another ledger

    def run(names: Sequence[str], fence: Fence) -> None:
        load_raw_shard.cache_clear()
        as_begun, inputs = begun()
        labels = _labels(job, as_begun, decision, _committed(job, as_begun, inputs))
        units = [_unit(decision, as_begun, inputs, name, labels, fence) for name in names]
        run_units(build_unit, units, engine, on_progress, quarantine=job.quarantine("build"))

    return Divided(prepare=prepare, units=lambda: out_shards(decision), done=done, run=run, starts_over=start_over)


def _decision(job: Job, origin: Origin) -> Decision:
    """Return the recipe's ledger. Raises ValueError if it is damaged or keeps nothing."""
    decision = latest_decision(job, origin.decided_by)
    if not decision.summary.kept:
        raise ValueError(
            f"{decision.ledger.url}: the recipe keeps none of {decision.summary.rows} rows; "
            f"see the funnel: headrace report {job.url}"
        )
    check_ledger(decision)
    return decision


def _begin(job: Job, config: BuildConfig, decision: Decision, *, start_over: bool) -> None:
    """Remove what killed runs left; with `start_over` the dataset that is there."""
    dataset = job.dataset_named(config.dataset)
    if start_over:
        if committed(dataset):
            _check_inputs(decision)
        remove_dataset(job, config.dataset)
    clear_leftovers(dataset, "shards", "commits")
    atomic.remove_leftovers(job.build_failures(config.dataset))


def _check_budget(job: Job, config: BuildConfig, built: BuildSummary, names: list[str]) -> None:
    """Raise ValueError if too many rows of the whole job failed; a unit judges large output shards only."""
    num_rows = built.num_samples + built.num_failed
    share = config.failure_budget if num_rows >= MIN_JUDGED_ROWS else max(config.failure_budget, SMALL_JOB_BUDGET)
    if built.num_samples and built.num_failed <= share * num_rows:
        return
    tables = (read_table(urlpath.join(job.build_failures(config.dataset), f"{name}.parquet")) for name in names)
    first = next((table.slice(0, 1).to_pylist()[0] for table in tables if table.num_rows), None)
    raise ValueError(
        f"{job.dataset_named(config.dataset)}: {built.num_failed} of {num_rows} rows failed, over {share:g} "
        "(build.failure_budget)"
        + (f"; the first: {describe_failure(first)}" if first else "")
        + "; end the cause and build again with --start-over, or raise the budget"
    )


def _check_inputs(decision: Decision) -> None:
    """Read every table that the build will read, as a dataset is only removed for one that can be built."""
    job = decision.job
    column = read_equal(decision.ledger.table, {"kept": True}, ["raw_shard"])["raw_shard"]
    folders = decision.annotation_folders()

    def check(shard: str) -> None:
        read_raw(job, shard)
        check_raw_tar(job, shard)
        for annotator, folder in folders.items():
            open_table(annotator, folder, shard)

    with ThreadPoolExecutor(NUM_READERS) as readers:
        for _ in readers.map(check, sorted(column.unique().to_pylist())):
            pass


def out_shards(decision: Decision) -> list[str]:
    """Return the names of the output shards that the ledger asks for, sorted."""
    column = read_equal(decision.ledger.table, {"kept": True}, ["out_shard"])["out_shard"]
    return sorted(name for name in column.unique().to_pylist() if name is not None)


def remove_dataset(job: Job, name: str) -> None:
    """Remove a dataset and build's failures; what makes them count goes first, the commits last."""
    dataset = job.dataset_named(name)
    for file in (SUMMARY_NAME, MANIFEST_NAME, *CARD_NAMES):
        atomic.remove(urlpath.join(dataset, file))
    parts = [urlpath.join(dataset, part) for part in ("shards", "forgotten", "commits")]
    for folder in (parts[0], job.build_failures(name), *parts[1:]):
        for file in files.list_names(folder):
            atomic.remove(urlpath.join(folder, file))


def _inputs_digest(config: BuildConfig, origin: Origin, decision: Decision) -> str:
    # The placement was part of these settings before it had a key of its own: datasets of that time stay valid.
    settings = {**settings_of(config), **origin.placement}
    # Keys that did not exist, where they say what was done before they did.
    for name, before in _BEFORE.items():
        if settings[name] == before:
            del settings[name]
    # The budget decides whether a run stops, the name where it writes; never what.
    del settings["failure_budget"], settings["dataset"]
    settings.pop("card", None)
    return digest_of({"ledger": decision.summary.digest, "build": settings, "version": BUILD_VERSION})


def _as_begun(job: Job, config: BuildConfig, origin: Origin, decision: Decision) -> BuildConfig:
    """Return the config that a dataset of before was begun with, if it is there and only keys since then differ."""
    before = replace(config, encoding="fixed", upright=False)
    names = committed(job.dataset_named(config.dataset))
    if not names or before == config:
        return config
    begun = read_commit(job.dataset_named(config.dataset), names[0]).get("inputs")
    if begun != _inputs_digest(before, origin, decision):
        return config
    log.info(
        "%s was begun before build.encoding and build.upright: it goes on without", job.dataset_named(config.dataset)
    )
    return before


def _committed(job: Job, config: BuildConfig, inputs: str) -> set[str]:
    """Return the finished shards. Raises ValueError if they were made from another ledger or with other settings."""
    dataset = job.dataset_named(config.dataset)
    names = committed(dataset)
    # Every run checks before it writes, so the first and the last record speak for all.
    for name in {*names[:1], *names[-1:]}:
        if read_commit(dataset, name).get("inputs") != inputs:
            raise ValueError(_other_dataset(job, config.dataset, names))
    return set(names)


def _labels(job: Job, config: BuildConfig, decision: Decision, done: Set[str]) -> Labels | None:
    """Return how rows get their labels: numbers mean what they mean in the shards that are done.

    Raises ValueError if a take-down has left an unfinished dataset without a class that its shards count.
    """
    dataset = job.dataset_named(config.dataset)
    labels = find_labels(decision, config.labels, published=published_classes(dataset) if done else ())
    if labels is not None:
        for name in sorted(done)[:1]:
            if read_commit(dataset, name).get(CLASSES, labels.digest) != labels.digest:
                raise ValueError(
                    f"{dataset} was begun with other classes than build.labels.column {config.labels.column} has now, "
                    "after a take-down; build it again with --start-over, or name build.labels.classes"
                )
    return labels


def _other_dataset(job: Job, dataset: str, names: list[str]) -> str:
    return (
        f"{job.dataset_named(dataset)} was built from another ledger or with other build settings ({len(names)} shards "
        "are there); build beside it with build.dataset=NAME, or with --start-over to remove it first"
    )


def _unit(
    decision: Decision, config: BuildConfig, inputs: str, name: str, labels: Labels | None, fence: Fence
) -> BuildUnit:
    return BuildUnit(
        name=name,
        job=decision.job.url,
        ledger=decision.ledger.url,
        ledger_digest=decision.summary.digest,
        annotations=tuple(sorted(decision.annotation_folders().items())),
        config=config,
        takes_captions=any(step.details.get("captions_taken") for step in decision.summary.steps),
        merges_captions=decision.summary.merges_captions,
        labels=labels,
        inputs_digest=inputs,
        fence=fence,
    )


def _remove_strays(job: Job, dataset: str, names: list[str]) -> None:
    """Remove what an interrupted build of an earlier ledger left beside this one's shards, never committed."""
    shards = urlpath.join(job.dataset_named(dataset), "shards")
    for folder, suffixes in ((shards, (".tar", ".parquet")), (job.build_failures(dataset), (".parquet",))):
        planned = {f"{name}{suffix}" for name in names for suffix in suffixes}
        for name in files.list_names(folder):
            if name not in planned:
                atomic.remove(urlpath.join(folder, name))

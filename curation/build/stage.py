"""Build all output shards of a ledger and finish the dataset.

Each shard's commit record names the ledger and the settings it was made with, so that no dataset mixes two ledgers.
The one thing a reader would get wrong: a finished dataset is never replaced silently; `start_over` removes it first,
its commits last, so that a killed removal is still seen as another ledger's.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace import files
from headrace.config import config_to_dict
from headrace.curation.build.inputs import load_raw_shard, open_table
from headrace.curation.build.unit import BuildUnit, build_unit
from headrace.curation.engine import OnProgress, no_progress, run_units
from headrace.curation.job import Job
from headrace.curation.ledger import LedgerSummary, check_ledger, digest_of, ledger_url, read_summary
from headrace.curation.raw.read import raw_tar_url, read_raw
from headrace.curation.select import decided_by
from headrace.shards.commit import committed, read_commit
from headrace.shards.dataset import MANIFEST_NAME, SUMMARY_NAME
from headrace.shards.parquet import read_equal
from headrace.shards.write import finish_dataset

if TYPE_CHECKING:  # the recipe imports this stage's config
    from headrace.curation.recipe import Recipe

# Raised whenever the same ledger and settings would give other bytes.
BUILD_VERSION = 1
# Each holds one raw shard's tables.
NUM_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What the dataset holds."""

    num_shards: int
    num_samples: int
    num_bytes: int
    num_failed: int

    def __str__(self) -> str:
        failed = f"; {self.num_failed} rows failed, see build/failures" if self.num_failed else ""
        return f"{self.num_samples} samples in {self.num_shards} shards, {self.num_bytes} bytes{failed}"


def plan_build(recipe: "Recipe", *, start_over: bool = False, select_first: bool = False) -> list[str]:
    """Return what `run_build` would do; with `select_first` after a run of select with this recipe."""
    job, config = Job(recipe.job), recipe.build
    lines = [
        f"write {job.dataset}: {config.samples_per_shard} samples a shard, shuffled within {config.shuffle_window} raw "
        "shards; cut metadata",
        f"blur faces, encode those images again at quality {config.jpeg_quality}"
        if config.blur_faces
        else "keep faces",
    ]
    there = committed(job.dataset)
    if there and start_over:
        lines.append(f"remove the dataset that is there first ({len(there)} shards)")
    try:
        summary = read_summary(job)
        _check_decided(job, recipe, summary)
    except ValueError as error:
        if not select_first:
            return [*lines, f"cannot start yet: {error}"]
        if there and not start_over:
            lines.append(f"would be refused: {_other_dataset(job, there)}")
        return [*lines, "rows and shards are what select will decide"]
    try:
        done = set() if start_over else _committed(job, recipe, summary)
    except ValueError as error:
        return [*lines, f"would be refused: {error}"]
    return [*lines, f"{summary.kept} rows in {summary.out_shards} shards; {len(done)} of them are done"]


def run_build(recipe: "Recipe", *, on_progress: OnProgress = no_progress, start_over: bool = False) -> BuildSummary:
    """Build every output shard of the ledger that is not committed, then write the manifest.

    Raises ValueError if the dataset there was built from another ledger (unless `start_over`), or nothing is kept.
    """
    load_raw_shard.cache_clear()
    job = Job(recipe.job)
    summary = read_summary(job)
    if not summary.kept:
        raise ValueError(f"{job.ledger}: the recipe keeps none of {summary.rows} rows; see the funnel: headrace report")
    check_ledger(job, summary)
    _check_decided(job, recipe, summary)
    if start_over:
        if committed(job.dataset):
            _check_inputs(job, summary)
        remove_dataset(job)
    done = _committed(job, recipe, summary)
    for name in ("", "shards", "commits"):
        files.remove_leftovers(files.join(job.dataset, name))
    files.remove_leftovers(job.build_failures)
    names = out_shards(job)
    units = [_unit(recipe, summary, name) for name in names if name not in done]
    run_units(build_unit, units, recipe.engine, on_progress)
    _remove_strays(job, names)
    finish_dataset(job.dataset, recipe_digest=recipe_digest(recipe), facts={"ledger": summary.digest})
    records = [read_commit(job.dataset, name) for name in names]
    return BuildSummary(
        num_shards=len(records),
        num_samples=sum(record["num_samples"] for record in records),
        num_bytes=sum(record["num_bytes"] for record in records),
        num_failed=sum(record["num_failed"] for record in records),
    )


def _check_decided(job: Job, recipe: "Recipe", summary: LedgerSummary) -> None:
    """Raise ValueError if another recipe made the ledger: its faces, cut or places are not what this one says."""
    if summary.samples_per_shard != recipe.build.samples_per_shard:
        raise ValueError(
            f"build.samples_per_shard is {recipe.build.samples_per_shard}, but the ledger places "
            f"{summary.samples_per_shard}; run `headrace select` with this recipe first"
        )
    if summary.decided_by != decided_by(recipe):
        raise ValueError(
            f"{job.ledger} was decided by another recipe (select, annotate, seed or build.shuffle_window differ); "
            "run `headrace annotate` and `headrace select` with this recipe first"
        )


def _check_inputs(job: Job, summary: LedgerSummary) -> None:
    """Read every table that the build will read, as a dataset is only removed for one that can be built."""
    column = read_equal(ledger_url(job), {"kept": True}, ["raw_shard"])["raw_shard"]
    folders = _annotation_folders(job, summary)

    def check(shard: str) -> None:
        read_raw(job, shard)
        if not files.exists(raw_tar_url(job, shard)):
            raise FileNotFoundError(f"{raw_tar_url(job, shard)} is missing")
        for annotator, folder in folders.items():
            open_table(annotator, folder, shard)

    with ThreadPoolExecutor(NUM_READERS) as readers:
        for _ in readers.map(check, sorted(column.unique().to_pylist())):
            pass


def _annotation_folders(job: Job, summary: LedgerSummary) -> dict[str, str]:
    return {name: files.join(job.url, "annotations", folder) for name, folder in summary.annotations.items()}


def out_shards(job: Job) -> list[str]:
    """Return the names of the output shards that the ledger asks for, sorted."""
    column = read_equal(ledger_url(job), {"kept": True}, ["out_shard"])["out_shard"]
    return sorted(name for name in column.unique().to_pylist() if name is not None)


def built_from(job: Job) -> str | None:
    """Return the digest of the ledger that a finished dataset was built from, or None."""
    try:
        summary = json.loads(files.read_bytes(files.join(job.dataset, SUMMARY_NAME)))
    except (FileNotFoundError, ValueError):
        return None
    digest = summary.get("ledger") if isinstance(summary, dict) else None
    return digest if isinstance(digest, str) else None


def recipe_digest(recipe: "Recipe") -> str:
    """Return the digest of all in the recipe that can change the dataset."""
    data = config_to_dict(recipe)
    return digest_of({name: value for name, value in data.items() if name not in ("job", "engine", "limits", "report")})


def remove_dataset(job: Job) -> None:
    """Remove the dataset and build's failures; what makes them count goes first, the commits last."""
    for name in (SUMMARY_NAME, MANIFEST_NAME):
        files.remove(files.join(job.dataset, name))
    for folder in (files.join(job.dataset, "shards"), job.build_failures, files.join(job.dataset, "commits")):
        for name in files.list_names(folder):
            files.remove(files.join(folder, name))


def _inputs_digest(recipe: "Recipe", summary: LedgerSummary) -> str:
    settings = config_to_dict(recipe.build)
    # The budget decides whether a run stops, never what it writes.
    settings.pop("failure_budget")
    return digest_of({"ledger": summary.digest, "build": settings, "version": BUILD_VERSION})


def _committed(job: Job, recipe: "Recipe", summary: LedgerSummary) -> set[str]:
    """Return the finished shards. Raises ValueError if they were made from another ledger or with other settings."""
    names = committed(job.dataset)
    # Every run checks before it writes, so the first and the last record speak for all.
    for name in {*names[:1], *names[-1:]}:
        if read_commit(job.dataset, name).get("inputs") != _inputs_digest(recipe, summary):
            raise ValueError(_other_dataset(job, names))
    return set(names)


def _other_dataset(job: Job, names: list[str]) -> str:
    return (
        f"{job.dataset} was built from another ledger or with other build settings ({len(names)} shards are there); "
        "build with --start-over to remove it first, or name another job folder"
    )


def _unit(recipe: "Recipe", summary: LedgerSummary, name: str) -> BuildUnit:
    folders = _annotation_folders(Job(recipe.job), summary)
    return BuildUnit(
        name=name,
        job=recipe.job,
        annotations=tuple(sorted(folders.items())),
        config=recipe.build,
        inputs_digest=_inputs_digest(recipe, summary),
    )


def _remove_strays(job: Job, names: list[str]) -> None:
    """Remove what an interrupted build of an earlier ledger left beside this one's shards, never committed."""
    shards = files.join(job.dataset, "shards")
    for folder, suffixes in ((shards, (".tar", ".parquet")), (job.build_failures, (".parquet",))):
        planned = {f"{name}{suffix}" for name in names for suffix in suffixes}
        for name in files.list_names(folder):
            if name not in planned:
                files.remove(files.join(folder, name))

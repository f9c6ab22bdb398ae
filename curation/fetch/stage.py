"""The stage: what fetch would do, and doing it.

The driver reads the list and schedules; all requests are made by units of work. A finished list shard is never fetched
again; failures are tried again only by `retry_failed`, into new shards.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field

from headrace import files
from headrace.curation.fetch import retry
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.estimate import estimate, measure
from headrace.curation.fetch.lists.inputs import list_files
from headrace.curation.fetch.lists.spill import SpilledList, check_begun, read_tally, spill
from headrace.curation.fetch.lists.survey import Survey, survey
from headrace.curation.fetch.unit import FetchUnit, fetch_shard
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import FOREIGN, adopt_raw, check_adoptable, foreign_shards
from headrace.curation.raw.read import raw_shards, read_raw, recorded_of
from headrace.curation.raw.write import RawShard
from headrace.shards.commit import committed, read_commit
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchSummary:
    """What the raw shards of a job hold."""

    rows: int
    fetched: int
    shards: int
    failed: dict[str, int] = field(default_factory=dict)
    """Failures by error class when first fetched."""
    retried: int = 0
    """Of those, the rows that a retry has fetched."""
    odd: dict[str, int] = field(default_factory=dict)
    """Rows of the lists that could not be read, or not as they stand, by reason."""

    def __str__(self) -> str:
        failed = ", ".join(f"{name} {count}" for name, count in sorted(self.failed.items()))
        return (
            f"{self.rows} rows, {self.fetched} images in {self.shards} raw shards"
            + (f"; failed: {failed}" if failed else "")
            + (f"; {self.retried} of these fetched by a retry" if self.retried else "")
            + "".join(f"; in the list: {reason} ({count})" for reason, count in self.odd.items())
        )


def plan_fetch(
    job: Job,
    source: InputConfig,
    config: FetchConfig,
    *,
    seed: int,
    engine: EngineConfig,
    retry_failed: bool = False,
) -> list[str]:
    """Say what would be done; nothing is requested or written. Raises ValueError for what `run_fetch` would refuse."""
    if source.raw is not None:
        _check_raw(job, source.raw, retry_failed)
        return [f"use the {len(foreign_shards(source.raw))} finished raw shards in {source.raw}"]
    _check_list_job(job)
    lists = list_files(source)
    folder = files.join(job.url, "input")
    begun = check_begun(source, folder, seed=seed, samples_per_shard=config.samples_per_shard)
    found = survey(lists, source)
    if found.exact and not found.rows:
        raise ValueError(f"input.urls: the lists hold no rows: {', '.join(file.url for file in lists)}")
    rows = found.rows if begun is None else begun
    lines = [f"read {len(lists)} list(s), {found.num_bytes} bytes: {lists[0].url}"]
    lines += [f"read {file.url}" for file in lists[1:10]]
    lines += _rows_lines(found, rows, exact=found.exact or begun is not None)
    done = len([name for name in committed(job.raw) if int(name) < -(-rows // config.samples_per_shard)])
    left = max(0, rows - done * config.samples_per_shard)
    lines.append(
        f"fetch into raw shards of {config.samples_per_shard} rows: {config.concurrency} URLs at a time, "
        f"{config.per_host} to one host, up to {config.max_bytes} bytes each, in each process"
    )
    if done:
        lines.append(f"{done} raw shards are finished and stay as they are; {left} rows are left")
    if left:
        lines.append(estimate(left, config, engine, measure(job)))
    return [*lines, f"write {job.raw}"]


def _rows_lines(found: Survey, rows: int, *, exact: bool) -> list[str]:
    """Say how many rows there are, and what was odd in those that were read."""
    how = "" if exact else f", estimated from the first {found.rows_read}"
    lines = [f"{'' if exact else 'about '}{rows} rows{how}"]
    for title, counts in (("not fetched", found.tally.rejected), ("not taken as they stand", found.tally.repaired)):
        lines += [
            f"of {found.rows_read} rows read, {odd.rows} {title}: {reason}; first: {odd.first}"
            for reason, odd in counts.items()
        ]
    return lines


def _check_raw(job: Job, url: str, retry_failed: bool) -> None:
    if retry_failed:
        raise ValueError("--retry-failed works on lists that headrace fetched, not on input.raw")
    check_adoptable(job, url)


def _check_list_job(job: Job) -> None:
    if files.exists(files.join(job.raw, FOREIGN)):
        raise ValueError(f"{job.raw}: this job began with input.raw; give the list a job folder of its own")


def run_fetch(
    job: Job,
    source: InputConfig,
    config: FetchConfig,
    *,
    seed: int,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
    retry_failed: bool = False,
) -> FetchSummary:
    """Fetch what is not fetched yet; with `retry_failed` then try failures again (`fetch.retry_classes`)."""
    if source.raw is not None:
        _check_raw(job, source.raw, retry_failed)
        adopt_raw(job, source.raw)
        return summarize(job)
    _check_list_job(job)
    folder = files.join(job.url, "input")
    rows = spill(source, folder, seed=seed, samples_per_shard=config.samples_per_shard)
    files.remove_leftovers(job.raw)
    files.remove_leftovers(files.join(job.raw, "commits"))
    units = _units(job, rows, config)
    todo = _open(job, units)
    log.info("%d rows in %d raw shards, %d of them are done already", rows.num_rows, len(units), len(units) - len(todo))
    run_units(fetch_shard, todo, engine, on_progress)
    if retry_failed:
        generation = retry.begin(job, config, num_list_shards=len(units))
        if generation is not None:
            log.info("%d failed rows are tried again", generation.rows.num_rows)
            again = _units(job, generation.rows, config, first=generation.first_shard, only_successes=True)
            run_units(fetch_shard, _open(job, again), engine, on_progress)
    return summarize(job, num_list_shards=len(units))


def _units(
    job: Job, rows: SpilledList, config: FetchConfig, *, first: int = 0, only_successes: bool = False
) -> list[FetchUnit]:
    size = config.samples_per_shard
    return [
        FetchUnit(
            shard=RawShard(job.raw, first + number, size),
            rows=rows,
            start=start,
            stop=min(start + size, rows.num_rows),
            config=config,
            only_successes=only_successes,
        )
        for number, start in enumerate(range(0, rows.num_rows, size))
    ]


def _open(job: Job, units: list[FetchUnit]) -> list[FetchUnit]:
    done = set(committed(job.raw))
    return [unit for unit in units if unit.shard.name not in done]


def summarize(job: Job, *, num_list_shards: int | None = None) -> FetchSummary:
    """Add up what the raw shards hold; a row that a retry fetched counts as fetched."""
    names = raw_shards(job)
    rows, retried, failed = 0, 0, Counter[str]()
    if num_list_shards is None:
        for name in names:
            classes = read_raw(job, name).column("error_class")
            rows += len(classes)
            failed.update(value for value in classes.to_pylist() if value is not None)
        return FetchSummary(rows, rows - failed.total(), len(names), dict(failed))
    for name in names:
        recorded, status = recorded_of(job, name), read_commit(job.raw, name).get("status_dict")
        if recorded.rows is None or recorded.successes is None or not isinstance(status, dict):
            raise ValueError(f"{recorded.place}: damaged: no count, successes or status_dict; {recorded.advice}")
        if int(name) >= num_list_shards:
            retried += recorded.successes
            continue
        rows += recorded.rows
        failed.update({kind: int(count) for kind, count in status.items() if kind != "success"})
    odd = {reason: found.rows for reason, found in read_tally(files.join(job.url, "input", "runs")).all().items()}
    return FetchSummary(rows, rows - failed.total() + retried, len(names), dict(failed), retried, odd)

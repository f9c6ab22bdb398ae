"""The stage: what fetch would do, and doing it.

The driver reads the list and schedules; all requests are made by units of work. A finished list shard is never fetched
again; failures are tried again only by `retry_failed`, into new shards.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from headrace import files, urlpath
from headrace.curation.blocklist import load_blocklist
from headrace.curation.fetch import retry
from headrace.curation.fetch.alive import write_alive
from headrace.curation.fetch.config import RESIZING, FetchConfig, InputConfig
from headrace.curation.fetch.crawl import fetch_shards
from headrace.curation.fetch.estimate import estimate, measure
from headrace.curation.fetch.lists.plan import Agreed, read_plan
from headrace.curation.fetch.lists.spill import (
    SpilledList,
    SpilledSegment,
    check_begun,
    check_carried,
    read_tallies,
    spill,
    spilled_segments,
)
from headrace.curation.fetch.lists.survey import Survey, survey
from headrace.curation.fetch.reuse.join import join_reuse
from headrace.curation.fetch.reuse.source import open_source
from headrace.curation.fetch.spool import remove_spools
from headrace.curation.fetch.unit import FetchUnit
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.part import Divided
from headrace.curation.raw.img2dataset import FOREIGN, adopt_raw, check_adoptable, foreign_shards
from headrace.curation.raw.read import raw_shards, read_raw, recorded_of
from headrace.curation.raw.segments import list_shards, plan_url, read_segments
from headrace.curation.raw.write import RawShard
from headrace.lease import Fence
from headrace.shards.commit import committed, read_commit
from headrace.shards.units import EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.write import clear_leftovers

log = logging.getLogger(__name__)

MAX_NAMED = 10
"""Lists named in a plan."""
NUM_RECORD_READERS = 16


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
    reused: int = 0
    """Images that earlier jobs had."""
    odd: dict[str, int] = field(default_factory=dict)
    """Rows of the lists that could not be read, or not as they stand, by reason."""

    def __str__(self) -> str:
        failed = ", ".join(f"{name} {count}" for name, count in sorted(self.failed.items()))
        return (
            f"{self.rows} rows, {self.fetched} images in {self.shards} raw shards"
            + (f"; failed: {failed}" if failed else "")
            + (f"; {self.reused} of the images reused" if self.reused else "")
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
    load_blocklist(config.blocklist)
    folder = urlpath.join(job.url, "input")
    agreed = check_begun(source, folder, seed=seed, fetch=config)
    lists = agreed.new if agreed.new else agreed.segments[0]
    found = survey(agreed.new, source)
    check_carried(agreed, found.carried, source, folder)
    if found.exact and not found.rows and not agreed.segments:
        raise ValueError(f"input.urls: the lists hold no rows: {', '.join(file.url for file in lists)}")
    listed = agreed.plan.places
    planned = sum(place.num_rows for place in listed)
    lines = _list_lines(agreed, found)
    lines += _rows_lines(found, planned)
    names = [name for place in listed for name in place.names]
    done = len(set(committed(job.raw)).intersection(names))
    left = max(0, planned + found.rows - done * config.samples_per_shard)
    lines.append(
        f"fetch into raw shards of {config.samples_per_shard} rows: {config.concurrency} URLs at a time, "
        f"{config.per_host} to one host, up to {config.max_bytes} bytes each, in each process"
    )
    if done:
        lines.append(f"{done} raw shards are finished and stay as they are; {left} rows are left")
    for entry in source.reuse if left else ():
        found_there = open_source(entry, own_job=job.url)
        lines.append(f"reuse what {len(found_there.shards)} raw shards of {found_there.name} have, without a request")
    if left:
        lines.append(estimate(left, config, engine, measure(job)))
    return [*lines, f"write {job.raw}"]


def _list_lines(agreed: Agreed, found: Survey) -> list[str]:
    """Name the lists; of a job that has begun, those that are new."""
    if not agreed.segments:
        told = [f"read {len(agreed.new)} list(s), {found.num_bytes} bytes: {agreed.new[0].url}"]
        return told + [f"read {file.url}" for file in agreed.new[1:MAX_NAMED]]
    old = {file.url for segment in agreed.segments for file in segment}
    new = [f"new: {file.url}{' (its end)' if file.start_row else ''}" for file in agreed.new[:MAX_NAMED]]
    more = [f"new: {len(agreed.new) - MAX_NAMED} more lists"] if len(agreed.new) > MAX_NAMED else []
    return [f"{len(old)} list(s) as this job has taken them", *new, *more]


def _rows_lines(found: Survey, planned: int) -> list[str]:
    """Say how many rows there are, and what was odd in those that were read."""
    how = "" if found.exact else f", estimated from the first {found.rows_read}"
    about = "" if found.exact else "about "
    if planned:
        lines = [f"{planned} rows are planned; {about}{found.rows} rows are new{how}"]
    else:
        lines = [f"{about}{found.rows} rows{how}"]
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
    if files.exists(urlpath.join(job.raw, FOREIGN)):
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
        write_alive(job, source.date_column)
        return summarize(job)
    fence = fence_of_owner(job)
    segments = _begin(job, source, config, seed)
    units = _list_units(job, config, segments)
    todo = _with_reuse(job, _open(job, units), source)
    num_rows = sum(item.rows.num_rows for item in segments)
    log.info("%d rows in %d raw shards, %d of them are done already", num_rows, len(units), len(units) - len(todo))
    _fetch(job, config, todo, engine, on_progress, fence)
    if retry_failed:
        generation = retry.begin(job, config, segments)
        if generation is not None:
            log.info("%d failed rows are tried again", generation.rows.num_rows)
            again = _units(
                job,
                generation.rows,
                config,
                _resizing(job, config),
                first=generation.first_shard,
                only_successes=True,
            )
            todo = _with_reuse(job, _open(job, again), source)
            _fetch(job, config, todo, engine, on_progress, fence)
    clear_leftovers(job.raw, "commits", "images")  # of a machine that was lost meanwhile
    job.quarantine("fetch").empty()
    remove_spools(job.spool, committed(job.raw), run_is_over=True)
    write_alive(job, source.date_column)
    return summarize(job)


def divide_fetch(
    job: Job,
    source: InputConfig,
    config: FetchConfig,
    *,
    seed: int,
    engine: EngineConfig,
    on_progress: OnProgress = no_progress,
) -> Divided:
    """Return fetch as units, one a raw shard of the list."""
    if source.raw is not None:
        raise ValueError("--part and --merge divide the fetch of input.urls; input.raw has nothing to fetch")
    folder = urlpath.join(job.url, "input")

    def prepare() -> None:
        segments = _begin(job, source, config, seed)
        _with_reuse(job, _open(job, _list_units(job, config, segments)), source)

    def run(names: Sequence[str], fence: Fence) -> None:
        agreed = check_begun(source, folder, seed=seed, fetch=config)
        units = _list_units(job, config, spilled_segments(agreed.plan, folder))
        mine = set(names)
        todo = _with_reuse(job, [unit for unit in units if unit.shard.name in mine], source)
        _fetch(job, config, todo, engine, on_progress, fence)

    return Divided(
        prepare=prepare,
        units=lambda: sorted(list_shards(read_segments(job))),
        done=lambda: set(committed(job.raw)),
        run=run,
    )


def _begin(job: Job, source: InputConfig, config: FetchConfig, seed: int) -> tuple[SpilledSegment, ...]:
    """Plan and spill what is new in the lists, and remove what killed runs left."""
    _check_list_job(job)
    load_blocklist(config.blocklist)
    folder = urlpath.join(job.url, "input")
    segments = spill(source, folder, seed=seed, fetch=config, next_shard=retry.next_shard(job))
    clear_leftovers(job.raw, "commits", "images")
    remove_spools(job.spool, committed(job.raw))
    return segments


def _list_units(job: Job, config: FetchConfig, segments: Sequence[SpilledSegment]) -> list[FetchUnit]:
    found = _resizing(job, config)
    return [unit for item in segments for unit in _units(job, item.rows, config, found, first=item.first_shard)]


def _resizing(job: Job, config: FetchConfig) -> int:
    """Return how images of the job are changed: as when it began."""
    found = read_plan(plan_url(job.url)).resizing
    if found < RESIZING and config.resize != "none":
        log.info("images are resized as when this job began (way %d of %d)", found, RESIZING)
    return found


def _fetch(
    job: Job, config: FetchConfig, units: list[FetchUnit], engine: EngineConfig, on_progress: OnProgress, fence: Fence
) -> None:
    fenced = [replace(unit, shard=replace(unit.shard, fence=fence)) for unit in units]
    run_units(_work(config), fenced, engine, on_progress, quarantine=job.quarantine("fetch"))
    fence.check()


def _work(config: FetchConfig) -> Callable[[FetchUnit], None]:
    """Return what fetches raw shards."""
    if config.engine == "headrace":
        return fetch_shards
    from headrace.curation.fetch.img2dataset.engine import fetch_shard

    log.warning("img2dataset asks for the URLs: where redirects lead is not screened (fetch.accept_unscreened)")
    return fetch_shard


def _units(
    job: Job, rows: SpilledList, config: FetchConfig, resizing: int, *, first: int, only_successes: bool = False
) -> list[FetchUnit]:
    size = config.samples_per_shard
    return [
        FetchUnit(
            shard=RawShard(job.raw, first + number, size, config.made_columns, config.output_format),
            rows=rows,
            start=start,
            stop=min(start + size, rows.num_rows),
            config=config,
            resizing=resizing,
            spool=job.spool,
            only_successes=only_successes,
        )
        for number, start in enumerate(range(0, rows.num_rows, size))
    ]


def _with_reuse(job: Job, units: list[FetchUnit], source: InputConfig) -> list[FetchUnit]:
    """Look up what earlier jobs have of the rows of these units."""
    lists = list(dict.fromkeys(unit.rows for unit in units))
    joined = join_reuse(lists, source.reuse, source.reuse_failures, own_job=job.url)
    known = dict(zip(lists, joined, strict=True))
    return [replace(unit, reuse=known[unit.rows]) for unit in units]


def _open(job: Job, units: list[FetchUnit]) -> list[FetchUnit]:
    done = set(committed(job.raw))
    return [unit for unit in units if unit.shard.name not in done]


def summarize(job: Job) -> FetchSummary:
    """Add up what the raw shards hold; a row that a retry fetched counts as fetched."""
    names, segments = raw_shards(job), read_segments(job)
    listed = list_shards(segments)
    rows, retried, reused, failed = 0, 0, 0, Counter[str]()
    if not segments:
        for name in names:
            classes = read_raw(job, name).column("error_class")
            rows += len(classes)
            failed.update(value for value in classes.to_pylist() if value is not None)
        return FetchSummary(rows, rows - failed.total(), len(names), dict(failed))
    with ThreadPoolExecutor(NUM_RECORD_READERS) as readers:
        records = list(readers.map(lambda name: (read_commit(job.raw, name), recorded_of(job, name)), names))
    for name, (record, recorded) in zip(names, records, strict=True):
        status = record.get("status_dict")
        if recorded.rows is None or recorded.successes is None or not isinstance(status, dict):
            raise ValueError(f"{recorded.place}: damaged: no count, successes or status_dict; {recorded.advice}")
        reused += int(record.get("reused", 0))
        if name not in listed:
            retried += recorded.successes
            continue
        rows += recorded.rows
        failed.update({kind: int(count) for kind, count in status.items() if kind != "success"})
    tally = read_tallies(urlpath.join(job.url, "input"), len(segments))
    odd = {reason: found.rows for reason, found in tally.all().items()}
    return FetchSummary(rows, rows - failed.total() + retried, len(names), dict(failed), retried, reused, odd)

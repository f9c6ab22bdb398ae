"""Fetching failures again: which rows, and into which new raw shards.

A generation is fixed on disk before its first request (the rows, then the record that says which shards they become),
so a killed one goes on with the same names; the next one begins when every shard of it is committed. A retry shard
holds only the rows that succeeded now; where none did there is no shard, its number stays free, and the commit is in
the folder of the generation's rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.lists.rows import LIST_PROBLEM
from headrace.curation.fetch.lists.spill import SpilledList, SpilledSegment, read_places
from headrace.curation.job import Job
from headrace.curation.raw.read import read_raw
from headrace.curation.raw.record import read_json
from headrace.curation.raw.schema import LISTED_COLUMNS, RAW_COLUMNS
from headrace.curation.raw.segments import list_shards, read_segments
from headrace.shards.commit import committed
from headrace.shards.parquet import open_parquet, write_parquet

IDENTITY = ("uid", "input_file", "input_row")


@dataclass(frozen=True, slots=True)
class Generation:
    """One retry of everything that had failed by then."""

    rows: SpilledList
    first_shard: int
    samples_per_shard: int

    @property
    def num_shards(self) -> int:
        """New raw shards of this generation."""
        return -(-self.rows.num_rows // self.samples_per_shard)


def generations(job: Job) -> list[Generation]:
    """Return the retries begun so far, in order."""
    folder = _folder(job)
    found = []
    for name in files.list_names(folder, ".json"):
        place = urlpath.join(folder, name)
        record = read_json(place)
        numbers = [record.get(key) for key in ("rows", "first_shard", "samples_per_shard")]
        if not all(type(number) is int and number >= 0 for number in numbers) or not numbers[2]:
            raise ValueError(f"{place}: damaged: expected rows, first_shard and samples_per_shard; restore it")
        rows = SpilledList(place.removesuffix(".json"), 1, record["rows"])
        found.append(Generation(rows, record["first_shard"], record["samples_per_shard"]))
    return found


def next_shard(job: Job) -> int:
    """Return the first number after the raw shards of all retries; 0 without one."""
    return max((item.first_shard + item.num_shards for item in generations(job)), default=0)


def begin(job: Job, config: FetchConfig, spilled_list: Sequence[SpilledSegment]) -> Generation | None:
    """Return the retry to work on: one that was cut short, or a new one; None if nothing can be tried again.

    `spilled_list` is the list as it was spilled, segment by segment.
    """
    segments = read_segments(job)
    begun = generations(job)
    _remove_leftovers(job, len(begun))
    if begun and not _is_finished(job, begun[-1]):
        return begun[-1]
    first = max(next_shard(job), *(segment.first_shard + segment.num_shards for segment in segments))
    rows = failed_rows(job, config, listed=list_shards(segments), spilled_list=spilled_list)
    if rows.num_rows == 0:
        return None
    folder = _generation_folder(job, len(begun))
    spilled = SpilledList(folder, 1, rows.num_rows)
    write_parquet(spilled.run_url(0), rows, group_rows=config.samples_per_shard)
    record = {"first_shard": first, "rows": rows.num_rows, "samples_per_shard": config.samples_per_shard}
    atomic.put_if_absent(f"{folder}.json", (canonical_json(record) + "\n").encode())
    return Generation(spilled, first, config.samples_per_shard)


def _is_finished(job: Job, generation: Generation) -> bool:
    done = {*committed(job.raw), *committed(generation.rows.folder)}
    return all(f"{generation.first_shard + number:05d}" in done for number in range(generation.num_shards))


def failed_rows(
    job: Job, config: FetchConfig, *, listed: frozenset[str], spilled_list: Sequence[SpilledSegment]
) -> pa.Table:
    """Return the rows that failed with one of `classes` and have not succeeded since, in raw order.

    `listed` are the raw shards of the list; the others are those of retries.
    """
    succeeded: set[tuple[str, str, int]] = set()
    names = committed(job.raw)
    for name in names:
        if name not in listed:
            identity = read_raw(job, name).select(IDENTITY)
            succeeded.update(zip(*(column.to_pylist() for column in identity.columns), strict=True))
    parts = []
    for name in names:
        if name in listed:
            table = _with_listed(read_raw(job, name), int(name), config, spilled_list)
            table = table.filter(pc.is_in(table.column("error_class"), pa.array(config.retry_classes, pa.string())))
            identity = zip(*(table.column(column).to_pylist() for column in IDENTITY), strict=True)
            parts.append(table.filter(pa.array([row not in succeeded for row in identity], pa.bool_())))
    table = pa.concat_tables([part.select(parts[0].column_names) for part in parts])  # older tables: another order
    carried = [name for name in table.column_names if name not in (*RAW_COLUMNS, *config.made_columns)]
    problems = _problems(table)
    table = table.select(["url", "caption", "input_file", "input_row", *carried])
    table = table.append_column("problem", problems)
    return table.add_column(0, "place", pa.array(range(table.num_rows), pa.int64()))


def _with_listed(table: pa.Table, number: int, config: FetchConfig, spilled_list: Sequence[SpilledSegment]) -> pa.Table:
    """Return a raw table with what the list says of each image; tables of before 2026-12 do not hold it."""
    segment = max((item for item in spilled_list if item.first_shard <= number), key=lambda item: item.first_shard)
    with open_parquet(segment.rows.run_url(0)) as run:
        missing = [name for name in LISTED_COLUMNS if name in run.schema.names and name not in table.column_names]
    if missing:
        start = (number - segment.first_shard) * config.samples_per_shard
        rows = read_places(segment.rows, start, start + table.num_rows)
        for name in missing:
            table = table.append_column(name, rows.column(name))
    return table


def _problems(table: pa.Table) -> pa.Array:
    """Return why the list itself gave no URL to fetch, where it did not: that is no failure to try again."""
    messages = zip(table.column("error_class").to_pylist(), table.column("error_message").to_pylist(), strict=True)
    told = [message if kind == "bad-url" and LIST_PROBLEM.match(message or "") else None for kind, message in messages]
    return pa.array(told, pa.string())


def _remove_leftovers(job: Job, num_begun: int) -> None:
    """Clear what a killed run left: of the last generation, or of one that had not begun."""
    atomic.remove_leftovers(_folder(job))
    for number in range(max(0, num_begun - 1), num_begun + 1):
        atomic.remove_leftovers(_generation_folder(job, number))
        atomic.remove_leftovers(urlpath.join(_generation_folder(job, number), "commits"))


def _generation_folder(job: Job, number: int) -> str:
    return urlpath.join(_folder(job), f"{number:05d}")


def _folder(job: Job) -> str:
    return urlpath.join(job.url, "input", "retries")

"""Fetching failures again: which rows, and into which new raw shards.

A generation is fixed on disk before its first request (the rows, then the record that says which shards they become),
so a killed one goes on with the same names; the next one begins when every shard of it is committed. A retry shard
holds only the rows that succeeded now; where none did there is no shard, its number stays free, and the commit is in
the folder of the generation's rows.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.config import canonical_json
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.lists.rows import LIST_PROBLEM
from headrace.curation.fetch.lists.spill import SpilledList
from headrace.curation.job import Job
from headrace.curation.raw.read import read_raw
from headrace.curation.raw.record import read_json
from headrace.curation.raw.schema import RAW_COLUMNS
from headrace.shards.commit import committed
from headrace.shards.parquet import write_parquet

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
        place = files.join(folder, name)
        record = read_json(place)
        numbers = [record.get(key) for key in ("rows", "first_shard", "samples_per_shard")]
        if not all(type(number) is int and number >= 0 for number in numbers) or not numbers[2]:
            raise ValueError(f"{place}: damaged: expected rows, first_shard and samples_per_shard; restore it")
        rows = SpilledList(place.removesuffix(".json"), 1, record["rows"])
        found.append(Generation(rows, record["first_shard"], record["samples_per_shard"]))
    return found


def begin(job: Job, config: FetchConfig, *, num_list_shards: int) -> Generation | None:
    """Return the retry to work on: one that was cut short, or a new one; None if nothing can be tried again."""
    begun = generations(job)
    _remove_leftovers(job, len(begun))
    if begun and not _is_finished(job, begun[-1]):
        return begun[-1]
    first = begun[-1].first_shard + begun[-1].num_shards if begun else num_list_shards
    rows = failed_rows(job, config.retry_classes, num_list_shards=num_list_shards)
    if rows.num_rows == 0:
        return None
    folder = _generation_folder(job, len(begun))
    spilled = SpilledList(folder, 1, rows.num_rows)
    write_parquet(spilled.run_url(0), rows, group_rows=config.samples_per_shard)
    record = {"first_shard": first, "rows": rows.num_rows, "samples_per_shard": config.samples_per_shard}
    files.put_if_absent(f"{folder}.json", (canonical_json(record) + "\n").encode())
    return Generation(spilled, first, config.samples_per_shard)


def _is_finished(job: Job, generation: Generation) -> bool:
    done = {*committed(job.raw), *committed(generation.rows.folder)}
    return all(f"{generation.first_shard + number:05d}" in done for number in range(generation.num_shards))


def failed_rows(job: Job, classes: tuple[str, ...], *, num_list_shards: int) -> pa.Table:
    """Return the rows that failed with one of `classes` and have not succeeded since, in raw order."""
    succeeded: set[tuple[str, str, int]] = set()
    names = committed(job.raw)
    for name in names:
        if int(name) >= num_list_shards:
            identity = read_raw(job, name).select(IDENTITY)
            succeeded.update(zip(*(column.to_pylist() for column in identity.columns), strict=True))
    parts = []
    for name in names:
        if int(name) < num_list_shards:
            table = read_raw(job, name)
            table = table.filter(pc.is_in(table.column("error_class"), pa.array(classes, pa.string())))
            identity = zip(*(table.column(column).to_pylist() for column in IDENTITY), strict=True)
            parts.append(table.filter(pa.array([row not in succeeded for row in identity], pa.bool_())))
    table = pa.concat_tables(parts)
    carried = [name for name in table.column_names if name not in RAW_COLUMNS]
    problems = _problems(table)
    table = table.select(["url", "caption", "input_file", "input_row", *carried])
    table = table.append_column("problem", problems)
    return table.add_column(0, "place", pa.array(range(table.num_rows), pa.int64()))


def _problems(table: pa.Table) -> pa.Array:
    """Return why the list itself gave no URL to fetch, where it did not: that is no failure to try again."""
    messages = zip(table.column("error_class").to_pylist(), table.column("error_message").to_pylist(), strict=True)
    told = [message if kind == "bad-url" and LIST_PROBLEM.match(message or "") else None for kind, message in messages]
    return pa.array(told, pa.string())


def _remove_leftovers(job: Job, num_begun: int) -> None:
    """Clear what a killed run left: of the last generation, or of one that had not begun."""
    files.remove_leftovers(_folder(job))
    for number in range(max(0, num_begun - 1), num_begun + 1):
        files.remove_leftovers(_generation_folder(job, number))
        files.remove_leftovers(files.join(_generation_folder(job, number), "commits"))


def _generation_folder(job: Job, number: int) -> str:
    return files.join(_folder(job), f"{number:05d}")


def _folder(job: Job) -> str:
    return files.join(job.url, "input", "retries")

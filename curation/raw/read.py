"""Raw shards as every later stage reads them: our own, or the output of someone's img2dataset.

Whoever wrote them, a table has exactly the columns of `schema.py`, then the carried ones, and it is the table that was
finished: rows that are gone later would be missing in the ledger without a word.
"""

from collections.abc import Iterable

import pyarrow as pa

from headrace import files
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import Adopted, adopted, foreign_table
from headrace.curation.raw.record import (
    Recorded,
    check_rows,
    check_table_bytes,
    check_tar_size,
    parse_record,
    read_json,
)
from headrace.curation.raw.schema import LATER_COLUMNS, OWN_SCHEMA
from headrace.shards.commit import committed, read_commit
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader


def raw_shards(job: Job) -> list[str]:
    """Return the names of the finished raw shards, sorted. Raises ValueError for a table that is not committed."""
    foreign = adopted(job)
    if foreign is not None:
        return list(foreign.shards)
    names = committed(job.raw)
    tables = {name.removesuffix(".parquet") for name in files.list_names(job.raw, ".parquet")}
    lost = sorted(tables.difference(names))
    if lost:
        raise ValueError(
            f"{job.raw}/{lost[0]}.parquet has no commit record{_and_more(lost)}: it is gone, or the run that wrote the "
            "table was killed; run `headrace fetch` again (with --retry-failed if a retry was killed)"
        )
    return names


def check_list_is_fetched(job: Job) -> None:
    """Raise ValueError if a raw shard of the job's list is not finished: its rows would be missing in the ledger."""
    place = files.join(job.url, "input", "plan.json")
    if not files.exists(place):
        return  # raw shards of others, or of another program
    plan = read_json(place)
    try:
        num_shards = -(-sum(plan["rows"]) // plan["samples_per_shard"])
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{place}: damaged: {error!r}; restore it") from error
    done = set(committed(job.raw))
    missing = [name for name in (f"{number:05d}" for number in range(num_shards)) if name not in done]
    if missing:
        raise ValueError(
            f"{job.raw}: {len(missing)} of the {num_shards} raw shards of the list are not finished: {missing[0]}"
            f"{_and_more(missing)}; run `headrace fetch` again"
        )


def read_raw(job: Job, shard: str) -> pa.Table:
    """Return one raw parquet with the columns of the contract. Raises ShardError if it is not what was finished."""
    foreign = adopted(job)
    recorded = _recorded(job, foreign, shard)
    url = files.join(job.raw if foreign is None else foreign.url, f"{shard}.parquet")
    try:
        data = files.read_bytes(url)
    except FileNotFoundError as error:
        raise ShardError(f"missing; {recorded.advice}", shard=url) from error
    if foreign is None:
        check_table_bytes(data, url, recorded)
        table = _own_table(ParquetReader(data, url).read(), url, recorded)
        check_rows(table, url, recorded)
    else:
        # What another program wrote: first what is wrong with it, then that it is not what this job began with.
        table = foreign_table(ParquetReader(data, url).read(), url)
        check_rows(table, url, recorded)
        check_table_bytes(data, url, recorded)
    return table


def recorded_of(job: Job, shard: str) -> Recorded:
    """Return what was recorded of a raw shard when it was finished. Raises ValueError if the record is damaged."""
    return _recorded(job, adopted(job), shard)


def _recorded(job: Job, foreign: Adopted | None, shard: str) -> Recorded:
    if foreign is not None:
        return foreign.recorded(shard)
    place = files.join(job.raw, "commits", f"{shard}.json")
    advice = f"put the file back, or remove {place} and run `headrace fetch` again"
    try:
        record = read_commit(job.raw, shard)
    except FileNotFoundError as error:
        raise ShardError("missing; run `headrace fetch` again", shard=place) from error
    return parse_record(record, place=place, advice=advice, key_prefix=shard)


def raw_tar_url(job: Job, shard: str) -> str:
    """Return the URL of a raw shard's tar."""
    foreign = adopted(job)
    return files.join(job.raw if foreign is None else foreign.url, f"{shard}.tar")


def check_raw_tar(job: Job, shard: str) -> Recorded:
    """Check that a raw shard's tar has its size; return the record. Raises FileNotFoundError, ShardError."""
    recorded = recorded_of(job, shard)
    check_tar_size(raw_tar_url(job, shard), recorded)
    return recorded


def _own_table(table: pa.Table, url: str, recorded: Recorded) -> pa.Table:
    """Return one of our tables; an older job's gets the columns that were added since, null."""
    for place, field in enumerate(OWN_SCHEMA):
        if field.name in LATER_COLUMNS and field.name not in table.schema.names and place <= table.num_columns:
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    if table.schema.names[: len(OWN_SCHEMA)] != OWN_SCHEMA.names:
        names = ", ".join(table.schema.names)
        raise ShardError(f"not a raw parquet of headrace; columns: {names}; {recorded.advice}", shard=url)
    return table


def _and_more(names: Iterable[str]) -> str:
    more = len(list(names)) - 1
    return f" (and {more} more)" if more else ""

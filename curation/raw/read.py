"""Raw shards as every later stage reads them: our own, or the output of someone's img2dataset.

Whoever wrote them, a table has exactly the columns of `schema.py`, then the carried ones, and it is the table that was
finished: rows that are gone later would be missing in the ledger without a word.
"""

from collections.abc import Collection, Iterable

import pyarrow as pa

from headrace import files, urlpath
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import adopted, foreign_table
from headrace.curation.raw.record import (
    Recorded,
    check_rows,
    check_table_bytes,
    check_tar_size,
    parse_record,
)
from headrace.curation.raw.schema import LATER_COLUMNS, OWN_SCHEMA
from headrace.curation.raw.segments import read_segments
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
    listed = [name for segment in read_segments(job) for name in segment.names]
    done = set(committed(job.raw))
    missing = [name for name in listed if name not in done]
    if missing:
        raise ValueError(
            f"{job.raw}: {len(missing)} of the {len(listed)} raw shards of the list are not finished: {missing[0]}"
            f"{_and_more(missing)}; run `headrace fetch` again"
        )


def read_raw(job: Job, shard: str, columns: Collection[str] | None = None) -> pa.Table:
    """Return one raw parquet with the columns of the contract, or those of `columns` that it has.

    Raises ShardError if it is not what was finished.
    """
    recorded = recorded_of(job, shard)
    url = urlpath.join(recorded.folder, f"{shard}.parquet")
    try:
        data = files.read_bytes(url)
    except FileNotFoundError as error:
        raise ShardError(f"missing; {recorded.advice}", shard=url) from error
    if recorded.own:
        check_table_bytes(data, url, recorded)
        reader = ParquetReader(data, url)
        if columns is not None:
            return _own_columns(reader, url, recorded, columns)
        table = _own_table(reader.read(), url, recorded)
        check_rows(table, url, recorded)
    else:
        # What another program wrote: first what is wrong with it, then that it is not what this job began with.
        table = foreign_table(ParquetReader(data, url).read(), url)
        check_rows(table, url, recorded)
        check_table_bytes(data, url, recorded)
    return table if columns is None else table.select([name for name in table.schema.names if name in columns])


def recorded_of(job: Job, shard: str) -> Recorded:
    """Return what was recorded of a raw shard when it was finished. Raises ValueError if the record is damaged.

    A job has shards of its own or of others, never both: only where it has none is it asked whose it took.
    """
    place = urlpath.join(job.raw, "commits", f"{shard}.json")
    advice = f"put the file back, or remove {place} and run `headrace fetch` again"
    try:
        record = read_commit(job.raw, shard)
    except FileNotFoundError as error:
        foreign = adopted(job)
        if foreign is None:
            raise ShardError("missing; run `headrace fetch` again", shard=place) from error
        return foreign.recorded(shard)
    return parse_record(record, place=place, advice=advice, folder=job.raw, own=True, key_prefix=shard)


def raw_tar_url(job: Job, shard: str) -> str:
    """Return the URL of a raw shard's tar."""
    return tar_of(recorded_of(job, shard), shard)


def tar_of(recorded: Recorded, shard: str) -> str:
    """Return the URL of the tar of a raw shard of which this was recorded."""
    return urlpath.join(recorded.folder, f"{shard}.tar")


def check_raw_tar(job: Job, shard: str) -> Recorded:
    """Check that a raw shard's tar has its size; return the record. Raises FileNotFoundError, ShardError."""
    recorded = recorded_of(job, shard)
    check_tar_size(tar_of(recorded, shard), recorded)
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


def _own_columns(reader: ParquetReader, url: str, recorded: Recorded, columns: Collection[str]) -> pa.Table:
    """Return those of `columns` that one of our tables has, or would have today."""
    schema = _own_table(reader.schema.empty_table(), url, recorded).schema
    table = reader.read([name for name in reader.schema.names if name in columns or name in ("key", "status")])
    check_rows(table, url, recorded)
    for field in schema:
        if field.name in columns and field.name not in reader.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select([name for name in schema.names if name in columns])


def _and_more(names: Iterable[str]) -> str:
    more = len(list(names)) - 1
    return f" (and {more} more)" if more else ""

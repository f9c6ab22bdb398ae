"""Raw shards as every later stage reads them: our own, or the output of someone's img2dataset.

Whoever wrote them, a table has exactly the columns of docs/architecture.md, then the carried ones.
"""

import pyarrow as pa

from headrace import files
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import adopted, foreign_table
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.shards.commit import committed
from headrace.shards.parquet import read_table


def raw_shards(job: Job) -> list[str]:
    """Return the names of the finished raw shards, sorted."""
    foreign = adopted(job)
    return committed(job.raw) if foreign is None else [str(name) for name in foreign["shards"]]


def read_raw(job: Job, shard: str) -> pa.Table:
    """Return one raw parquet with the columns of the contract. Raises ValueError if it is not a raw parquet."""
    foreign = adopted(job)
    url = files.join(job.raw if foreign is None else foreign["url"], f"{shard}.parquet")
    table = read_table(url)
    if foreign is not None:
        return foreign_table(table, url)
    if table.schema.names[: len(OWN_SCHEMA)] != OWN_SCHEMA.names:
        raise ValueError(f"{url}: not a raw parquet of headrace; columns: {', '.join(table.schema.names)}")
    return table


def raw_tar_url(job: Job, shard: str) -> str:
    """Return the URL of a raw shard's tar."""
    foreign = adopted(job)
    return files.join(job.raw if foreign is None else foreign["url"], f"{shard}.tar")

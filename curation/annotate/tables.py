"""Where annotations are, and reading them back joined.

Folders are named by annotator and digest, so tables of other settings are never mixed in. The one thing a reader
would get wrong: finding the folders needs the model files (their content is part of the digest), but neither torch
nor a model in memory.
"""

import hashlib
from typing import Any

import pyarrow as pa

from headrace import remote
from headrace.curation.annotate.config import AnnotateConfig, annotators
from headrace.curation.annotate.protocol import digest
from headrace.curation.job import Job
from headrace.shards.commit import read_commit
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader


def annotation_digests(config: AnnotateConfig) -> dict[str, str]:
    """Return the full digest of each annotator that `config` asks for."""
    return {name: digest(annotator) for name, annotator in annotators(config).items()}


def annotation_folders(config: AnnotateConfig, job: Job) -> dict[str, str]:
    """Return the folder of each annotator that `config` asks for."""
    return {name: job.annotations(name, value) for name, value in annotation_digests(config).items()}


def read_annotations(job: Job, config: AnnotateConfig, shard: str) -> pa.Table:
    """Return `key` and the columns of every annotator for one raw shard, in raw order.

    Raises ValueError if an annotator has not been run on the shard, ShardError if a table is damaged.
    """
    joined: pa.Table | None = None
    for name, folder in annotation_folders(config, job).items():
        table = _read_one(name, folder, shard)
        if joined is None:
            joined = table
            continue
        if not table.column("key").equals(joined.column("key")):
            raise ShardError(f"the rows of {name} are not those of the other annotators", shard=shard)
        for field in table.schema:
            if field.name != "key":
                joined = joined.append_column(field, table.column(field.name))
    assert joined is not None, "AnnotateConfig asks for at least one annotator"
    return joined


def _read_one(name: str, folder: str, shard: str) -> pa.Table:
    url = remote.join(folder, f"{shard}.parquet")
    try:
        record: dict[str, Any] = read_commit(folder, shard)
        data = remote.read_bytes(url)
    except FileNotFoundError as error:
        raise ValueError(f"raw shard {shard} is not annotated by {name} yet; run headrace annotate") from error
    if hashlib.sha256(data).hexdigest() != record.get("sha256"):
        raise ShardError(
            f"its sha256 is not the one of its commit record; remove {folder} and annotate again", shard=url
        )
    return ParquetReader(data, url).read()

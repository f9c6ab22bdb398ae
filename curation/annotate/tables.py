"""Where annotations are, and opening them.

Folders are named by annotator and digest, so tables of other settings are never mixed in; a table counts when its
commit record does, and only with the bytes that the record names. Finding the folders needs the model files (their
content is part of the digest), but neither torch nor a model in memory.
"""

import hashlib

from headrace import files
from headrace.curation.annotate.annotator import digest
from headrace.curation.annotate.config import AnnotateConfig, annotators
from headrace.curation.job import Job
from headrace.shards.commit import committed, read_commit
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader


def annotation_digests(config: AnnotateConfig) -> dict[str, str]:
    """Return the full digest of each annotator that `config` asks for."""
    return {name: digest(annotator) for name, annotator in annotators(config).items()}


def annotation_folders(config: AnnotateConfig, job: Job) -> dict[str, str]:
    """Return the folder of each annotator that `config` asks for."""
    return {name: job.annotations(name, value) for name, value in annotation_digests(config).items()}


def annotated_shards(folder: str) -> set[str]:
    """Return the raw shards whose table is finished: committed, and still there."""
    return set(committed(folder)).intersection(
        name.removesuffix(".parquet") for name in files.list_names(folder, ".parquet")
    )


def open_annotation(folder: str, shard: str) -> ParquetReader:
    """Open one annotator's table of one raw shard.

    Raises FileNotFoundError if it is not finished, ShardError if it is not the bytes that were committed.
    """
    url = files.join(folder, f"{shard}.parquet")
    expected = annotation_sha256(folder, shard)
    data = files.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != expected:
        raise ShardError(
            "its sha256 is not the one of its commit record; remove this file and run `headrace annotate` again",
            shard=url,
        )
    return ParquetReader(data, url)


def annotation_sha256(folder: str, shard: str) -> str:
    """Return the sha256 that a finished table has. Raises FileNotFoundError if it is not finished."""
    return str(read_commit(folder, shard).get("sha256"))

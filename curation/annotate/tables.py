"""Where annotations are, and opening them.

Folders are named by annotator and digest, so tables of other settings are never mixed in; a table counts when its
commit record does, and only with the bytes that the record names. Finding the folders needs the model files (their
content is part of the digest), but neither torch nor a model in memory.
"""

import hashlib
from collections.abc import Collection

from headrace import files, urlpath
from headrace.curation.annotate.annotator import Annotator, digest
from headrace.curation.annotate.config import AnnotateConfig, annotators, versions
from headrace.curation.job import Job
from headrace.shards.commit import committed, read_commit
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader


def annotation_digests(config: AnnotateConfig) -> dict[str, str]:
    """Return the full digest of each annotator that `config` asks for."""
    return {name: digest(annotator) for name, annotator in annotators(config).items()}


def annotators_of(config: AnnotateConfig, job: Job) -> dict[str, Annotator]:
    """Return the annotators that `config` asks for, each in the newest version that the job has tables of.

    Where it has none, in the newest there is. So a job that an older headrace began goes on as it was.
    """
    return {name: _begun(annotator, job) for name, annotator in annotators(config).items()}


def _begun(annotator: Annotator, job: Job) -> Annotator:
    if annotator.earlier:
        for made in versions(annotator):
            if files.exists(urlpath.join(job.annotations(made.name, digest(made)), "annotator.json")):
                return made
    return annotator


def annotation_folders(config: AnnotateConfig, job: Job, only: Collection[str] | None = None) -> dict[str, str]:
    """Return the folder of each annotator that `config` asks for, or of some: their model files must be there."""
    asked = {name: one for name, one in annotators(config).items() if only is None or name in only}
    return {name: job.annotations(name, digest(_begun(annotator, job))) for name, annotator in asked.items()}


def annotated_shards(folder: str) -> set[str]:
    """Return the raw shards whose table is finished: committed, and still there."""
    return set(committed(folder)).intersection(
        name.removesuffix(".parquet") for name in files.list_names(folder, ".parquet")
    )


def open_annotation(folder: str, shard: str) -> ParquetReader:
    """Open one annotator's table of one raw shard.

    Raises FileNotFoundError if it is not finished, ShardError if it is not the bytes that were committed.
    """
    url = urlpath.join(folder, f"{shard}.parquet")
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


def begun_sha256(folder: str, shard: str) -> str:
    """Return the sha256 that a finished table had before rows of it were taken down."""
    record = read_commit(folder, shard)
    return str(record.get("begun_sha256", record.get("sha256")))

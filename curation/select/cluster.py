"""Spherical k-means of embeddings: each row and its nearest centroids.

The centroids are learnt on rows drawn by a hash of seed, uid, input_file and input_row, with one thread: the same
inputs give the same clusters. Cosines to centroids are rounded, as those of pairs are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.curation.select.database import count, insert
from headrace.curation.select.expression import Checker, quoted
from headrace.curation.select.load import IDENTITY
from headrace.curation.select.step import Bench
from headrace.curation.select.vectors import Vectors, check_embedding, cosines, is_present, one_thread, read_vectors

# Without a number: clusters of about a thousand rows, as SemDeDup's (50,000 of 440 M) are of nearly nine thousand.
ROWS_PER_CLUSTER = 1000
MAX_CLUSTERS = 50_000
SAMPLE_PER_CLUSTER = 256
# Of the sample that centroids are learnt on: 1 GiB.
MAX_SAMPLE_NUMBERS = 1 << 28
ITERATIONS = 20

ASSIGNED_SCHEMA = pa.schema([("__row", pa.int64()), ("cluster", pa.int32()), ("nearness", pa.float64())])


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Clusters of rows by spherical k-means over their embeddings."""

    embedding: str = "clip_embedding"
    """Column of embeddings."""
    number: int = 0
    """Clusters; 0: one for each thousand rows, at most 50,000."""
    seed: int = 0
    """Of the rows that the centroids are learnt on, and of where they begin."""

    def __post_init__(self) -> None:
        if not 0 <= self.number <= 1_000_000:
            raise ValueError(f"number of clusters must be 0 (chosen) to 1000000, got {self.number}")


def cluster_columns(config: ClusterConfig, checker: Checker, where: str) -> tuple[str, ...]:
    """Return the columns that clustering reads. Raises ValueError if the embedding is none."""
    check_embedding(checker, config.embedding, where)
    return (config.embedding, *IDENTITY)


def assign_clusters(bench: Bench, config: ClusterConfig, *, nearest: int = 1) -> dict[str, Any]:
    """Create `assigned`: for each row with an embedding its `nearest` clusters, and its cosine to their centroids.

    Returns what a summary says of it.
    """
    present = is_present(config.embedding)
    insert(bench.connection, "assigned", ASSIGNED_SCHEMA.empty_table())
    num_rows = count(bench.connection, f"SELECT count(*) FROM here WHERE {present}")
    if not num_rows:
        return {"clusters": 0, "without_embedding": bench.num_here}
    number = config.number or min(MAX_CLUSTERS, max(1, num_rows // ROWS_PER_CLUSTER))
    centroids = _centroids(bench, config, min(number, num_rows))
    nearest = min(nearest, len(centroids))
    query = f"SELECT __row, {quoted(config.embedding)} AS embedding FROM here WHERE {present} ORDER BY __row"
    with one_thread() as faiss:
        index = faiss.IndexFlatIP(centroids.shape[1])
        index.add(centroids)
        for table, vectors in read_vectors(bench.connection, query, "embedding"):
            _, found = index.search(vectors, nearest)
            rows = np.repeat(table["__row"].to_numpy(), nearest)
            cluster = found.ravel()
            nearness = cosines(np.repeat(vectors, nearest, axis=0), centroids[cluster])
            columns = {"__row": rows, "cluster": cluster.astype(np.int32), "nearness": nearness}
            insert(bench.connection, "assigned", pa.table(columns, schema=ASSIGNED_SCHEMA))
    return {"clusters": len(centroids), "without_embedding": bench.num_here - num_rows}


def _centroids(bench: Bench, config: ClusterConfig, number: int) -> Vectors:
    name, present = quoted(config.embedding), is_present(config.embedding)
    length = count(bench.connection, f"SELECT len({name}) FROM here WHERE {present} LIMIT 1")
    texts = " || chr(10) || ".join(f"coalesce({name}::VARCHAR, '')" for name in IDENTITY)
    query = f"""
        SELECT {name} AS embedding FROM here WHERE {present}
        ORDER BY md5('{config.seed}' || chr(10) || {texts}), {", ".join(IDENTITY)}
        LIMIT {max(number, min(number * SAMPLE_PER_CLUSTER, MAX_SAMPLE_NUMBERS // length))}
        """
    sample = np.concatenate([vectors for _, vectors in read_vectors(bench.connection, query, "embedding")])
    with one_thread() as faiss:
        trained = faiss.Kmeans(
            sample.shape[1],
            number,
            niter=ITERATIONS,
            seed=config.seed % 2**31,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=2 * SAMPLE_PER_CLUSTER,
        )
        trained.train(sample)
    return np.ascontiguousarray(trained.centroids, np.float32)

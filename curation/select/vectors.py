"""Embeddings of rows: read as unit vectors, and the pairs of them whose cosine reaches a threshold.

faiss finds candidates in float32, whose last bits depend on threads and blocks; each is then judged by its cosine in
float64, rounded to 6 digits. So a verdict does not depend on how the candidates were found.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import read_batches
from headrace.curation.select.expression import UNKNOWN, Checker, quoted
from headrace.curation.select.hamming import Indices

DIGITS = 6
# More than float32 loses on unit vectors of some thousand numbers.
MARGIN = 1e-5
ROWS_AT_A_TIME = 10_000
QUERIES_AT_A_TIME = 1024
# A crowd of equal pictures is near with near: pairs that are held at a time, and numbers of theirs that are multiplied.
MAX_PAIRS = 1 << 24
MAX_NUMBERS = 1 << 22

# n vectors of D numbers, of length 1.
Vectors = NDArray[np.float32]


def check_embedding(checker: Checker, column: str, where: str) -> None:
    """Raise ValueError unless `column` holds a list of floats a row."""
    checker.require([column], where)
    kind = checker.check(quoted(column), f"{where}: embedding").type
    if kind not in ("FLOAT[]", "DOUBLE[]", UNKNOWN):
        raise ValueError(f"{where}: embedding {column!r} must be a list of floats a row, but it is of type {kind}")


def is_present(column: str) -> str:
    """Return SQL that is true where a row has an embedding with a direction: finite, not all 0."""
    name = quoted(column)
    finite = f"len(list_filter({name}, lambda x: NOT isfinite(x) OR x IS NULL)) = 0"
    return f"({name} IS NOT NULL AND {finite} AND list_max(list_transform({name}, lambda x: abs(x))) > 0)"


def read_vectors(
    connection: duckdb.DuckDBPyConnection, query: str, column: str, rows: int = ROWS_AT_A_TIME
) -> Iterator[tuple[pa.Table, Vectors]]:
    """Yield pieces of a query's result and the vectors of its column `column`. Raises ValueError for other lengths."""
    length = 0
    for table in read_batches(connection, query, rows):
        vectors = unit_vectors(table[column], column)
        if length and vectors.shape[1] != length:
            raise ValueError(f"embeddings of {column!r} differ in length: {length} and {vectors.shape[1]} numbers")
        length = vectors.shape[1]
        yield table, vectors


def unit_vectors(values: pa.ChunkedArray, column: str) -> Vectors:
    """Return lists of floats as vectors of length 1, [n, D]. Raises ValueError if they differ in length."""
    lists = values.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    if len(np.unique(lengths)) > 1:
        raise ValueError(
            f"embeddings of {column!r} differ in length: {lengths.min()} to {lengths.max()} numbers; they must be of "
            "one model"
        )
    numbers = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(lists), -1)
    # Scaled first: the squares of tiny numbers would be 0.
    numbers = numbers / np.abs(numbers).max(axis=1, keepdims=True)
    return np.ascontiguousarray(numbers / np.sqrt((numbers**2).sum(axis=1, keepdims=True)), np.float32)


def cosines(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """Return the cosines of paired rows, [n, D] and [n, D] (or [D]), to 6 digits."""
    found = np.empty(len(left))
    for some in _pieces(len(left), left.shape[-1]):
        products = left[some].astype(np.float64) * (right if right.ndim == 1 else right[some]).astype(np.float64)
        found[some] = products.sum(axis=-1)
    return np.round(found, DIGITS)


def _pieces(rows: int, length: int) -> Iterator[slice]:
    step = max(1, MAX_NUMBERS // max(1, length))
    return (slice(start, start + step) for start in range(0, rows, step))


def pairs_over(
    queries: Vectors, base: Vectors, threshold: float, rows: int = QUERIES_AT_A_TIME
) -> Iterator[tuple[Indices, Indices, NDArray[np.float64]]]:
    """Yield (query, base, cosine) of all pairs whose cosine is at least `threshold`, some queries at a time."""
    import faiss

    if not len(queries) or not len(base):
        return
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    rows = max(1, min(rows, MAX_PAIRS // len(base)))
    for start in range(0, len(queries), rows):
        limits, _, found = index.range_search(queries[start : start + rows], threshold - MARGIN)
        limits = np.asarray(limits, np.int64)
        query = start + np.repeat(np.arange(len(limits) - 1), limits[1:] - limits[:-1])
        exact = np.empty(query.size)
        for some in _pieces(query.size, base.shape[1]):
            exact[some] = cosines(queries[query[some]], base[found[some]])
        near = exact >= threshold
        order = np.lexsort((found[near], query[near]))
        yield query[near][order], found[near][order].astype(np.int64), exact[near][order]


@contextlib.contextmanager
def one_thread() -> Iterator[Any]:
    """Yield faiss with one thread, so that sums come out the same on a machine whatever its load."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)

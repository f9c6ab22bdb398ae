"""Two numbers a row for a map: the first two principal components, computed without all rows in memory.

The same rows in the same order give the same map: no random start, and each axis points where its largest weight is
positive.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Blocks = Callable[[], Iterable[Floats]]
"""Gives the rows block by block, each [rows, columns], NaN where a number is missing; the same each time."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A centre, a scale for each column, and two axes."""

    mean: Floats
    scale: Floats
    axes: Floats
    """[columns, 2]."""

    def of(self, block: Floats) -> Floats:
        """Return [rows, 2]; a missing number counts as the mean, so a row without any lies in the middle."""
        return np.asarray(np.nan_to_num((block - self.mean) / self.scale) @ self.axes, np.float64)


def project(blocks: Blocks, num_columns: int, *, standardise: bool) -> Projection:
    """Return the projection on the two axes of most variance, of columns as they are or of equal variance each."""
    count, total, squares = np.zeros(num_columns), np.zeros(num_columns), np.zeros(num_columns)
    for block in blocks():
        known = np.isfinite(block)
        filled = np.where(known, block, 0.0)
        count += known.sum(axis=0)
        total += filled.sum(axis=0)
        squares += (filled**2).sum(axis=0)
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0))
    scale = np.where(spread > 1e-12, spread, 1.0) if standardise else np.ones(num_columns)
    covariance = np.zeros((num_columns, num_columns))
    for block in blocks():
        centred = np.nan_to_num((block - mean) / scale)
        covariance += centred.T @ centred
    _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((num_columns, 2))
    axes[:, : min(2, num_columns)] = vectors[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return Projection(mean, scale, axes * np.where(signs == 0, 1.0, signs))


def nearest(vectors: NDArray[np.float32], count: int, *, block: int = 512) -> tuple[NDArray[np.int64], Floats]:
    """Return the `count` nearest other rows of each by cosine distance, and the distances: exact, block by block."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    count = max(0, min(count, len(unit) - 1))
    ids, apart = np.zeros((len(unit), count), np.int64), np.zeros((len(unit), count))
    for start in range(0, len(unit), block):
        distances = 1.0 - (unit[start : start + block] @ unit.T).astype(np.float64)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        ids[start : start + block] = order
        apart[start : start + block] = np.maximum(np.take_along_axis(distances, order, axis=1), 0.0)
    return ids, apart

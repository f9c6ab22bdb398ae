"""What is right for each place of a dataset, read from its index before any picture is.

An hour of features must not end with a sample that has no label.
"""

# B batch, R probes, N places of the dataset

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline.collate import collate_column
from headrace.shards.dataset import FAST_COLUMNS, Dataset, open_dataset

MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """The classes of the first places of a dataset. A subclass may know better what is right (several labels)."""

    url: str
    label_N: NDArray[np.int64]
    """The class to fit on; -1 = this place is left out."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.label_N.max()) + 1

    def __len__(self) -> int:
        """Return the number of places, with those that are left out."""
        return len(self.label_N)

    @property
    def left_out(self) -> int:
        """Number of places without a right label."""
        return int((self.label_N < 0).sum())

    def tally(self, scores_RBC: Tensor, place_B: NDArray[np.int64]) -> tuple[Tensor, float]:
        """Return how much of these places each of R heads has right, float64 [R] on the CPU, and how much they count.

        Divided, summed over all places, they are the accuracy. Scores are logits, votes: the largest is the choice.
        """
        weight_B = torch.from_numpy(self.weights(place_B))
        right_RB = self.right(self.choose(scores_RBC), place_B).cpu()
        return (right_RB * weight_B).sum(dim=1), float(weight_B.sum())

    def choose(self, scores_RBC: Tensor) -> Tensor:
        """Return the class [R, B] that each head chooses."""
        return scores_RBC.argmax(dim=2)

    def weights(self, place_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each place counts in the accuracy."""
        return np.ones(len(place_B))

    def right(self, choice_RB: Tensor, place_B: NDArray[np.int64]) -> Tensor:
        """Return bool [R, B]: whether each choice of a class is right for the sample at its place."""
        return choice_RB == torch.from_numpy(self.label_N[place_B]).to(choice_RB.device)


def read_dataset_labels(url: str, samples: int = 0) -> Labels:
    """Return the labels of the first `samples` places (0 = all). Raises ValueError where one has none."""
    dataset = open_dataset(url)
    dataset.require_columns(["label"])
    columns = [classes_of(_column(dataset, shard), url) for shard in _shards(dataset, samples)]
    label_N = np.concatenate(columns) if columns else np.empty(0, np.int64)
    if not len(label_N):
        raise ValueError(f"{url}: it holds no samples")
    return Labels(url=url, label_N=label_N[: samples or None])


def classes_of(column: object, url: str) -> NDArray[np.int64]:
    """Return a column of the index as classes. Raises ValueError for what is none."""
    if not isinstance(column, np.ndarray) or column.dtype.kind not in "ib":
        raise ValueError(f"{url}: the column label does not hold whole numbers; a probe needs classes 0, 1, 2, ...")
    labels = column.astype(np.int64)
    if not len(labels):
        return labels
    if labels.min() < 0:
        lacking = int((labels < 0).sum())
        told = "a sample has" if lacking < len(labels) else "its samples have"
        raise ValueError(
            f"{url}: {told} no label ({lacking:,} of {len(labels):,} looked at); a probe needs one for each"
        )
    if labels.max() >= MAX_CLASSES:
        raise ValueError(f"{url}: label {labels.max()} is no class: they are 0..{MAX_CLASSES - 1} at most")
    return labels


def _shards(dataset: Dataset, samples: int) -> list[int]:
    """Return the shards that hold the first places."""
    starts = np.cumsum(dataset.shards.num_samples) - dataset.shards.num_samples
    wanted = samples or dataset.num_samples
    return [shard for shard, start in enumerate(starts) if start < wanted and dataset.shards.num_samples[shard]]


def _column(dataset: Dataset, shard: int) -> object:
    table, names = dataset.index_part(shard, [*FAST_COLUMNS, "label"])
    if "label" not in names:
        raise ValueError(f"{dataset.index_url(shard)} has no column label; it has {', '.join(names)}")
    return collate_column(table.column("label"))

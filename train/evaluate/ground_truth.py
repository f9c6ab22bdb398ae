"""What is right, where one label a sample of the index is not the whole truth.

Three things, alone or together: several right labels a sample from a file (ReaL, arXiv:2006.07159); a test set with
fewer classes than the head, whose labels are numbers of their own (ImageNet-A, -R, -100); and a mean over classes
instead of samples. A sample without any right label is left out and counted.
"""

# B batch, R heads, N places of the dataset, M most labels of a sample, C classes of the head, S classes of the subset

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace import files
from headrace.shards.dataset import FAST_COLUMNS, open_dataset
from headrace.shards.parquet import read_table
from headrace.text import shown
from headrace.train.evaluate.labels import Labels, read_dataset_labels

METRICS = ("top1", "mean_per_class")
MAX_FILE_BYTES = 1 << 30
NONE = -1
# Keys of ImageNet's validation set end with a number: lists by order go by that, whatever order the dataset has.
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")
LABEL_COLUMNS = ("labels", "label", "real")
SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruthConfig:
    """How choices of a head are judged."""

    metric: str = "top1"
    """top1 = share of samples that are right; mean_per_class = mean over classes of their share."""
    labels: str = ""
    """A file with a list of right labels for each sample, by key or by order: `.json`, `.npy` or `.parquet`. Empty
    lists are left out. '' = the index's label."""
    classes: str = ""
    """A file with the class of the head for each label of the test set: a list or a mapping as `.json`, or a number a
    line. The head then chooses among those. '' = the labels are the head's classes."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: unknown {self.metric!r}; known: {', '.join(METRICS)}")
        if self.labels and self.metric != "top1":
            raise ValueError("metric mean_per_class wants one class a sample, and labels gives several; leave one out")

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        several = f", right labels of {self.labels}" if self.labels else ""
        subset = f", among the classes of {self.classes}" if self.classes else ""
        return f"{self.metric}{several}{subset}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroundTruth(Labels):
    """The right classes of a dataset's places, in the numbers of the head."""

    right_NM: NDArray[np.int64]
    """Right classes of each place, filled up with -1."""
    subset_S: NDArray[np.int64] | None = None
    """Classes that a choice is made among, ascending; None = all of the head's."""
    weight_N: NDArray[np.float64] | None = None
    """What a place counts; None = 1 each."""

    def choose(self, scores_RBC: Tensor) -> Tensor:
        """Return the class [R, B] that each head chooses, among those of the subset."""
        if self.subset_S is None:
            return scores_RBC.argmax(dim=2)
        subset = torch.from_numpy(self.subset_S).to(scores_RBC.device)
        return subset[scores_RBC[..., subset].argmax(dim=2)]

    def right(self, choice_RB: Tensor, place_B: NDArray[np.int64]) -> Tensor:
        """Return bool [R, B]: whether each choice is one of the right classes of its place."""
        right_BM = torch.from_numpy(self.right_NM[place_B]).to(choice_RB.device)
        return (choice_RB[..., None] == right_BM).any(dim=-1)

    def weights(self, place_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each place counts in the accuracy: with `mean_per_class` the inverse of its class's samples."""
        return np.ones(len(place_B)) if self.weight_N is None else self.weight_N[place_B]


def read_ground_truth(url: str, config: GroundTruthConfig, *, num_classes: int) -> GroundTruth:
    """Return what is right for each place of the dataset at `url`, for a head of `num_classes`.

    Raises ValueError naming the file and the entry that is wrong, or a label that the head does not have.
    """
    subset = None if not config.classes else _read_subset(config.classes, num_classes)
    if config.labels:
        right_NM = _checked(_read_right(url, config.labels), num_classes, f"{config.labels}, label")
        if subset is not None:
            right_NM = np.where(np.isin(right_NM, list(subset.values())), right_NM, NONE)
    else:
        own_N = read_dataset_labels(url).label_N
        if subset is not None:
            own_N = _mapped(own_N, subset, url, config.classes)
        right_NM = _checked(own_N[:, None], num_classes, f"{url}, label")
    known_N = np.asarray((right_NM >= 0).any(axis=1))
    if not known_N.any():
        raise ValueError(f"{config.labels or url}: not one of its {len(known_N):,} samples has a right label")
    first_N = right_NM.max(axis=1)
    weight_N = None
    if config.metric == "mean_per_class":
        weight_N = np.where(
            known_N, 1 / np.maximum(1, np.bincount(first_N[known_N], minlength=num_classes))[first_N], 0
        )
    return GroundTruth(
        url=url,
        label_N=np.where(known_N, first_N, NONE),
        right_NM=right_NM,
        subset_S=None if subset is None else np.unique(list(subset.values())),
        weight_N=weight_N,
    )


def _checked(right_NM: NDArray[np.int64], num_classes: int, what: str) -> NDArray[np.int64]:
    wrong = np.flatnonzero(((right_NM < NONE) | (right_NM >= num_classes)).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{what} {int(right_NM[row].max())} of sample {row}: the head has classes 0..{num_classes - 1}"
        )
    return right_NM


def _mapped(own_N: NDArray[np.int64], subset: Mapping[int, int], url: str, path: str) -> NDArray[np.int64]:
    lacking = sorted(set(np.unique(own_N).tolist()) - subset.keys() - {NONE})
    if lacking:
        raise ValueError(
            f"{path}: has no class for label {lacking[0]} of {url}; it has {len(subset)} labels from {min(subset)} to "
            f"{max(subset)}"
        )
    return np.array([subset.get(label, NONE) for label in own_N.tolist()], np.int64)


def _read_subset(path: str, num_classes: int) -> dict[int, int]:
    """Return the head's class of each label of the test set."""
    if path.endswith(".json"):
        found = _json(path)
    else:
        lines = [line.strip() for line in _read(path).decode("utf-8", "replace").splitlines()]
        found = [int(line) if line.isdecimal() else line for line in lines if line]
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    subset = {}
    for label, number in pairs:
        if not str(label).isdecimal() or type(number) is not int or not 0 <= number < num_classes:
            raise ValueError(
                f"{path}: label {label!r} has the class {shown(str(number))}; expected a whole number of the head's "
                f"0..{num_classes - 1}"
            )
        subset[int(label)] = number
    if len(subset) < 2:
        raise ValueError(f"{path}: expected a list or a mapping of classes, at least two, as .json or a number a line")
    if len(set(subset.values())) < len(subset):
        raise ValueError(f"{path}: two labels have the same class, so neither could be told from the other")
    return subset


def _read_right(url: str, path: str) -> NDArray[np.int64]:
    """Return the right labels of each place of the dataset, [N, M], filled up with -1."""
    kind = path.rpartition(".")[2].lower()
    if kind not in READERS:
        raise ValueError(f"{path}: expected {', '.join(f'.{name}' for name in READERS)}")
    found = READERS[kind](path)
    keys = _keys(url)
    if isinstance(found, Mapping):
        lacking = [key for key in keys if key not in found]
        if lacking:
            raise ValueError(
                f"{path}: has nothing for {len(lacking):,} of the {len(keys):,} samples of {url}, such as "
                f"{', '.join(map(shown, lacking[:SHOWN]))}; its keys are such as "
                f"{', '.join(shown(str(key)) for key in list(found)[:SHOWN])}"
            )
        rows = [found[key] for key in keys]
    else:
        rows = [found[place] for place in _order(keys, len(found), path, url)]
    right_NM = np.full((len(rows), max(1, max(map(len, rows)))), NONE, np.int64)
    for row, labels in enumerate(rows):
        right_NM[row, : len(labels)] = labels
    return right_NM


def _order(keys: Sequence[str], entries: int, path: str, url: str) -> list[int]:
    """Return the entry of each place: by the number in keys of ImageNet's validation set, or in order."""
    numbered = [NUMBERED.search(key) for key in keys]
    if all(numbered):
        places = [int(match[1]) - 1 for match in numbered if match]
        if max(places) < entries:
            return places
    if entries != len(keys):
        raise ValueError(f"{path}: has {entries:,} entries by order, and {url} has {len(keys):,} samples")
    return list(range(entries))


def _keys(url: str) -> list[str]:
    dataset = open_dataset(url)
    return [
        key
        for shard, facts in enumerate(dataset.shards)
        if facts.num_samples
        for key in dataset.index_part(shard, FAST_COLUMNS)[0].column("key").to_pylist()
    ]


Right = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def _from_json(path: str) -> Right:
    found = _json(path)
    if isinstance(found, dict):
        return {key: _labels(value, path, key) for key, value in found.items()}
    if isinstance(found, list):
        return [_labels(value, path, place) for place, value in enumerate(found)]
    raise ValueError(f"{path}: expected a list of lists of labels, or a mapping of keys to them")


def _from_npy(path: str) -> Right:
    try:
        found = np.load(io.BytesIO(_read(path)), allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: not an array of numbers: {error}; lists of different lengths go into .json, or [N, M] with -1"
        ) from error
    if found.ndim == 2 and found.dtype == np.bool_:
        return [np.flatnonzero(row).tolist() for row in found]
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
        raise ValueError(f"{path}: expected whole numbers [N] or [N, M] with -1, or a mask [N, C], got {found.dtype}")
    return [row[row != NONE].tolist() for row in found.reshape(len(found), -1).astype(np.int64)]


def _from_parquet(path: str) -> Right:
    table = read_table(path)
    column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if column is None:
        raise ValueError(f"{path}: expected a column {' or '.join(LABEL_COLUMNS)}; it has {table.column_names}")
    rows = [_labels(value, path, place) for place, value in enumerate(table.column(column).to_pylist())]
    return dict(zip(table.column("key").to_pylist(), rows, strict=True)) if "key" in table.column_names else rows


READERS = {"json": _from_json, "npy": _from_npy, "parquet": _from_parquet}


def _labels(value: Any, path: str, where: str | int) -> list[int]:
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in found):
        raise ValueError(f"{path}: entry {where!r} is {shown(str(value))}; expected a list of whole numbers")
    return sorted({one for one in found if one != NONE})


def _json(path: str) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _read(path: str) -> bytes:
    data = files.read_bytes(path)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {len(data):,} bytes, over {MAX_FILE_BYTES:,}; is it a list of labels?")
    return data

"""Several right labels, subsets of classes, the mean over classes: against slow loops, from every form of file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.shards.parquet import write_parquet
from headrace.train.evaluate.ground_truth import GroundTruthConfig, read_ground_truth

RIGHT = [[0, 2], [], [2], [1], [0], [1, 2], [0], [], [2], [1]]


@pytest.fixture
def ten(tmp_path: Path, write_dataset: Callable[..., str]) -> str:
    """Ten samples with the keys 000000 to 000009 and the labels 0, 1, 2, 0, ..."""
    return write_dataset(tmp_path / "ten", samples=10)


def accuracy(url: str, config: GroundTruthConfig, scores: np.ndarray) -> tuple[float, int]:
    """Judge in parts of 3, as a stream would give them; left-out places are not asked for."""
    truth = read_ground_truth(url, config, num_classes=scores.shape[1])
    places = np.flatnonzero(truth.label_N >= 0)
    right, whole = 0.0, 0.0
    for start in range(0, len(places), 3):
        part = places[start : start + 3]
        got, weight = truth.tally(torch.from_numpy(scores[part])[None], part)
        right, whole = right + float(got), whole + weight
    return right / whole, truth.left_out


def write_right(folder: Path, form: str) -> str:
    path = folder / f"right.{form.split('-')[0]}"
    keyed = {f"{place:06d}": labels for place, labels in enumerate(RIGHT)}
    filled = np.array([labels + [-1] * (2 - len(labels)) for labels in RIGHT])
    if form == "json":
        path.write_text(json.dumps(RIGHT))
    elif form == "json-keys":
        path.write_text(json.dumps(dict(reversed(keyed.items())) | {"other": [1]}))
    elif form == "npy":
        np.save(path, filled)
    elif form == "npy-mask":
        np.save(path, np.array([[c in labels for c in range(3)] for labels in RIGHT]))
    elif form == "parquet":
        write_parquet(str(path), pa.table({"labels": RIGHT}))
    else:
        write_parquet(str(path), pa.table({"key": list(keyed)[::-1], "labels": RIGHT[::-1]}))
    return str(path)


@pytest.mark.parametrize("form", ["json", "json-keys", "npy", "npy-mask", "parquet", "parquet-keys"])
def test_any_of_several_labels_is_right_and_none_is_left_out(ten: str, tmp_path: Path, form: str) -> None:
    scores = np.random.default_rng(0).normal(size=(10, 3))
    found, left_out = accuracy(ten, GroundTruthConfig(labels=write_right(tmp_path, form)), scores)
    right = [int(scores[place].argmax()) in labels for place, labels in enumerate(RIGHT) if labels]
    assert left_out == 2
    assert found == pytest.approx(sum(right) / 8)


def test_the_mean_over_classes_weighs_each_class_alike(tmp_path: Path, write_dataset: Callable[..., str]) -> None:
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 2, 0]

    def change(number: int, columns: dict[str, Any]) -> dict[str, Any]:
        return columns | {"label": labels[number]}

    url = write_dataset(tmp_path / "uneven", samples=10, change=change)
    scores = np.random.default_rng(1).normal(size=(10, 4))
    choice = scores.argmax(axis=1)
    of_class = [np.mean([choice[p] == c for p in range(10) if labels[p] == c]) for c in range(3)]
    found, left_out = accuracy(url, GroundTruthConfig(metric="mean_per_class"), scores)
    assert (found, left_out) == (pytest.approx(np.mean(of_class)), 0)


@pytest.mark.parametrize("form", ["list.json", "map.json", "lines.txt"])
def test_a_subset_chooses_among_its_own_classes(ten: str, tmp_path: Path, form: str) -> None:
    classes, path = [7, 2, 5], tmp_path / form
    texts = {
        "list.json": json.dumps(classes),
        "map.json": json.dumps({"0": 7, "1": 2, "2": 5}),
        "lines.txt": "7\n2\n5\n",
    }
    path.write_text(texts[form])
    scores = np.random.default_rng(2).normal(size=(10, 9))
    right = [max(classes, key=lambda c, p=p: scores[p][c]) == classes[p % 3] for p in range(10)]
    assert accuracy(ten, GroundTruthConfig(classes=str(path)), scores)[0] == pytest.approx(np.mean(right))


def test_a_list_by_order_goes_by_the_number_in_the_keys_of_imagenet(
    tmp_path: Path, write_dataset: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset made class by class has another order than the published list."""
    from headrace.train.evaluate import ground_truth

    url = write_dataset(tmp_path / "two", samples=2)
    path = tmp_path / "real.json"
    path.write_text("[[0], [1], [2]]")
    keys = ["ILSVRC2012_val_00000003", "n01440764/ILSVRC2012_val_00000001"]
    monkeypatch.setattr(ground_truth, "_keys", lambda _: keys)
    truth = read_ground_truth(url, GroundTruthConfig(labels=str(path)), num_classes=3)
    assert truth.label_N.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("right.json", "[[0], [1]]", "has 2 entries by order, and .* has 10 samples"),
        ("right.json", '{"000000": [0]}', "has nothing for 9 of the 10 samples .*000001"),
        ("right.json", json.dumps([[0]] * 9 + [[3]]), "label 3 of sample 9: the head has classes 0..2"),
        ("right.json", json.dumps([["cat"]] * 10), "entry 0 is .*expected a list of whole numbers"),
        ("right.json", json.dumps([[]] * 10), "not one of its 10 samples has a right label"),
        ("right.json", "{", "not JSON"),
        ("right.npy", "no array", "not an array of numbers"),
        ("right.pkl", "", r"expected \.json, \.npy, \.parquet"),
    ],
)
def test_a_wrong_file_of_labels_is_refused_by_name(
    ten: str, tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_ground_truth(ten, GroundTruthConfig(labels=str(path)), num_classes=3)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[0, 1, 9]", "label 2 has the class '9'; expected a whole number of the head's 0..2"),
        ("[0, 1]", "has no class for label 2"),
        ("[0, 1, 1]", "two labels have the same class"),
        ("{}", "at least two"),
    ],
)
def test_a_wrong_subset_is_refused(ten: str, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subset.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ground_truth(ten, GroundTruthConfig(classes=str(path)), num_classes=3)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="mean_per_class wants one class a sample"):
        GroundTruthConfig(metric="mean_per_class", labels="real.json")
    with pytest.raises(ValueError, match="unknown 'top2'; known: top1, mean_per_class"):
        GroundTruthConfig(metric="top2")

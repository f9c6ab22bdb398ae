"""How good a fine-tuned classifier is on a labelled dataset: by what the index says, or by another ground truth."""

import contextlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.augment.config import Interpolation
from headrace.text import without_secrets
from headrace.train.config import RunConfig
from headrace.train.evaluate.ground_truth import GroundTruth, GroundTruthConfig, read_ground_truth
from headrace.train.evaluate.passes import plain_mixture
from headrace.train.objectives.finetune import Finetune, FinetuneConfig
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.runs.weights import read_weights

IMAGES_PER_BATCH = 256


def check_judge(config: RunConfig, url: str, truth: GroundTruthConfig) -> None:
    """Raise ValueError if the run's classifier could not be judged on `url`."""
    assert isinstance(config.objective, FinetuneConfig), "the run is made to fine-tune"
    read_ground_truth(url, truth, num_classes=config.objective.num_classes)


def judge(
    path: Path,
    url: str,
    truth: GroundTruthConfig,
    *,
    center_fraction: float = 1.0,
    interpolation: Interpolation = "bilinear",
    device: str = "auto",
    train_counts: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Return the accuracy of the classifier in the exported file `path`, with what it was measured on.

    Called on all ranks. Damaged samples are left out and counted. With `train_counts`, the pictures of each class in
    training, also the mean accuracy of classes with many, a medium number and few. Raises ValueError if `path` holds no
    fine-tuned classifier, or nothing can be judged.
    """
    weights = read_weights(path)
    objective = weights.model.build()
    if not isinstance(objective, Finetune):
        raise ValueError(f"{path}: an objective {weights.model.objective.kind} is no fine-tuned classifier")
    with torch.no_grad():
        weights.load_into(objective)
    known = read_ground_truth(url, truth, num_classes=objective.config.num_classes)
    mixture = plain_mixture(url, weights.model.image_size, center_fraction=center_fraction, interpolation=interpolation)
    with join_ranks(device) as ranks:
        objective.eval().to(ranks.device)
        tally = _tally(objective, known, mixture, ranks)
    if not tally.samples:
        raise ValueError(f"{url}: no sample is left to judge on")
    return {
        "metric": truth.metric,
        "accuracy": round(tally.right / tally.whole, 6),
        "test": without_secrets(url),
        "test_samples": tally.samples,
        "left_out": known.left_out,
        "damaged": tally.damaged,
        "classes": objective.config.num_classes,
        "ground_truth": {name: without_secrets(value) for name, value in asdict(truth).items()},
        "image_size": weights.model.image_size,
        "center_fraction": center_fraction,
        "interpolation": interpolation,
        **({} if train_counts is None else {"splits": split_accuracies(tally.right_C, tally.seen_C, train_counts)}),
    }


SPLITS: dict[str, tuple[float, float]] = {"many": (101, math.inf), "medium": (20, 100), "few": (0, 19)}
"""Fewest and most pictures of a class in training: arXiv:1904.05160, section 5.1."""


def split_accuracies(
    right_C: NDArray[np.int64], seen_C: NDArray[np.int64], train_counts: NDArray[np.int64]
) -> dict[str, dict[str, float | int | None]]:
    """Return of each split the mean over its classes of their accuracy, and how many classes that is.

    `right_C` of `seen_C` test pictures of each class are right; classes without one are in no mean. None = no class.
    """
    splits: dict[str, dict[str, float | int | None]] = {}
    for name, (low, high) in SPLITS.items():
        chosen_C = (train_counts >= low) & (train_counts <= high) & (seen_C > 0)
        accuracy = float((right_C[chosen_C] / seen_C[chosen_C]).mean()) if chosen_C.any() else None
        splits[name] = {"accuracy": None if accuracy is None else round(accuracy, 6), "classes": int(chosen_C.sum())}
    return splits


@dataclass(slots=True)
class _Tally:
    """What a pass over the test set has counted."""

    right: float = 0.0
    whole: float = 0.0
    samples: int = 0
    damaged: int = 0
    right_C: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of each class, pictures that are right."""
    seen_C: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of each class, pictures."""


@torch.no_grad()
def _tally(objective: Finetune, known: GroundTruth, mixture: Mixture, ranks: Ranks) -> _Tally:
    classes = objective.config.num_classes
    tally = _Tally(right_C=np.zeros(classes, np.int64), seen_C=np.zeros(classes, np.int64))
    stream = open_stream(
        mixture,
        global_batch=IMAGES_PER_BATCH * ranks.size,
        rank=ranks.rank,
        world_size=ranks.size,
        once=True,
    )
    with contextlib.closing(stream), autocast("auto", ranks.device):
        for batch in stream:
            inside_B = batch.position < len(known)
            tally.damaged += int((inside_B & ~batch.valid).sum())
            rows = np.flatnonzero(inside_B & batch.valid)
            rows = rows[known.label_N[batch.position[rows]] >= 0]
            if not len(rows):
                continue
            place_B = batch.position[rows]
            logits_BC = objective.logits(objective.normalise(batch.images[rows])).float()
            right_R, whole = known.tally(logits_BC[None], place_B)
            tally.right += float(right_R)
            tally.whole += whole
            tally.samples += len(rows)
            label_B = known.label_N[place_B]
            right_B = known.right(known.choose(logits_BC[None]), place_B)[0].cpu().numpy()
            tally.seen_C += np.bincount(label_B, minlength=classes)
            tally.right_C += np.bincount(label_B[right_B], minlength=classes)
    own = [tally.right, tally.whole, tally.samples, tally.damaged, *tally.right_C.tolist(), *tally.seen_C.tolist()]
    right, whole, samples, damaged, *by_class = ranks.sum(own, "the judgement")
    right_C, seen_C = np.array(by_class, np.int64).reshape(2, classes)
    return _Tally(right, whole, int(samples), int(damaged), right_C, seen_C)

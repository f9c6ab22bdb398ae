"""How good a fine-tuned classifier is on a labelled dataset: by what the index says, or by another ground truth."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
) -> dict[str, Any]:
    """Return the accuracy of the classifier in the exported file `path`, with what it was measured on.

    Called on all ranks. Damaged samples are left out and counted. Raises ValueError if `path` holds no fine-tuned
    classifier, or nothing can be judged.
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
    }


@dataclass(slots=True)
class _Tally:
    """What a pass over the test set has counted."""

    right: float = 0.0
    whole: float = 0.0
    samples: int = 0
    damaged: int = 0


@torch.no_grad()
def _tally(objective: Finetune, known: GroundTruth, mixture: Mixture, ranks: Ranks) -> _Tally:
    tally = _Tally()
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
    right, whole, *counts = ranks.sum([tally.right, tally.whole, tally.samples, tally.damaged], "the judgement")
    samples, damaged = map(int, counts)
    return _Tally(right=right, whole=whole, samples=samples, damaged=damaged)

"""mIoU of a segmentation over a whole test set, at the pictures' own resolution.

Each picture is shown whole in its square, or through windows (`judged: slide`); the logits of its part are enlarged to
its own pixels, and the best class of each is compared with the mask as it is. Counts of pixels are whole numbers,
summed over the set and the ranks.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headrace.pipeline import Mixture, Sample, SampleError, open_stream
from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.mixture import NO_DECODER
from headrace.shards.dataset import open_dataset
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import read_header
from headrace.text import without_secrets
from headrace.train.evaluate.passes import whole_pictures
from headrace.train.objectives.dense.confusion import class_ious, confusion, segmentation_scores
from headrace.train.objectives.dense.masks import WholeMask, classes_in
from headrace.train.objectives.dense.segment import Segment
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.runs.weights import read_weights
from headrace.train.tasks.sliding import sliding_choices

IMAGES_PER_BATCH = 8
TRUTH, PICTURE = "whole_mask", "whole_picture"
ORIENTATION = "orientation"


@dataclass(frozen=True, slots=True)
class WholePicture:
    """A picture's own pixels: of any size, so no array of a batch."""

    pixels_HW3: NDArray[np.uint8]


def judge_segments(
    path: Path, url: str, *, interpolation: Interpolation = "bilinear", device: str = "auto"
) -> dict[str, Any]:
    """Return mIoU and what stands beside it, of the segmentation in the exported file `path`. Called on all ranks.

    Raises ValueError if `path` holds no segmentation, or no pixel of `url` has a class.
    """
    weights = read_weights(path)
    objective = weights.model.build()
    if not isinstance(objective, Segment):
        raise ValueError(f"{path}: an objective {weights.model.objective.kind} segments nothing")
    with torch.no_grad():
        weights.load_into(objective)
    with join_ranks(device) as ranks:
        objective.eval().to(ranks.device)
        mixture = whole_pictures(url, objective.image_size, interpolation=interpolation)
        if objective.config.judged == "slide":
            mixture = dataclasses.replace(mixture, decoder=NO_DECODER)
        counts_CC, samples, damaged = _count(objective, mixture, ranks)
    if not counts_CC.any():
        raise ValueError(f"{url}: not one pixel has a class to be judged by")
    ious = class_ious(counts_CC)
    return {
        "metric": "miou",
        **{name: round(value, 6) for name, value in segmentation_scores(counts_CC).items()},
        "iou": [None if np.isnan(value) else round(float(value), 6) for value in ious],
        "empty_classes": np.flatnonzero(counts_CC.sum(axis=1) == 0).tolist(),
        "test": without_secrets(url),
        "test_samples": samples,
        "damaged": damaged,
        "classes": objective.config.num_classes,
        "image_size": objective.image_size,
        "interpolation": interpolation,
        "judged": objective.config.judged,
    }


@torch.no_grad()
def _count(objective: Segment, mixture: Mixture, ranks: Ranks) -> tuple[NDArray[np.int64], int, int]:
    """Return the confusion matrix over all ranks, the samples that were judged, and those that were damaged."""
    config = objective.config
    slides = config.judged == "slide"
    counts_CC = np.zeros((config.num_classes, config.num_classes), np.int64)

    def whole(sample: Sample, _rng: np.random.Generator) -> Mapping[str, Any]:
        data = sample.columns[config.column]
        if data is None:
            return {TRUTH: None, PICTURE: None}
        truth = WholeMask(classes_in(data, config.rules, sample))
        return {TRUTH: truth, PICTURE: WholePicture(_decoded(sample)) if slides else None}

    def logits_of(squares_NSS3: NDArray[np.uint8]) -> Tensor:
        return objective.logits(objective.normalise(squares_NSS3))

    samples = damaged = 0
    held = open_dataset(mixture.sources[0].url).num_samples
    stream = open_stream(
        mixture,
        global_batch=IMAGES_PER_BATCH * ranks.size,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=(*objective.columns, ORIENTATION) if slides else objective.columns,
        map=whole,
        once=True,
    )
    with contextlib.closing(stream), autocast("auto", ranks.device):
        for batch in stream:
            damaged += int(((batch.position < held) & ~batch.valid).sum())
            logits_BCSS = None if slides else logits_of(np.asarray(batch.images))
            for row, truth in enumerate(batch.columns[TRUTH]):
                if not batch.valid[row] or not isinstance(truth, WholeMask):
                    continue
                classes_HW = torch.from_numpy(truth.classes_HW).to(ranks.device)
                if logits_BCSS is None:
                    pixels_HW3 = batch.columns[PICTURE][row].pixels_HW3
                    choice_HW = sliding_choices(
                        logits_of, pixels_HW3, objective.image_size, mixture.augment.interpolation
                    )
                else:
                    choice_HW = _choices(logits_BCSS[row : row + 1], classes_HW.shape)
                counts_CC += confusion(classes_HW, choice_HW, config.num_classes).cpu().numpy()
                samples += 1
    summed = ranks.sum([*counts_CC.ravel().tolist(), samples, damaged], "the judgement")
    return (
        np.array(summed[:-2]).reshape(counts_CC.shape).astype(np.int64),
        int(summed[-2]),
        int(summed[-1]),
    )


def _decoded(sample: Sample) -> NDArray[np.uint8]:
    """Return a sample's whole picture, upright. Raises SampleError, which the stream counts."""
    try:
        header = read_header(sample.data)
        turned = int(sample.columns[ORIENTATION] or header.orientation)
        return decode_rgb(sample.data, header=dataclasses.replace(header, orientation=turned))
    except ValueError as error:
        raise SampleError("decode", f"sample {sample.key!r} of source {sample.source!r}: {error}") from error


def _choices(logits_1CSS: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Return the best class of each of the picture's own pixels, [H, W]."""
    height, width = size
    top, left, rows, columns = Window(0, 0, height, width, False, fill=0).inside(logits_1CSS.shape[-1])
    own = logits_1CSS[..., top : top + rows, left : left + columns]
    whole = functional.interpolate(own.float(), size=(height, width), mode="bilinear", align_corners=False)
    return whole[0].argmax(dim=0)

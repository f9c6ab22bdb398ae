"""Intersection over union of classes, from counts of pixels over a whole set."""

# C classes, P pixels

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def confusion(truth_P: Tensor, choice_P: Tensor, num_classes: int) -> Tensor:
    """Return how many pixels of each class (row) were taken for each (column), int64 [C, C]. Truth under 0 is none."""
    known_P = truth_P >= 0
    cell_P = truth_P[known_P].long() * num_classes + choice_P[known_P].long()
    return torch.bincount(cell_P, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(counts_CC: NDArray[np.int64]) -> dict[str, float]:
    """Return `miou`, `mean_accuracy` and `pixel_accuracy` of a confusion matrix.

    A class counts in `miou` if it is in the truth or was chosen, in `mean_accuracy` if it is in the truth. All 0 where
    no pixel is known.
    """
    right_C = np.diag(counts_CC).astype(np.float64)
    truth_C, chosen_C = counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    known = truth_C > 0
    accuracy_C = right_C[known] / truth_C[known]
    return {
        "miou": float(np.nanmean(class_ious(counts_CC))) if (truth_C + chosen_C).any() else 0.0,
        "mean_accuracy": float(accuracy_C.mean()) if known.any() else 0.0,
        "pixel_accuracy": float(right_C.sum() / max(1, counts_CC.sum())),
    }


def class_ious(counts_CC: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the intersection over union of each class; NaN of one that is neither in the truth nor chosen."""
    right_C = np.diag(counts_CC).astype(np.float64)
    union_C = counts_CC.sum(axis=1) + counts_CC.sum(axis=0) - right_C
    return np.asarray(np.divide(right_C, union_C, out=np.full(len(right_C), np.nan), where=union_C > 0))

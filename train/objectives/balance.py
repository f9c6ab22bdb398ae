"""Classes of a long tail: what the rare ones count, by how often each is seen in training.

`effective` weighs a class by the inverse of its effective number of pictures, (1 - b^n) / (1 - b): Class-Balanced Loss,
arXiv:1901.05555, equation 2. `logits` adds the logarithm of each class's share to its logit in training, so that what
is learnt is the part of the score that does not follow from how common a class is: arXiv:2007.07314, equation 10.
"""

# C classes

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Balance = Literal["none", "effective", "logits"]
BETA = 0.9999
"""The paper's for sets of a million pictures."""


def class_weights(counts: Sequence[int]) -> NDArray[np.float64]:
    """Return what a picture of each class counts: over the training set the mean is 1. A class without one has 1."""
    counts_C = np.asarray(counts, np.float64)
    seen_C = counts_C > 0
    weight_C = np.divide(1 - BETA, -np.expm1(counts_C * np.log(BETA)), out=np.ones_like(counts_C), where=seen_C)
    mean = (weight_C * counts_C).sum() / counts_C.sum()
    return np.where(seen_C, weight_C / mean, 1.0)


def log_shares(counts: Sequence[int]) -> NDArray[np.float64]:
    """Return the logarithm of each class's share of the training set; a class without a picture is taken for one."""
    counts_C = np.maximum(np.asarray(counts, np.float64), 1.0)
    return np.asarray(np.log(counts_C / counts_C.sum()))

"""Few-shot accuracy: least squares on a handful of images a class, as big_vision's `fewshot_lsr` measures it.

Features are whitened with mean and deviation of the shots, a constant feature carries the bias, targets are +1 and -1,
and one eigendecomposition, in the smaller of samples and features, answers every l2. Which l2 is reported is decided by
leaving out one shot after the other, never by the test set; `published` is big_vision's fixed 2^10.
Source: Scaling Vision Transformers, arXiv:2106.04560, and big_vision's evaluator.
"""

# N shots, D features (in a fit with the constant behind), C classes, Q test samples, R = min(N, D)

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2_EXPONENTS = tuple(range(-20, 11))
PUBLISHED_L2 = 2.0**10
BIAS = 100.0
"""The constant feature: so large that the bias is hardly shrunk."""
STD_EPS = 1e-5
TEST_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotConfig:
    """How few shots are fitted."""

    shots: tuple[int, ...] = SHOTS
    """Images a class; a class that has fewer gives all."""
    seeds: tuple[int, ...] = SEEDS
    """Each draws its own shots; accuracies are their mean."""
    l2s: tuple[float, ...] = tuple(2.0**exponent for exponent in L2_EXPONENTS)
    """Strengths of the penalty that are tried."""

    def __post_init__(self) -> None:
        if not self.shots or not self.seeds or not self.l2s:
            raise ValueError("shots, seeds and l2s must not be empty")
        if min(self.shots) < 1 or min(self.seeds) < 0:
            raise ValueError(f"shots must be at least 1, seeds at least 0, got {self.shots} and {self.seeds}")
        if not all(0 < l2 < math.inf for l2 in self.l2s):
            raise ValueError(f"l2s must be above 0 and finite, got {self.l2s}")


@dataclass(frozen=True, slots=True)
class Ridge:
    """Least squares with a penalty, prepared for any strength of it; float64."""

    mean_D: Tensor
    std_D: Tensor
    eigenvalue_R: Tensor
    lhs_DR: Tensor
    """The weights at l2 are lhs / (eigenvalue + l2) @ rhs."""
    rhs_RC: Tensor
    share_NR: Tensor
    """A shot's leverage, how far its own target decides its fit, is the sum of share / (eigenvalue + l2)."""
    features_ND: Tensor
    """The shots: whitened, with the constant."""
    target_NC: Tensor

    def weights(self, l2: float) -> Tensor:
        """Return the weights [D, C], the last row for the constant."""
        return (self.lhs_DR / (self.eigenvalue_R + l2)) @ self.rhs_RC

    def whitened(self, features_QD: Tensor) -> Tensor:
        """Return features as the weights take them: float64, with the constant."""
        white = (features_QD.to(self.mean_D.device).double() - self.mean_D) / self.std_D
        return torch.cat([white, white.new_full((len(white), 1), BIAS)], dim=1)

    def left_out_accuracy(self, l2: float) -> float:
        """Return the share of shots that a fit on the others tells right; exact but for the whitening, without a fit.

        Leaving a sample out divides its residual by 1 - its leverage.
        """
        leverage_N = (self.share_NR / (self.eigenvalue_R + l2)).sum(dim=1)
        residual_NC = self.target_NC - self.features_ND @ self.weights(l2)
        left_out_NC = self.target_NC - residual_NC / (1 - leverage_N).clamp_min(1e-9)[:, None]
        return float((left_out_NC.argmax(dim=1) == self.target_NC.argmax(dim=1)).double().mean())

    def accuracy(self, features_QD: Tensor, label_Q: Tensor, l2: float) -> float:
        """Return the share of samples that the fit tells right, in blocks."""
        labels = torch.split(label_Q, TEST_ROWS)
        right = 0
        for scores_QC, label in zip(self.scores(features_QD, l2), labels, strict=True):
            right += int((scores_QC.argmax(dim=1).cpu() == label.cpu()).sum())
        return right / len(label_Q)

    def scores(self, features_QD: Tensor, l2: float) -> Iterator[Tensor]:
        """Yield float64 [Q, C] for `TEST_ROWS` samples after the other: of the classes the largest is told."""
        weights_DC = self.weights(l2)
        for features in torch.split(features_QD, TEST_ROWS):
            yield self.whitened(features) @ weights_DC


def fit_ridge(features_ND: Tensor, label_N: Tensor, *, classes: int, device: torch.device | None = None) -> Ridge:
    """Whiten the shots and take them apart. Raises ValueError for features that are not finite."""
    x_ND = features_ND.to(device or features_ND.device).double()
    if not bool(torch.isfinite(x_ND).all()):
        raise ValueError("features are not finite")
    mean_D, std_D = x_ND.mean(dim=0), x_ND.std(dim=0, correction=0) + STD_EPS
    x_ND = torch.cat([(x_ND - mean_D) / std_D, x_ND.new_full((len(x_ND), 1), BIAS)], dim=1)
    y_NC = x_ND.new_full((len(x_ND), classes), -1.0)
    y_NC.scatter_(1, label_N.to(x_ND.device)[:, None], 1.0)
    samples, width = x_ND.shape
    if samples >= width:
        eigenvalue_R, lhs_DR = torch.linalg.eigh(x_ND.T @ x_ND)
        rhs_RC, share_NR = lhs_DR.T @ (x_ND.T @ y_NC), (x_ND @ lhs_DR).square()
    else:
        eigenvalue_R, vectors_NR = torch.linalg.eigh(x_ND @ x_ND.T)
        lhs_DR, rhs_RC = x_ND.T @ vectors_NR, vectors_NR.T @ y_NC
        share_NR = vectors_NR.square() * eigenvalue_R
    return Ridge(mean_D, std_D, eigenvalue_R, lhs_DR, rhs_RC, share_NR, x_ND, y_NC)


def draw_shots(label_N: NDArray[np.int64], shots: int, *, classes: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of `shots` samples of each class, class by class.

    The same rows that big_vision draws from the same labels, and those of more shots begin with those of fewer.
    """
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(label_N == number))[:shots] for number in range(classes)]
    return np.concatenate(drawn).astype(np.int64)


def few_shot_accuracies(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    config: FewShotConfig,
    *,
    device: torch.device | None = None,
    part: tuple[int, int] = (0, 1),
) -> list[dict[str, Any]]:
    """Return a row for each (shots, seed): the l2 that leaving one out prefers, and accuracies on the test set.

    `train` and `test` are pooled features [N, D], float16 or float32, and labels [N]. With `part` (i, n) only every
    n-th row from the i-th on is computed: the share of one process. Raises ValueError where there is nothing to fit on.
    """
    (features_ND, label_N), (test_QD, label_Q) = train, test
    labels = label_N.numpy()
    if not len(labels) or not len(label_Q):
        raise ValueError("there are no features to fit on, or none to judge on")
    classes = int(labels.max()) + 1
    rows = []
    for shots, seed in [(shots, seed) for shots in config.shots for seed in config.seeds][part[0] :: part[1]]:
        drawn = torch.from_numpy(draw_shots(labels, shots, classes=classes, seed=seed))
        ridge = fit_ridge(features_ND[drawn], label_N[drawn], classes=classes, device=device)
        rows.append({"shots": shots, "seed": seed, **_judged(ridge, test_QD, label_Q, config.l2s)})
    return rows


def choose_l2(ridge: Ridge, l2s: Sequence[float]) -> tuple[float, float | None]:
    """Return the l2 that tells most shots right when they are left out, and their share; of one alone, None."""
    if len(l2s) == 1:
        return l2s[0], None
    # Of equals the strongest: where leaving out says nothing, the smoother fit.
    found = {l2: ridge.left_out_accuracy(l2) for l2 in sorted(l2s, reverse=True)}
    chosen = max(found, key=found.__getitem__)
    return chosen, found[chosen]


def _judged(ridge: Ridge, test_QD: Tensor, label_Q: Tensor, l2s: Sequence[float]) -> dict[str, Any]:
    chosen, left_out = choose_l2(ridge, l2s)
    accuracy = ridge.accuracy(test_QD, label_Q, chosen)
    published = accuracy if chosen == PUBLISHED_L2 else ridge.accuracy(test_QD, label_Q, PUBLISHED_L2)
    return {
        "l2": chosen,
        "left_out_accuracy": None if left_out is None else round(left_out, 6),
        "test_accuracy": round(accuracy, 6),
        "published_l2_test_accuracy": round(published, 6),
    }

"""Weighted nearest neighbours: how well classes lie together in frozen features, without anything that is fitted.

Exact: every query meets every row of the bank, block by block, so memory is bounded by two blocks. Of rows that are
equally near the first in the bank counts, of classes with the same weight the lowest. The vote is that of DINO
(arXiv:2104.14294, section 4.1) after Wu et al. (arXiv:1805.01978, section 3.4): cosine, exp(similarity / 0.07).
"""

# N rows of the bank, Q queries, D width, K neighbours

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

QUERY_ROWS = 1024
BANK_ROWS = 16_384
VOTE_BYTES = 64 << 20
"""Most that the comparison of neighbours with each other takes: K x K numbers for every query."""
MAX_K = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnConfig:
    """How neighbours vote."""

    k: int = 20
    """Neighbours that vote; all where the bank has fewer."""
    temperature: float = 0.07
    """A vote weighs exp(cosine / temperature)."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise ValueError(f"k must be 1..{MAX_K}, got {self.k}")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature must be within 0.01..100, got {self.temperature}")


class Neighbours(NamedTuple):
    """The nearest rows of a bank, the nearest first, of equals the first in the bank."""

    cosine_QK: Tensor
    """float32."""
    place_QK: Tensor
    """int64: which rows they are, as the bank's `place_N` says."""
    label_QK: Tensor
    """int64."""


def knn_classes(
    bank_ND: Tensor, label_N: Tensor, queries_QD: Tensor, config: KnnConfig, *, device: torch.device | None = None
) -> Tensor:
    """Return the class of each query, int64 [Q] on the CPU.

    Features are float16 or float32, of any length; blocks of them are moved to `device`. Raises ValueError for an empty
    bank or features that are not finite.
    """
    classes = [
        vote(nearest(bank_ND, label_N, queries, k=config.k, device=device), config.temperature)
        for queries in torch.split(queries_QD, QUERY_ROWS)
    ]
    return torch.cat(classes) if classes else torch.empty(0, dtype=torch.int64)


def nearest(
    bank_ND: Tensor,
    label_N: Tensor,
    queries_QD: Tensor,
    *,
    k: int,
    place_N: Tensor | None = None,
    device: torch.device | None = None,
) -> Neighbours:
    """Return the `k` nearest rows of the bank, on the CPU.

    `place_N` numbers the rows of the bank in ascending order; None = from 0 on.
    """
    if not len(bank_ND):
        raise ValueError("there are no features to compare with")
    device = device or queries_QD.device
    place_N = torch.arange(len(bank_ND)) if place_N is None else place_N
    queries_QD = unit(queries_QD.to(device))
    best: Neighbours | None = None
    for start in range(0, len(bank_ND), BANK_ROWS):
        part = slice(start, start + BANK_ROWS)
        cosine_QN = queries_QD @ unit(bank_ND[part].to(device)).T
        cosine_QK, number_QK = _largest(cosine_QN, k)
        cosine_QK, number_QK = cosine_QK.cpu(), number_QK.cpu()
        found = Neighbours(cosine_QK, place_N[part][number_QK], label_N[part][number_QK])
        best = found if best is None else merged([best, found], k=k)
    assert best is not None, "the bank has rows"
    return best


def merged(parts: list[Neighbours], *, k: int) -> Neighbours:
    """Return the `k` nearest among neighbours from several banks of which no row is in two."""
    cosine, place, label = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    by_place = place.argsort(dim=1)
    order = by_place.gather(1, cosine.gather(1, by_place).argsort(dim=1, descending=True, stable=True))[:, :k]
    return Neighbours(cosine.gather(1, order), place.gather(1, order), label.gather(1, order))


def vote(found: Neighbours, temperature: float) -> Tensor:
    """Return the class with the most weight among the neighbours of each query, int64 [Q]."""
    k = found.cosine_QK.shape[1]
    rows = max(1, VOTE_BYTES // (8 * k * k))
    classes = []
    for cosine, label in zip(torch.split(found.cosine_QK, rows), torch.split(found.label_QK, rows), strict=True):
        # Relative to the nearest: the classes' order is the same, and no temperature makes it infinite.
        weight_QK = ((cosine - cosine[:, :1]).double() / temperature).exp()
        # The weight of a class is asked for by its members only, so that a thousand classes cost what ten do.
        sums_QK = ((label[:, :, None] == label[:, None, :]) * weight_QK[:, None, :]).sum(dim=2)
        wins_QK = sums_QK == sums_QK.amax(dim=1, keepdim=True)
        classes.append(label.masked_fill(~wins_QK, torch.iinfo(torch.int64).max).amin(dim=1))
    return torch.cat(classes)


def votes(found: Neighbours, temperature: float, *, classes: int) -> Tensor:
    """Return the weight of each class among the neighbours of each query, float64 [Q, C]; of label -1 none counts."""
    weight_QK = ((found.cosine_QK - found.cosine_QK[:, :1]).double() / temperature).exp()
    weight_QK = weight_QK.masked_fill(found.label_QK < 0, 0.0)
    votes_QC = torch.zeros(len(weight_QK), classes, dtype=torch.float64)
    return votes_QC.scatter_add_(1, found.label_QK.clamp_min(0), weight_QK)


def padded(found: Neighbours, k: int) -> Neighbours:
    """Return exactly `k` neighbours: behind those that there are, some of label -1, infinitely far."""
    rows, missing = len(found.cosine_QK), k - found.cosine_QK.shape[1]
    fill = (-torch.inf, torch.iinfo(torch.int64).max, -1)
    return Neighbours(
        *(
            torch.cat([held, held.new_full((rows, missing), value)], dim=1)
            for held, value in zip(found, fill, strict=True)
        )
    )


def unit(features_ND: Tensor) -> Tensor:
    """Return rows of length 1 in float32; a row of zeros stays. Raises ValueError for one that is not finite."""
    unit_ND = functional.normalize(features_ND.float(), dim=1)
    if not bool(torch.isfinite(unit_ND).all()):
        raise ValueError("features are not finite")
    return unit_ND


def _largest(values_QN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of each row and where they stand, the largest first, of equals the first."""
    k = min(k, values_QN.shape[1])
    largest_QK, number_QK = values_QN.topk(k, dim=1)
    # topk takes any of several equal ones. Only where one of them is left out that matters, and only those rows pay.
    tied_Q = (values_QN >= largest_QK[:, -1:]).sum(dim=1) > k
    if bool(tied_Q.any()):
        number_QK[tied_Q] = values_QN[tied_Q].argsort(dim=1, descending=True, stable=True)[:, :k]
    number_QK = number_QK.sort(dim=1).values
    order = values_QN.gather(1, number_QK).argsort(dim=1, descending=True, stable=True)
    number_QK = number_QK.gather(1, order)
    return values_QN.gather(1, number_QK), number_QK

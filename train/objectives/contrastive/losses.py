"""The losses between views, as functions of features: each process gives the rows of its own pictures.

All are computed in fp32 or better, whatever autocast says, and rows that do not count (the padding of a finite pass)
are nobody's pair and nobody's negative. Sources: MoCo v3, arXiv:2104.02057, algorithm 1; SimCLR, arXiv:2002.05709,
equation 1; BYOL, arXiv:2006.07733, equation 2; SwAV, arXiv:2006.09882, equations 2 and 4.
"""

# B pictures of this process, N pictures of all, D width, K prototypes, V views, A views that codes are made of

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Far below any logit and finite: exp of it is 0, and no row of nothing else gives NaN.
NO_LOGIT = -1e9
TINY = 1e-30


class Rows(NamedTuple):
    """Which pictures are meant, of all of a step."""

    place_B: Tensor
    """Numbers of this process's pictures among all; int64."""
    counted_B: Tensor
    """1 where one counts, as floats."""
    counted_N: Tensor
    """The same of all pictures."""


def unit(x: Tensor) -> Tensor:
    """Return `x` with rows of length 1, in fp32 or better."""
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def info_nce(query_BD: Tensor, key_ND: Tensor, rows: Rows, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return for each query 2 x temperature x its cross-entropy among all keys, and 1 where its own is the best.

    Features have length 1. A chance guess costs 2 x temperature x ln N.
    """
    logits_BN = (query_BD @ key_ND.T / temperature).masked_fill(rows.counted_N == 0, NO_LOGIT)
    own_B = logits_BN.gather(1, rows.place_B[:, None])[:, 0]
    loss_B = 2 * temperature * (logits_BN.logsumexp(dim=1) - own_B)
    right_B = logits_BN.detach().argmax(dim=1) == rows.place_B
    return loss_B * rows.counted_B, right_B * rows.counted_B


def nt_xent(own_2BD: Tensor, every_2ND: Tensor, rows: Rows, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mean over a picture's two views of its cross-entropy among all other views, and how often it is right.

    Each view is to find the other one of its picture among 2N - 1, its own picture's and both of every other picture.
    """
    num = every_2ND.shape[1]
    first, second = rows.place_B, rows.place_B + num
    itself, other = torch.cat([first, second])[:, None], torch.cat([second, first])[:, None]
    logits = own_2BD.flatten(0, 1) @ every_2ND.flatten(0, 1).T / temperature
    logits = logits.masked_fill((rows.counted_N == 0).repeat(2), NO_LOGIT).scatter(1, itself, NO_LOGIT)
    loss_2B = (logits.logsumexp(dim=1, keepdim=True) - logits.gather(1, other)).view(2, -1)
    right_2B = (logits.detach().argmax(dim=1, keepdim=True) == other).view(2, -1).to(loss_2B.dtype)
    return loss_2B.mean(dim=0) * rows.counted_B, right_2B.mean(dim=0) * rows.counted_B


def squared_distance(predicted_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Return the squared distance [B] of features of length 1: 2 - 2 x their cosine, 0 to 4."""
    return 2 - 2 * (predicted_BD * target_BD).sum(dim=1)


@torch.no_grad()
def sinkhorn(cosines_NK: Tensor, counted_N: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Return codes [N, K]: how each picture is shared out among prototypes that all get as much of the batch.

    Rows that count sum to 1, the others to 0. Prototypes are levelled before pictures in each iteration, as in the
    reference code, so that it is the rows that come out exact. `epsilon` under 0.02 would leave the range of fp32.
    """
    num_counted, num_prototypes = counted_N.sum().clamp(min=1), cosines_NK.shape[1]
    share_NK = torch.exp(cosines_NK / epsilon) * counted_N[:, None]
    share_NK = share_NK / share_NK.sum().clamp(min=TINY)
    for _ in range(iterations):
        share_NK = share_NK / (share_NK.sum(dim=0, keepdim=True) * num_prototypes).clamp(min=TINY)
        share_NK = share_NK / (share_NK.sum(dim=1, keepdim=True) * num_counted).clamp(min=TINY)
    return share_NK * num_counted


def swapped_prediction(cosines: Sequence[Tensor], codes: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Return the cross-entropy [B] of each view's prototypes with the codes of the other views, the mean over pairs.

    `cosines` are V of [B, K]; `codes` A of [B, K], made of the first A views. Between uniform guesses it is ln K.
    """
    logs = [(cosines_BK / temperature).log_softmax(dim=1) for cosines_BK in cosines]
    pairs = [(code, log) for a, code in enumerate(codes) for v, log in enumerate(logs) if v != a]
    return torch.stack([-(code * log).sum(dim=1) for code, log in pairs]).mean(dim=0)

"""The losses of a batch of pairs, each rank the rows of its own pairs.

Of the matrix of all pictures against all captions a rank forms its own rows (and for `softmax` its own columns), in
chunks that backward computes again: never [B, B]. The sum over ranks is the loss of the whole batch. Sources: CLIP,
arXiv:2103.00020, figure 3; SigLIP, arXiv:2303.15343, algorithm 1.
"""

# B pairs of this rank, N pairs of all, C pairs of a chunk, D width

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from headrace.train.models.clip_towers import PairLoss
from headrace.train.parallel.gathering import gather_rows
from headrace.train.parallel.ranks import Ranks

MAX_CELLS = 1 << 24
"""Cells of the matrix that are formed at once: 64 MB in fp32."""
# Far below any logit (at most 100 plus a bias) and finite: exp of it is 0, and no row of nothing else gives NaN.
NO_LOGIT = -1e9


class Pairs(NamedTuple):
    """Features of pairs, of length 1."""

    image_BD: Tensor
    text_BD: Tensor
    counted_B: Tensor
    """1 where both count, 0 for a row that is nobody's pair and nobody's negative; as floats."""


class Logits(NamedTuple):
    """How a cosine becomes a logit."""

    scale: Tensor
    """Logarithm of the factor, [1]."""
    bias: Tensor | None
    """[1]; softmax has none."""


@dataclass(frozen=True, slots=True)
class PairLosses:
    """What each pair of this rank adds to the loss."""

    loss_B: Tensor
    right_B: Tensor
    """1 where its own caption is the best of all; 0 for a row that does not count."""


def pair_losses(own: Pairs, logits: Logits, *, loss: PairLoss, ranks: Ranks, max_cells: int = MAX_CELLS) -> PairLosses:
    """Return the losses of this rank's pairs against those of all ranks, in fp32 or better; called on all ranks."""
    with torch.autocast(own.image_BD.device.type, enabled=False):
        own = Pairs(*(part if part.dtype == torch.float64 else part.float() for part in own))
        width = own.image_BD.shape[1]
        # One exchange for both: two could come in another order on another rank.
        gathered = gather_rows(torch.cat([*own[:2], own.counted_B[:, None]], dim=1), ranks, "the features of all pairs")
        every = Pairs(gathered[:, :width], gathered[:, width:-1], gathered[:, -1].detach())
        first, rows = ranks.rank * len(own.image_BD), max(1, max_cells // max(1, len(gathered)))
        compute = _softmax_rows if loss == "softmax" else _sigmoid_rows
        parts = []
        for start in range(0, len(own.image_BD), rows):
            chunk = Pairs(*(part[start : start + rows] for part in own))
            place_C = torch.arange(start, start + len(chunk.image_BD), device=gathered.device) + first
            if rows < len(own.image_BD) and torch.is_grad_enabled():
                parts.append(checkpoint(compute, chunk, every, place_C, logits, use_reentrant=False))
            else:
                parts.append(compute(chunk, every, place_C, logits))
        return PairLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _softmax_rows(chunk: Pairs, every: Pairs, place_C: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
    """Half the cross-entropy of picture against captions, half that of caption against pictures."""
    factor = logits.scale.exp()
    to_text_CN = _logits(chunk.image_BD, every.text_BD, factor, None)
    to_image_CN = _logits(chunk.text_BD, every.image_BD, factor, None)
    others_N = every.counted_B == 0
    loss_C = torch.zeros_like(chunk.counted_B)
    for logits_CN in (to_text_CN, to_image_CN):
        own_C = logits_CN.gather(1, place_C[:, None])[:, 0]
        loss_C = loss_C + (logits_CN.masked_fill(others_N, NO_LOGIT).logsumexp(dim=1) - own_C) / 2
    return loss_C * chunk.counted_B, _right(to_text_CN, others_N, place_C) * chunk.counted_B


def _sigmoid_rows(chunk: Pairs, every: Pairs, place_C: Tensor, logits: Logits) -> tuple[Tensor, Tensor]:
    """Each cell is asked by itself whether it is a pair; a row sums its cells."""
    logits_CN = _logits(chunk.image_BD, every.text_BD, logits.scale.exp(), logits.bias)
    sign_CN = torch.full_like(logits_CN, -1.0).scatter_(1, place_C[:, None], 1.0)
    loss_C = (-functional.logsigmoid(sign_CN * logits_CN) * every.counted_B).sum(dim=1)
    return loss_C * chunk.counted_B, _right(logits_CN, every.counted_B == 0, place_C) * chunk.counted_B


def _logits(rows_CD: Tensor, columns_ND: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    cosines_CN = factor.to(rows_CD.dtype) * rows_CD @ columns_ND.T
    return cosines_CN if bias is None else cosines_CN + bias.to(rows_CD.dtype)


@torch.no_grad()
def _right(logits_CN: Tensor, others_N: Tensor, place_C: Tensor) -> Tensor:
    best_C = logits_CN.masked_fill(others_N, NO_LOGIT).argmax(dim=1)
    return (best_C == place_C).to(logits_CN.dtype)

"""Projectors and predictors: small perceptrons with BatchNorm behind an encoder, which training throws away at the end.

Each is an `nn.Sequential` of linear layers, norms and ReLUs, so its names are those of the papers' codes (`0.weight`,
`1.running_mean`). Layers begin as PyTorch's do, as in those codes.
"""

import itertools
from typing import Literal

from torch import nn

from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.encoder import Encoder

LastNorm = Literal["none", "plain", "affine"]


class MlpHead(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them: rows [B, in] -> [B, out]."""

    def __init__(self, widths: tuple[int, ...], *, last: LastNorm = "none", last_bias: bool = False) -> None:
        """Make a layer between each two of `widths`; only the last one may have a bias, as a norm removes it.

        `last` is the norm behind the last layer: none, plain = BatchNorm without scale and shift, affine = with them.
        """
        layers: list[nn.Module] = []
        for number, (width, following) in enumerate(itertools.pairwise(widths), start=2):
            is_last = number == len(widths)
            layers.append(nn.Linear(width, following, bias=is_last and last_bias))
            if not is_last:
                layers += [BatchNorm(following), nn.ReLU(inplace=True)]
            elif last != "none":
                layers.append(BatchNorm(following, affine=last == "affine"))
        super().__init__(*layers)


def moco_projector(encoder: Encoder, *, hidden: int, out: int) -> MlpHead:
    """Return MoCo v3's: three layers behind a transformer, two behind a ResNet, the last with BatchNorm without affine.

    Source: arXiv:2104.02057, section 4.1 and its code (builder.py).
    """
    inside = (hidden,) if encoder.convolves else (hidden, hidden)
    return MlpHead((encoder.feature_width, *inside, out), last="plain")


def moco_predictor(encoder: Encoder, *, hidden: int, out: int) -> MlpHead:
    """Return MoCo v3's: two layers, the last with BatchNorm without affine behind a transformer alone.

    Source: arXiv:2104.02057, section 4.1 and its code (builder.py).
    """
    return MlpHead((out, hidden, out), last="none" if encoder.convolves else "plain")


def simclr_projector(encoder: Encoder, *, hidden: int, out: int) -> MlpHead:
    """Return SimCLR's: two layers, each with BatchNorm. Source: arXiv:2002.05709, appendix B.9.

    The last norm has scale and shift here; ports of the paper's code leave the shift out.
    """
    return MlpHead((encoder.feature_width, hidden, out), last="affine")


def byol_projector(encoder: Encoder, *, hidden: int, out: int) -> MlpHead:
    """Return BYOL's: two layers, BatchNorm behind the first alone. Source: arXiv:2006.07733, section 3.3."""
    return MlpHead((encoder.feature_width, hidden, out))


def byol_predictor(*, hidden: int, out: int) -> MlpHead:
    """Return BYOL's: of the projector's form. Source: arXiv:2006.07733, section 3.3."""
    return MlpHead((out, hidden, out))


def swav_projector(encoder: Encoder, *, hidden: int, out: int) -> MlpHead:
    """Return SwAV's: two layers, BatchNorm behind the first, a bias in the last. Source: arXiv:2006.09882, its code."""
    return MlpHead((encoder.feature_width, hidden, out), last_bias=True)

"""The attention of SwinV2: scaled cosines, and what a small network tells of the distance of two tokens.

Source: arXiv:2111.09883, sections 3.2 and 3.3.
"""

# B batch, V windows of a picture, T tokens of a window, D width, H heads

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.trunks.windows import Windows

# Of the network that tells places.
PLACE_WIDTH = 512
PLACE_SCALE = 16.0
# exp of the first and of the largest logit scale: a temperature of 0.1, and of 0.01.
FIRST_SCALE, LARGEST_SCALE = 10.0, 100.0


class WindowAttention(nn.Module):
    """Attention inside windows by scaled cosines; q, k and v in one matrix, in this order, k without a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(FIRST_SCALE)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, PLACE_WIDTH), nn.ReLU(), nn.Linear(PLACE_WIDTH, heads, bias=False))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_BVTD: Tensor, windows: Windows, *, shifted: bool) -> Tensor:
        """Return the mixed tokens of each window."""
        batch, number, length, width = x_BVTD.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv(x_BVTD)
        qkv = (qkv + bias.to(qkv.dtype)).reshape(batch, number, length, 3, self.heads, width // self.heads)
        # Windows and heads are one dimension, so that what is added to the logits is held once, not for each picture.
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)
        scale = self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp().repeat(number, 1, 1)
        query = functional.normalize(query.float(), dim=-1) * scale
        key = functional.normalize(key.float(), dim=-1)
        mixed = functional.scaled_dot_product_attention(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            attn_mask=self._added(windows, number, shifted=shifted).to(value.dtype),
            scale=1.0,
        )
        mixed = mixed.reshape(batch, number, self.heads, length, -1).transpose(2, 3)
        out: Tensor = self.proj(mixed.reshape(batch, number, length, width))
        return out

    def _added(self, windows: Windows, number: int, *, shifted: bool) -> Tensor:
        """Return what is added to the logits, [1, V * heads, T, T]: for the distance, and against what must not meet.

        In fp32 also under autocast.
        """
        with in_full_precision(self.q_bias):
            weight = self.cpb_mlp[0].weight
            assert isinstance(weight, Tensor)
            told: Tensor = self.cpb_mlp(windows.distances.to(weight.dtype)).float()
            # The paper's numbers are 0 to 16. A softmax does not see the middle, and near 0 bf16 tells more apart.
            told = PLACE_SCALE * (told.sigmoid() - 0.5)
        length: int = windows.side[0] * windows.side[1]
        added_HTT = told[windows.place].reshape(length, length, self.heads).permute(2, 0, 1)
        added_VHTT = added_HTT[None].expand(number, -1, -1, -1)
        if shifted and windows.unseen is not None:
            added_VHTT = added_VHTT + windows.unseen[:, None]
        return added_VHTT.reshape(1, number * self.heads, length, length)


def in_full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return the context in which the device of `like` computes as written; one without memory knows no other."""
    return contextlib.nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)

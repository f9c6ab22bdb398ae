"""The vision transformer of "Scaling Vision Transformers": its shapes, and how its weights are drawn.

Sources: arXiv:2106.04560, table 2, and its code, big_vision.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from headrace.train.models.trunks.attention_pool import AttentionPool
from headrace.train.models.trunks.standard_vit import Pool, Positions, StandardVit, StandardVitConfig
from headrace.train.models.vit import Gelu, Mlp, VitConfig

MLP_BIAS_STD = 1e-6
# A normal that is cut at two deviations, and what deviation is left of it.
CUT, CUT_STD = 2.0, 0.87962566103423978


class Shape(NamedTuple):
    """One row of the table."""

    width: int
    depth: int
    heads: int
    mlp: int


# Table 2 of arXiv:2106.04560; tiny is AIM's of this repository.
SHAPES = {
    "tiny": Shape(192, 6, 3, 768),
    "s": Shape(256, 6, 8, 1024),
    "Ti": Shape(192, 12, 3, 768),
    "S": Shape(384, 12, 6, 1536),
    "B": Shape(768, 12, 12, 3072),
    "L": Shape(1024, 24, 16, 4096),
    "g": Shape(1408, 40, 16, 6144),
    "G": Shape(1664, 48, 16, 8192),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BigVisionConfig:
    """The vision transformer as big_vision has it."""

    pool: Pool = "map"
    """What stands for a picture: map = a learnt query that reads all tokens, and an MLP; mean = their mean, GAP;
    class_token = a learnt token that reads the others."""
    positions: Positions = "learned"
    """How tokens know their place: learned = a table, interpolated for other sides; sincos = MoCo v3's; none."""
    bias: bool = True
    """Biases of the linear layers in the blocks; pooling keeps its own."""
    gelu: Gelu = "tanh"
    """By tanh, as JAX approximates it, or exact."""
    mlp_width: int | None = None
    """Channels inside the MLPs; null = the model's, and four times a width of your own."""

    def trunk(self, grid: VitConfig, *, mlp_width: int) -> StandardVitConfig:
        """Return the trunk on this grid; `mlp_width` is meant where none is chosen."""
        return StandardVitConfig(
            grid=grid,
            pool=self.pool,
            positions=self.positions,
            mlp_width=mlp_width if self.mlp_width is None else self.mlp_width,
            gelu=self.gelu,
            bias=self.bias,
        )


@torch.no_grad()
def draw_as_big_vision(vit: StandardVit) -> None:
    """Give a fresh trunk first weights as big_vision's; what it draws alike stays as it is.

    Positions N(0, 1 / D), the class token 0, the patch projection N(0, 1 / inputs) cut at two deviations, biases of
    MLPs N(0, 1e-12). Draws from torch's generator.
    """
    kernel, width = vit.patch_embed.proj.weight, vit.config.width
    # Not torch's trunc_normal_, which draws until it fits: a plan makes this model without memory for its weights.
    within = math.erf(CUT / math.sqrt(2))
    nn.init.uniform_(kernel, -within, within).erfinv_().mul_(math.sqrt(2) / CUT_STD / math.sqrt(kernel[0].numel()))
    if isinstance(vit.pos_embed, nn.Parameter):
        nn.init.normal_(vit.pos_embed, std=1 / math.sqrt(width))
    if vit.cls_token is not None:
        nn.init.zeros_(vit.cls_token)
        if isinstance(vit.pos_embed, nn.Parameter):
            vit.pos_embed[:, 0] = 0.0  # there its position is no parameter of its own
    for module in vit.modules():
        if isinstance(module, Mlp):
            for layer in (module.fc1, module.fc2):
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=MLP_BIAS_STD)


def flops_of_pool(pool: AttentionPool, num_tokens: int) -> float:
    """Return the operations of one image, forward: keys and values of all tokens, the rest of one alone."""
    of_tokens = pool.kv.weight.numel()
    of_one = sum(layer.weight.numel() for layer in (pool.q, pool.proj, pool.mlp.fc1, pool.mlp.fc2))
    return 2.0 * of_tokens * num_tokens + 2.0 * of_one + 4.0 * num_tokens * pool.proj.out_features

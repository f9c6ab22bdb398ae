"""Multihead attention pooling: one learnt query reads all tokens, and an MLP reads what it found ("MAP").

Nothing is added around the attention and no norm stands before it: the tokens come from the trunk's last norm. Names of
parameters are those of timm's `AttentionPoolLatent`. Source: Scaling Vision Transformers, arXiv:2106.04560, section
3.2, and its code, big_vision.
"""

# B batch, L tokens, D width, A attention heads, E width of one head

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.vit import NORM_EPS, Gelu, Mlp


class AttentionPool(nn.Module):
    """Query -> attention over the tokens -> x + mlp(norm(x)); all linear layers have biases."""

    def __init__(self, width: int, heads: int, *, mlp_width: int | None = None, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, bias=True, hidden=mlp_width, gelu=gelu)
        initialise_pool(self)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return what stands for each image, [B, D]."""
        batch, length, width = tokens_BLD.shape
        key_value = self.kv(tokens_BLD).view(batch, length, 2, self.heads, width // self.heads)
        key_BALE, value_BALE = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        query_1A1E = self.q(self.latent).view(1, 1, self.heads, -1).transpose(1, 2)
        query_BA1E = query_1A1E.to(key_BALE.dtype).expand(batch, -1, -1, -1)
        mixed_BA1E = functional.scaled_dot_product_attention(query_BA1E, key_BALE, value_BALE)
        x_BD = self.proj(mixed_BA1E.transpose(1, 2).reshape(batch, width))
        out: Tensor = x_BD + self.mlp(self.norm(x_BD))
        return out


def initialise_pool(pool: AttentionPool) -> None:
    """Xavier-uniform for query and matrices, key and value each for itself; biases 0. Draws from torch's generator."""
    key, value = pool.kv.weight.chunk(2)
    for matrix in (
        pool.latent[0],
        pool.q.weight,
        key,
        value,
        pool.proj.weight,
        pool.mlp.fc1.weight,
        pool.mlp.fc2.weight,
    ):
        nn.init.xavier_uniform_(matrix)
    for layer in (pool.q, pool.kv, pool.proj, pool.mlp.fc1, pool.mlp.fc2):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)

"""Classifiers on the tokens of a trunk that is trained with them.

Unlike a probe's, the attentive one has no batch statistics: they would tie a picture's loss to its micro-batch and its
rank. Its tokens are normalised each for itself, the form that Apple's training code offers beside batch norm.
"""

# B batch, L tokens, D width, A attention heads, E width of one head, C classes

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-6
QUERY_STD = 0.02
# So small a start that the first steps teach the head and leave the trunk alone: MAE's fine-tuning code.
CLASS_STD = 2e-5


class MeanHead(nn.Module):
    """A linear layer on what stands for a picture: the mean of its tokens, or the class token."""

    def __init__(self, *, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=CLASS_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return logits [B, C]."""
        out: Tensor = self.linear(x_BD)
        return out


class AttentiveHead(nn.Module):
    """LayerNorm without affine, one learnt query that attends to all tokens, a linear layer.

    2 D^2 + D parameters before the classes. Source: AIM, arXiv:2401.08541, section 4.3, equation 4.
    """

    def __init__(self, *, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.query = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.query, std=QUERY_STD)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, classes)
        for layer in (self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.linear.weight, std=CLASS_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return logits [B, C]."""
        x_BLD = self.norm(tokens_BLD)
        batch, length, width = x_BLD.shape
        key, value = (
            layer(x_BLD).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.key, self.value)
        )
        query = self.query.to(key.dtype).view(1, self.heads, 1, -1).expand(batch, -1, -1, -1)
        mixed_BA1E = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.linear(mixed_BA1E.transpose(1, 2).reshape(batch, width))
        return out

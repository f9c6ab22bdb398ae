"""Low-rank adapters: a frozen matrix plus a trained product of two thin ones, which merge into one matrix again.

Adapters sit on parts of a fused matrix: q and v of `qkv`, whose rows are q, k and v in this order. Names and shapes are
loralib's: `lora_A` [parts * rank, in], `lora_B` [parts * rows of a part, rank]. Source: LoRA, arXiv:2106.09685.
"""

# D width, r rank

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.encoder import Encoder
from headrace.train.models.trunks.window_attention import WindowAttention
from headrace.train.models.vit import SelfAttention

DOWN, UP = "lora_A", "lora_B"
# Parts of the fused matrix that are adapted: q and v, as AIM (arXiv:2401.08541, table 8) and the LoRA paper have it.
QUERY_AND_VALUE = (0, 2)
QKV_PARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Adapters on q, v and proj of every block; everything else of the trunk stays as it is."""

    rank: int = 8
    """Rank of each adapter; 8 makes 48 * width parameters a block, 0.1 % of AIM-7B."""
    alpha: float = 1.0
    """The product is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {self.alpha}")

    @property
    def scale(self) -> float:
        """What the product of an adapter is multiplied by."""
        return self.alpha / self.rank


class LoraLinear(nn.Linear):
    """A linear layer whose `adapted` parts of `parts` equal blocks of rows have adapters."""

    def __init__(
        self, linear: nn.Linear, config: LoraConfig, *, parts: int = 1, adapted: tuple[int, ...] = (0,)
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.parts, self.adapted, self.scale = parts, adapted, config.scale
        rows, device = linear.out_features // parts, linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(len(adapted) * config.rank, linear.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(len(adapted) * rows, config.rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the merged matrix would give."""
        out = list(functional.linear(x, self.weight, self.bias).chunk(self.parts, dim=-1))
        downs, ups = self.lora_A.chunk(len(self.adapted)), self.lora_B.chunk(len(self.adapted))
        for part, down, up in zip(self.adapted, downs, ups, strict=True):
            out[part] = out[part] + functional.linear(functional.linear(x, down), up) * self.scale
        return torch.cat(out, dim=-1)


def add_lora(encoder: Encoder, config: LoraConfig) -> None:
    """Freeze the encoder and give q, v and proj of every block their adapters, which begin as nothing."""
    encoder.requires_grad_(False)
    for attention in [one for one in encoder.modules() if isinstance(one, SelfAttention | WindowAttention)]:
        attention.qkv = LoraLinear(attention.qkv, config, parts=QKV_PARTS, adapted=QUERY_AND_VALUE)
        attention.proj = LoraLinear(attention.proj, config)


def is_lora(name: str) -> bool:
    """True of the name of an adapter's parameter."""
    return name.endswith((f".{DOWN}", f".{UP}"))


def merge_lora(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return `tensors` with every adapter added to its matrix: a plain trunk that gives the same outputs."""
    merged = {name: tensor for name, tensor in tensors.items() if not is_lora(name)}
    for name, down in tensors.items():
        if not name.endswith(f".{DOWN}"):
            continue
        stem = name.removesuffix(DOWN)
        up, weight = tensors[stem + UP], tensors[f"{stem}weight"]
        adapted = QUERY_AND_VALUE if stem.endswith(".qkv.") else (0,)
        rows = up.shape[0] // len(adapted)
        whole = weight.double()  # a copy: sums of merged weights should be rounded once
        for part, one_down, one_up in zip(adapted, down.chunk(len(adapted)), up.chunk(len(adapted)), strict=True):
            whole[part * rows : (part + 1) * rows] += one_up.double() @ one_down.double() * config.scale
        merged[f"{stem}weight"] = whole.to(weight.dtype)
    return merged

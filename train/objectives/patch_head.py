"""Heads: from the trunk's tokens to what is predicted of patches, for the rows that count.

A head whose blocks see one token runs on those rows alone, which is exact and saves half of its work; one that attends
runs on all tokens as far as its last norm.
"""

# B batch, L patches, D width, N rows of a batch's tokens (batch-major), V values that are predicted of a patch

from typing import TYPE_CHECKING

from torch import Tensor, nn

from headrace.train.models.rows import take_distinct_rows
from headrace.train.models.stage import ResidualStream, Stage, mark_varying
from headrace.train.models.vit import Block, Mlp, VitConfig, initialise, over_heads, sincos_positions
from headrace.train.objectives.patch_config import PatchConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

HEAD_NORM_EPS = 1e-5


class PatchHead(nn.Module):
    """The base of heads. A subclass gives `forward` and `flops`."""

    compiled: bool = False
    """True if its blocks are compiled; rows are then distinct."""

    def forward(self, tokens_BLD: Tensor, rows_N: Tensor, attend: "Tensor | BlockMask | None" = None) -> Tensor:
        """Return predictions [N, V] of the rows `rows_N` of the tokens, which attended as `attend` says."""
        raise NotImplementedError

    def flops(self, *, tokens: int, terms: int, pairs: float) -> float:
        """Return the operations of forward and backward for so many tokens, of which `terms` are predicted from.

        `pairs` are those of patches that see each other.
        """
        raise NotImplementedError

    def taken(self, x_BLD: Tensor, rows_N: Tensor) -> Tensor:
        """Return the rows [N, D] of all tokens."""
        take = take_distinct_rows if self.compiled else Tensor.__getitem__
        return take(x_BLD.flatten(0, 1), rows_N)


class LinearHead(PatchHead):
    """No head but the linear layer that predicts."""

    def __init__(self, trunk: VitConfig, *, num_values: int) -> None:
        super().__init__()
        self.decoder_pred = zero_biased(nn.Linear(trunk.width, num_values))

    def forward(self, tokens_BLD: Tensor, rows_N: Tensor, attend: "Tensor | BlockMask | None" = None) -> Tensor:  # noqa: ARG002
        out: Tensor = self.decoder_pred(self.taken(tokens_BLD, rows_N))
        return out

    def flops(self, *, tokens: int, terms: int, pairs: float) -> float:  # noqa: ARG002
        return 6.0 * num_parameters(self) * terms


class BlocksHead(PatchHead):
    """Linear -> positions -> blocks -> norm -> linear.

    Blocks of an `mlp` head see single tokens, whatever image they belong to. Those of a `transformer` head are the
    trunk's, and attend as it does.
    """

    positions_LD: Tensor

    def __init__(self, trunk: VitConfig, config: PatchConfig, *, num_values: int) -> None:
        super().__init__()
        shape, side = config.shape, trunk.image_size // trunk.patch
        self.attends = config.head == "transformer"
        self.decoder_projection = nn.Linear(shape.width, shape.head_width)
        self.register_buffer("positions_LD", sincos_positions(side, side, shape.head_width), persistent=False)
        self.residual = ResidualStream()
        self.decoder_blocks = nn.ModuleList(_block(config) for _ in range(shape.head_depth))
        self.decoder_norm = nn.LayerNorm(shape.head_width, eps=HEAD_NORM_EPS)
        self.decoder_pred = nn.Linear(shape.head_width, num_values)
        initialise(self)
        for linear in (self.decoder_projection, self.decoder_pred):
            zero_biased(linear)

    def forward(self, tokens_BLD: Tensor, rows_N: Tensor, attend: "Tensor | BlockMask | None" = None) -> Tensor:
        x_ND = self._of_all(tokens_BLD, rows_N, attend) if self.attends else self._of_rows(tokens_BLD, rows_N)
        out: Tensor = self.decoder_pred(self.decoder_norm(x_ND))
        return out

    def _of_rows(self, tokens_BLD: Tensor, rows_N: Tensor) -> Tensor:
        place_N = rows_N % len(self.positions_LD)
        x_ND: Tensor = self.residual(
            self.decoder_projection(self.taken(tokens_BLD, rows_N)) + self.positions_LD[place_N]
        )
        for block in self.decoder_blocks:
            if self.compiled:
                mark_varying(x_ND)
            x_ND = block(x_ND)
        return x_ND

    def _of_all(self, tokens_BLD: Tensor, rows_N: Tensor, attend: "Tensor | BlockMask | None") -> Tensor:
        x_BLD = self.residual(self.decoder_projection(tokens_BLD) + self.positions_LD)
        mask = over_heads(attend)
        for block in self.decoder_blocks:
            x_BLD = block(x_BLD, mask)
        return self.taken(x_BLD, rows_N)

    def flops(self, *, tokens: int, terms: int, pairs: float) -> float:
        if not self.attends:
            return 6.0 * num_parameters(self) * terms
        last = num_parameters(self.decoder_norm) + num_parameters(self.decoder_pred)
        dense = 6.0 * ((num_parameters(self) - last) * tokens + last * terms)
        return dense + 12.0 * len(self.decoder_blocks) * len(self.decoder_projection.bias) * pairs


class HeadBlock(Stage):
    """x + mlp(norm(x)), after x + norm(x) where `identity_residual` asks for the reference's training code."""

    varying_rows = True

    def __init__(self, width: int, *, identity_residual: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=HEAD_NORM_EPS) if identity_residual else None
        self.norm_2 = nn.LayerNorm(width, eps=HEAD_NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.computed(x_ND)

    def compute(self, x_ND: Tensor) -> Tensor:
        if self.norm_1 is not None:
            x_ND = x_ND + self.norm_1(x_ND)
        out: Tensor = x_ND + self.mlp(self.norm_2(x_ND))
        return out


def build_head(trunk: VitConfig, config: PatchConfig, *, num_values: int) -> PatchHead:
    """Return the head that `config` asks for, with initial weights from torch's generator."""
    if config.head == "none":
        return LinearHead(trunk, num_values=num_values)
    return BlocksHead(trunk, config, num_values=num_values)


def _block(config: PatchConfig) -> Stage:
    width = config.shape.head_width
    if config.head == "transformer":
        return Block(width, config.num_head_heads, norm_eps=HEAD_NORM_EPS)
    return HeadBlock(width, identity_residual=config.head_identity_residual)


def zero_biased(linear: nn.Linear) -> nn.Linear:
    """Draw its weight, Xavier-uniform, and set its bias to 0."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers it learns."""
    return sum(parameter.numel() for parameter in module.parameters())

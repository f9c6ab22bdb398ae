"""open_clip's CLIP, made of blocks that are compiled and recomputed like ours.

The modules are open_clip's, under its names: a state dict fits theirs. Only the block around them is a `Stage`, with
the same operations in the same order. The scale and bias of the logits have one dimension, as a spread model wants;
released files hold them without.
"""

# B batch, L tokens, D width

import math
from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor, nn

from headrace.train.models.clip_shapes import ClipModelConfig
from headrace.train.models.stage import ResidualStream, Stage

PairLoss = Literal["softmax", "sigmoid"]

# Scale (as its logarithm) and bias at the start. CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343, section 3.2.
FIRST_LOGITS: dict[PairLoss, tuple[float, float | None]] = {
    "softmax": (math.log(1 / 0.07), None),
    "sigmoid": (math.log(10), -10.0),
}


class ClipBlock(Stage):
    """x + attention(norm(x)), then x + mlp(norm(x)), of the parts of a block of open_clip's."""

    def __init__(self, block: Any, *, is_first: bool) -> None:
        super().__init__()
        self.begins = ResidualStream() if is_first else None
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, block.attn, block.ln_2, block.mlp

    def get_weight_dtype(self) -> Any:
        """Return the format that open_clip gives to embedded tokens."""
        return self.mlp.c_fc.weight.dtype

    def forward(self, x_BLD: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.computed(x_BLD, attn_mask)

    def compute(self, x_BLD: Tensor, attn_mask: Tensor | None) -> Tensor:
        if self.begins is not None:
            x_BLD = self.begins(x_BLD)
        y_BLD = self.ln_1(x_BLD)
        mask = None if attn_mask is None else attn_mask.to(y_BLD.dtype)
        x_BLD = x_BLD + self.attn(y_BLD, y_BLD, y_BLD, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x_BLD + self.mlp(self.ln_2(x_BLD))
        return out


def build_towers(shape: ClipModelConfig, loss: PairLoss) -> Any:
    """Return open_clip's CLIP of this shape with its initial weights, drawn from torch's generator.

    The text tower is drawn as OpenAI's was, the image tower as PyTorch's layers are, which open_clip leaves so.
    """
    import open_clip

    scale, bias = FIRST_LOGITS[loss]
    model = open_clip.CLIP(**asdict(shape), init_logit_scale=scale, init_logit_bias=bias, nonscalar_logit_scale=True)
    for tower in (model.visual.transformer, model.transformer):
        blocks = [ClipBlock(block, is_first=number == 0) for number, block in enumerate(tower.resblocks)]
        tower.resblocks = nn.ModuleList(blocks)
    return model

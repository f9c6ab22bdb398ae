"""AIM as one writes it in an afternoon: what `train_step.py` compares our step with.

Plain PyTorch: a dense boolean mask, the pixel head on every token, autocast, AdamW as it comes. Names of the weights
are ours, so that both can be given the same weights and shown to have the same loss (`check_peer`).
"""

# B batch, L patches, D width, P values of a patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.models.vit import sincos_positions
from headrace.train.objectives.aim import Aim, AimConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    """Fused projection, scaled_dot_product_attention with a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Mlp(nn.Module):
    """Two layers and a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attn(self.norm_1(x_BLD), mask)
        out: Tensor = x_BLD + self.mlp(self.norm_2(x_BLD))
        return out


class HeadBlock(nn.Module):
    """One block of the pixel head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class PlainAim(nn.Module):
    """Trunk, head and loss."""

    def __init__(self, config: AimConfig, image_size: int) -> None:
        super().__init__()
        shape, self.patch = config.shape, config.patch
        side = image_size // config.patch
        self.length = side * side
        self.proj = nn.Conv2d(3, shape.width, config.patch, stride=config.patch)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.post_trunk_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.decoder_projection = nn.Linear(shape.width, shape.head_width)
        self.decoder_blocks = nn.ModuleList(HeadBlock(shape.head_width) for _ in range(shape.head_depth))
        self.decoder_norm = nn.LayerNorm(shape.head_width, eps=1e-5)
        self.decoder_pred = nn.Linear(shape.head_width, config.patch**2 * 3)
        for name, width in (("positions", shape.width), ("head_positions", shape.head_width)):
            self.register_buffer(name, sincos_positions(side, side, width), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(self, images_BHWC: Tensor, prefix_B: Tensor) -> Tensor:
        """Return the mean over predicted patches of their mean squared error."""
        images = ((images_BHWC.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        place = torch.arange(self.length, device=images.device)
        mask = (place < prefix_B[:, None, None]) | (place <= place[:, None])
        x_BLD = self.norm(self.proj(images).flatten(2).transpose(1, 2)) + self.positions
        for block in self.blocks:
            x_BLD = block(x_BLD, mask[:, None])
        x_BLD = self.decoder_projection(self.post_trunk_norm(x_BLD)) + self.head_positions
        for block in self.decoder_blocks:
            x_BLD = block(x_BLD)
        predicted = self.decoder_pred(self.decoder_norm(x_BLD))[:, :-1].float()
        error = (predicted - self.targets(images)[:, 1:]).square().mean(dim=-1)
        hidden = place[1:] >= prefix_B[:, None]
        return (error * hidden).sum() / hidden.sum()

    def targets(self, images: Tensor) -> Tensor:
        """Return normalised patches [B, L, P]."""
        batch, channels, height, width = images.shape
        grid = images.reshape(batch, channels, height // self.patch, self.patch, width // self.patch, self.patch)
        target = grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, self.length, -1)
        return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()


def check_peer(ours: Aim, images_BHWC: Tensor, prefix_B: Tensor, mean_loss: float) -> None:
    """Raise AssertionError unless the plain one, given our weights, has our loss."""
    peer = PlainAim(ours.config, ours.encoder.config.image_size)
    strip = ("encoder.preprocessor.patchifier.", "encoder.trunk.", "head.")
    weights = {}
    for name, tensor in ours.state_dict().items():
        front = next(one for one in strip if name.startswith(one))
        weights[name.removeprefix(front)] = tensor
    peer.load_state_dict(weights)
    with torch.no_grad():
        theirs = float(peer(images_BHWC, prefix_B))
    assert abs(theirs - mean_loss) < 1e-4 * abs(mean_loss), f"the plain step computes {theirs}, ours {mean_loss}"

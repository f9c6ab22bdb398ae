"""What probes and features ask of an encoder, whatever it is made of."""

# B batch, L tokens, D width, H image side in pixels, N blocks, C channels, h w rows and columns of a map

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class EncoderShape(Protocol):
    """The sizes of an encoder."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        ...

    @property
    def num_patches(self) -> int:
        """Tokens of one image."""
        ...

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def heads(self) -> int:
        """Attention heads; a probe has as many."""
        ...


class Encoder(nn.Module):
    """Normalised images in, tokens out."""

    convolves: ClassVar[bool] = False
    """True of a network of convolutions, whose heads MoCo v3 makes otherwise."""

    @property
    def shape(self) -> EncoderShape:
        """The sizes of this encoder."""
        raise NotImplementedError

    @property
    def feature_width(self) -> int:
        """Channels of what `pooled` returns."""
        return self.shape.width

    @property
    def first_read(self) -> int:
        """The first of the blocks (0-based) whose outputs have the form that `shape` says; so have all after it."""
        return 0

    def block_outputs(self, images_B3HH: Tensor) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D], as at evaluation."""
        raise NotImplementedError

    def pool(self, tokens_BLD: Tensor) -> Tensor:
        """Return what stands for each image, [B, D], of one block's output."""
        return tokens_BLD.mean(dim=1)

    def pooled(self, images_B3HH: Tensor) -> Tensor:
        """Return what stands for each image, [B, feature_width], at the end of the encoder."""
        raise NotImplementedError

    @property
    def forward_flops(self) -> float:
        """Operations of one image: here 2 a weight and token, and those of attention."""
        shape = self.shape
        weights = sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1)
        return 2.0 * weights * shape.num_patches + 4.0 * shape.depth * shape.num_patches**2 * shape.width

    def fitted(self, name: str, tensor: Tensor) -> Tensor:  # noqa: ARG002  the base has none that change
        """Return a file's tensor as this encoder's parameter `name` takes it. Raises ValueError if it means another."""
        return tensor

    def plain_state(self) -> dict[str, Tensor]:
        """Return its state as other programs know it: parameters that only they lack are worked into others."""
        return self.state_dict()

    def before_update(self) -> None:
        """Change own gradients, all of which are there, before those of the model are judged and clipped."""

    def depth_of(self, name: str) -> int:
        """Return where the parameter `name` stands: 0 before the blocks, i + 1 in block i, depth + 1 behind them.

        Raises ValueError for an encoder that does not say: its rates cannot differ by depth.
        """
        raise ValueError(f"{type(self).__name__} does not say how deep {name} is, so layer_decay must be 1")


class TunableEncoder(Encoder):
    """One that fine-tuning takes: parts of it may be left out for some images.

    `kept_NB2` says for each of N blocks what both of its branches are multiplied by (drop path); None = 1.
    """

    def block_outputs(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D]."""
        raise NotImplementedError

    def pooled(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> Tensor:
        """Return what stands for each image, [B, feature_width], at the end of the encoder."""
        raise NotImplementedError


@runtime_checkable
class FeatureMaps(Protocol):
    """An encoder whose outputs are maps of the picture: what segmentation and detection stand on.

    It adds no parameters to the encoder: what one map lacks of others, `headrace.train.models.pyramid` makes of it.
    """

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the picture from one place of each map to the next, ascending."""
        ...

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each map."""
        ...

    def feature_maps(self, images_B3HH: Tensor, kept_NB2: Tensor | None = None) -> list[Tensor]:
        """Return the maps [B, C, h, w], in the order of `feature_strides`; `kept_NB2` as in `TunableEncoder`."""
        ...


class Hidden(NamedTuple):
    """Tokens of the first layer that another stands for: what is to be predicted of a picture is not seen."""

    where_BL: Tensor
    """True where a token is hidden."""
    token_D: Tensor
    """What stands there."""


def with_hidden(tokens_BLD: Tensor, hidden: Hidden | None) -> Tensor:
    """Return the tokens with the hidden ones replaced."""
    if hidden is None:
        return tokens_BLD
    return torch.where(hidden.where_BL[..., None], hidden.token_D.to(tokens_BLD.dtype), tokens_BLD)


@runtime_checkable
class HidesTokens(FeatureMaps, Protocol):
    """An encoder that sees pictures with tokens hidden, all tokens in their places.

    Tokens of the first layer are as wide as its first map, and as far apart.
    """

    def masked_map(self, images_B3HH: Tensor, hidden: Hidden, kept_NB2: Tensor | None = None) -> Tensor:
        """Return the last of its maps [B, C, h, w], of pictures that are seen so."""
        ...


def as_map(tokens_BLD: Tensor, *, side: int) -> Tensor:
    """Return tokens of a square grid, which lie row by row, as a map [B, D, side, side]."""
    batch, _, width = tokens_BLD.shape
    return tokens_BLD.transpose(1, 2).reshape(batch, width, side, side)

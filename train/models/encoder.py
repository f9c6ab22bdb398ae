"""What probes and features ask of an encoder, whatever it is made of."""

# B batch, L tokens, D width, H image side in pixels

from collections.abc import Iterator
from typing import Protocol

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

    @property
    def shape(self) -> EncoderShape:
        """The sizes of this encoder."""
        raise NotImplementedError

    def block_outputs(self, images_B3HH: Tensor) -> Iterator[Tensor]:
        """Yield each block's output [B, L, D], as at evaluation."""
        raise NotImplementedError

    def depth_of(self, name: str) -> int:
        """Return where the parameter `name` stands: 0 before the blocks, i + 1 in block i, depth + 1 behind them.

        Raises ValueError for an encoder that does not say: its rates cannot differ by depth.
        """
        raise ValueError(f"{type(self).__name__} does not say how deep {name} is, so layer_decay must be 1")

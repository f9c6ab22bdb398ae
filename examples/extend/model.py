"""An encoder whose tokens never see each other: patches, then the same two layers for each."""

from collections.abc import Iterator

from torch import Tensor, nn

from headrace.train.models.encoder import Encoder
from headrace.train.models.vit import VitConfig


class BagOfPatches(Encoder):
    """Patch projection and an MLP."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        width = config.width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    @property
    def shape(self) -> VitConfig:
        """The sizes of this encoder."""
        return self.config

    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return tokens [B, L, D]."""
        tokens: Tensor = self.mlp(self.proj(images_B3HH).flatten(2).transpose(1, 2))
        return tokens

    def block_outputs(self, images_B3HH: Tensor) -> Iterator[Tensor]:
        """Yield the one output [B, L, D]."""
        yield self(images_B3HH)

"""Mean colour: the smallest objective there can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from headrace.pipeline import Batch
from headrace.train.models.vit import Vit, VitConfig
from headrace.train.objectives.objective import Objective
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanColourConfig:
    """Predict the mean colour of the picture from the mean of its tokens."""

    kind: Literal["mean_colour"]
    """The tag of this objective."""
    width: int = 64
    """Channels of the trunk."""

    def build(self, *, image_size: int, seed: int) -> "MeanColour":  # noqa: ARG002  the generator is seeded by then
        """Return the objective for images of this side."""
        return MeanColour(VitConfig(image_size=image_size, patch=8, width=self.width, depth=1, heads=2))


class MeanColour(Objective):
    """Trunk, mean of its tokens, linear head; squared error."""

    released_prefix = "encoder."

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = Vit(config)
        self.head = nn.Linear(config.width, 3)

    @property
    def trunk(self) -> Vit:
        """The encoder."""
        return self.encoder

    @property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens."""
        return 6.0 * sum(item.numel() for item in self.encoder.parameters()) * self.encoder.config.num_patches

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures."""
        return int(batch.valid.sum())

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum of squared errors over the pictures that count."""
        images_B3HH = self.normalise(batch.images)
        error_B3 = self.head(self.encoder(images_B3HH).mean(dim=1)) - images_B3HH.mean(dim=(2, 3))
        return error_B3[batch.valid].square().sum(), {}

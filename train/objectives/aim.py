"""AIM: predict each patch from the patches before it, with a random prefix that sees itself.

The loss is a function of (weights, images, seed, global position of each sample); no generator is kept. The output at
patch i predicts patch i + 1, so with a prefix of S patches the first output that counts is number S - 1, and S runs
over 1..K-1 inclusive. Source: AIM, arXiv:2401.08541, sections 3 and 4.2.
"""

# B batch, L patches, D width, N rows of a batch's tokens (batch-major)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.models.vit import prefix_attention
from headrace.train.objectives.head_rows import predicting_rows
from headrace.train.objectives.orders import Order, patch_order
from headrace.train.objectives.patch_config import PatchConfig
from headrace.train.objectives.patch_head import BlocksHead
from headrace.train.objectives.patch_objective import PatchObjective
from headrace.train.objectives.prefixes import prefix_lengths
from headrace.train.pixels import on_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, kw_only=True, slots=True)
class AimConfig(PatchConfig):
    """AIM: predict each patch's pixels from the patches before it; a trunk from the model table and a pixel head."""

    added: ClassVar[tuple[str, ...]] = (*PatchConfig.added, "attention", "order", "order_seed")
    """Fields that came after the first runs."""
    kind: Literal["aim"]
    """The tag of this objective."""
    attention: Literal["prefix", "causal"] = "prefix"
    """prefix = a random number of patches see each other, and those behind them are predicted; causal = each patch
    sees those before it, and all but the first are predicted."""
    order: Order = "raster"
    """What comes before and after: raster = row by row; spiral = from the middle outwards; checkerboard = every second
    patch, then the others; random = a fixed permutation."""
    order_seed: int = 0
    """Which permutation `random` is."""

    def __post_init__(self) -> None:
        PatchConfig.__post_init__(self)  # not super(): with slots, the decorator makes another class
        if self.order_seed and self.order != "random":
            raise ValueError(f"order_seed belongs to order random, and order is {self.order}")

    def build(self, *, image_size: int, seed: int) -> "Aim":
        """Return the objective for images of this side; `seed` decides the prefixes."""
        return Aim(self, image_size=image_size, seed=seed)


class Aim(PatchObjective):
    """Trunk with prefix or causal attention; each output predicts the next patch.

    Tokens stand in the order of the config: position embeddings and targets go with their patches, and masks are those
    of places. A probe attends everywhere, so to it the order is nothing.
    """

    order_L: Tensor | None
    """The patch at each place; None = place and patch are the same."""

    def __init__(self, config: AimConfig, *, image_size: int, seed: int) -> None:
        super().__init__(config, image_size=image_size, seed=seed)
        self.config = config
        self.fixed_prefix: int | None = None
        order = patch_order(config.order, image_size // config.patch, config.order_seed).tolist()
        order_L = None if config.order == "raster" else torch.tensor(order)
        self.register_buffer("order_L", order_L, persistent=False)
        if order_L is not None and isinstance(self.head, BlocksHead):
            self.head.positions_LD = self.head.positions_LD[order_L]

    def needed_flops(self, batch: Batch) -> float:
        """Return the operations of a step that the loss of `batch` needs.

        The head counts where its output is in the loss, attention where a patch sees another.
        """
        tokens, prefix_B = self.num_patches, self.prefixes(batch).astype(np.float64)
        pairs = float((tokens * (tokens + 1) / 2 + prefix_B * (prefix_B - 1) / 2).sum())
        return self._flops(images=len(prefix_B), terms=self.num_terms(batch), pairs=pairs)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of predicted patches."""
        prefix_B = self.prefixes(batch)
        return int((self.num_patches - prefix_B)[batch.valid].sum())

    def prefixes(self, batch: Batch) -> NDArray[np.int64]:
        """Return the prefix length of each sample, a function of (seed, global position).

        A prefix of one patch is causal attention: that patch sees itself either way.
        """
        if self.fixed_prefix is not None:
            return np.full(len(batch.position), self.fixed_prefix)
        if self.config.attention == "causal":
            return np.ones(len(batch.position), np.int64)
        return prefix_lengths(batch.position, self.num_patches, self.seed)

    def fix_prefix(self, prefix: int | None) -> None:
        """Let each sample have a prefix of so many patches from now on; None = as in training."""
        if prefix is not None and not 1 <= prefix < self.num_patches:
            raise ValueError(f"prefix must be 1..{self.num_patches - 1}, got {prefix}")
        self.fixed_prefix = prefix

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over predicted patches of their loss."""
        images_B3HH = self.normalise(batch.images)
        prefix_B, device = self.prefixes(batch), images_B3HH.device
        rows_N, count = self._rows(
            predicting_rows(prefix_B, batch.valid, self.num_patches), images=prefix_B.size, device=device
        )
        attend = self._attends(on_device(prefix_B, device))
        patches_BLD = self.encoder.preprocessor(images_B3HH)
        if self.order_L is not None:
            patches_BLD = patches_BLD[:, self.order_L]
        predicted_NV = self.head(self.encoder.from_patches(patches_BLD, attend), rows_N, attend)
        # The last patch of all predicts nothing: where it stands among the rows that do not count, no row follows it.
        next_N = (rows_N + 1) % (prefix_B.size * self.num_patches)
        place_N = next_N % self.num_patches
        target_N = next_N if self.order_L is None else next_N - place_N + self.order_L[place_N]
        loss_N = self._losses(predicted_NV, images_B3HH, target_N)[:count]
        self._note_places(loss_N, place_N[:count])
        return loss_N.sum(), {}

    def _attends(self, prefix_B: Tensor) -> "Tensor | BlockMask":
        if self.execution.flex:
            from headrace.train.models.block_mask import prefix_block_mask

            return prefix_block_mask(prefix_B, self.num_patches)
        return prefix_attention(prefix_B, self.num_patches)

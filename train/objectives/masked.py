"""The masked baseline of AIM's ablations: predict hidden patches from the others, with attention everywhere.

Hidden patches are replaced by one learnt token, under their positions, and nothing is dropped: trunk, head, targets and
cost are those of `aim`, so that the objectives alone differ. Which patches are hidden is a function of (seed, global
position of the sample). Source: AIM, arXiv:2401.08541, table 5.
"""

# B batch, L patches, D width, N rows of a batch's tokens (batch-major)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.pipeline import Batch
from headrace.shards.permutation import make_key
from headrace.train.objectives.patch_choice import chosen_patches
from headrace.train.objectives.patch_config import PatchConfig
from headrace.train.objectives.patch_objective import PatchObjective
from headrace.train.pixels import on_device

# As masked image models draw it: BEiT, arXiv:2106.08254, and MAE, arXiv:2111.06377.
MASK_TOKEN_STD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedConfig(PatchConfig):
    """Masked patches: predict hidden patches from the others; AIM's trunk, head and targets."""

    kind: Literal["masked"]
    """The tag of this objective."""
    mask_ratio: float = 0.75
    """Share of the patches of each picture that are hidden, rounded to whole patches; the paper has 0.5 and 0.75."""

    def __post_init__(self) -> None:
        PatchConfig.__post_init__(self)  # not super(): with slots, the decorator makes another class
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be within 0..1, ends excluded, got {self.mask_ratio}")

    def build(self, *, image_size: int, seed: int) -> "Masked":
        """Return the objective for images of this side; `seed` decides what is hidden."""
        return Masked(self, image_size=image_size, seed=seed)


class Masked(PatchObjective):
    """Trunk that sees everything but the hidden patches; the outputs at those predict them."""

    def __init__(self, config: MaskedConfig, *, image_size: int, seed: int) -> None:
        super().__init__(config, image_size=image_size, seed=seed)
        self.config = config
        self.num_hidden = min(max(1, round(config.mask_ratio * self.num_patches)), self.num_patches - 1)
        self.mask_token = nn.Parameter(torch.empty(self.encoder.config.width))
        # Not trunc_normal_, which cuts at 2, a hundred deviations away, and cannot draw without memory (a dry run).
        nn.init.normal_(self.mask_token, std=MASK_TOKEN_STD)

    def needed_flops(self, batch: Batch) -> float:
        """Return the operations of a step that the loss of `batch` needs: all, but those of a head nobody reads."""
        images, tokens = len(batch.position), self.num_patches
        return self._flops(images=images, terms=self.num_terms(batch), pairs=float(images * tokens * tokens))

    def num_terms(self, batch: Batch) -> int:
        """Return the number of hidden patches."""
        return self.num_hidden * int(batch.valid.sum())

    def hidden(self, batch: Batch) -> NDArray[np.bool_]:
        """Return [B, L], True for the patches that are hidden, a function of (seed, global position)."""
        return chosen_patches(batch.position, self.num_patches, self.num_hidden, key=make_key(self.seed, "mask"))

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over hidden patches of their loss."""
        images_B3HH = self.normalise(batch.images)
        hidden_BL = self.hidden(batch)
        rows_N, count = self._rows(
            np.flatnonzero(hidden_BL & batch.valid[:, None]), images=len(hidden_BL), device=images_B3HH.device
        )
        seen_BLD = self.encoder.preprocessor(images_B3HH)
        token_LD = self.mask_token + self.encoder.preprocessor.positions_LD
        hidden_BL1 = on_device(hidden_BL, images_B3HH.device)[..., None]
        tokens_BLD = self.encoder.from_patches(torch.where(hidden_BL1, token_LD.to(seen_BLD.dtype), seen_BLD))
        loss_N = self._losses(self.head(tokens_BLD, rows_N), images_B3HH, rows_N)[:count]
        self._note_places(loss_N, rows_N[:count] % self.num_patches)
        return loss_N.sum(), {}

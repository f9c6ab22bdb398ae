"""The base of the objectives that predict patches: trunk, head, targets, and what a step of them takes."""

# B batch, N rows of a batch's tokens (batch-major), V values that are predicted of a patch

import dataclasses
import logging
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.train.execution import Execution
from headrace.train.models.vit import SelfAttention, Vit
from headrace.train.objectives.codebook import read_codebook
from headrace.train.objectives.head_rows import padded, padded_with_others
from headrace.train.objectives.objective import Objective
from headrace.train.objectives.patch_config import PatchConfig
from headrace.train.objectives.patch_head import build_head, num_parameters
from headrace.train.objectives.targets import patch_losses
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise, on_device

FLEX_MIN_CHANNELS = 16

log = logging.getLogger(__name__)


class PatchObjective(Objective):
    """A trunk and a head that predict patches. A subclass says from which outputs which patches are predicted."""

    released_prefix = "encoder."
    codebook_CP: Tensor | None
    """Filled when the objective is to compute; what only reads weights does without the file."""

    def __init__(self, config: PatchConfig, *, image_size: int, seed: int) -> None:
        super().__init__()
        trunk = config.trunk(image_size)
        if trunk.num_patches < 2:
            raise ValueError(
                f"one patch of {config.patch} fills the image of {image_size}: nothing follows it to predict"
            )
        self.seed = seed
        self.num_patches, self.patch, self.targets = trunk.num_patches, config.patch, config.targets
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = Vit(trunk)
        self.codebook, self.codebook_is_read = config.codebook, False
        num_codes = 0 if config.codebook is None else config.codebook.size
        codebook_CP = torch.zeros(num_codes, trunk.patch_values) if num_codes else None
        self.register_buffer("codebook_CP", codebook_CP, persistent=False)
        self.head = build_head(trunk, config, num_values=num_codes or trunk.patch_values)

    @property
    def num_places(self) -> int:
        """One for each patch of a picture."""
        return self.num_patches

    def run_as(self, execution: Execution) -> None:
        """Compute as `execution` says; FlexAttention has no kernels for heads of under 16 channels."""
        attending = [part for part in self.modules() if isinstance(part, SelfAttention)]
        narrowest = min(part.qkv.in_features // part.heads for part in attending)
        if execution.flex and narrowest < FLEX_MIN_CHANNELS:
            log.warning("heads of %d channels are too narrow for flex: sdpa", narrowest)
            execution = dataclasses.replace(execution, flex=False)
        super().run_as(execution)
        self._read_codebook()
        self.head.compiled = execution.compiled

    def check_files(self) -> None:
        """Raise ValueError if the codebook is not the one that the config says."""
        if self.codebook is not None:
            read_codebook(self.codebook, self.encoder.config.patch_values)

    def _read_codebook(self) -> None:
        if self.codebook is not None and self.codebook_CP is not None:
            self.codebook_CP.copy_(read_codebook(self.codebook, self.encoder.config.patch_values))
            self.codebook_is_read = True

    @property
    def trunk(self) -> Vit:
        """The encoder, which attends everywhere when a probe reads it."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens + 12 x depth x width x tokens^2: all positions, as published counts do."""
        tokens = self.num_patches
        return self._flops(images=1, terms=tokens, pairs=float(tokens * tokens))

    def _flops(self, *, images: int, terms: int, pairs: float) -> float:
        """Return the operations of `images` images, of whose outputs `terms` predict.

        `pairs` counts the pairs of patches that see each other, in all images.
        """
        tokens, trunk = images * self.num_patches, self.encoder.config
        dense = 6.0 * num_parameters(self.encoder) * tokens + 12.0 * trunk.depth * trunk.width * pairs
        # Of a codebook each term asks all codes, forward alone.
        codes = 0 if self.codebook_CP is None else self.codebook_CP.numel()
        return dense + self.head.flops(tokens=tokens, terms=terms, pairs=pairs) + 2.0 * codes * terms

    def _rows(self, rows_N: NDArray[np.int64], images: int, device: torch.device) -> tuple[Tensor, int]:
        """Return the rows of tokens that the head sees, on the device, and how many in front of them count."""
        rows, count = self._head_rows(rows_N, images)
        return on_device(rows, device), count

    def _head_rows(self, rows_N: NDArray[np.int64], images: int) -> tuple[NDArray[np.int64], int]:
        pads = padded_with_others if self.execution.compiled else padded
        return pads(rows_N, images * self.num_patches)

    def _losses(self, predicted_NV: Tensor, images_B3HH: Tensor, target_N: Tensor) -> Tensor:
        """Return the loss [N] of each prediction, that of the patch `target_N` of the batch, image by image."""
        assert self.codebook is None or self.codebook_is_read, "run_as comes before the first forward"
        return patch_losses(
            predicted_NV,
            images_B3HH,
            target_N,
            patch=self.patch,
            targets=self.targets,
            codebook_CP=self.codebook_CP,
        )

    def _note_places(self, loss_N: Tensor, place_N: Tensor) -> None:
        """Add losses to those of their places, if validation wants them apart."""
        if self.by_place is not None:
            both_2N = torch.stack([loss_N.detach().double(), torch.ones_like(loss_N, dtype=torch.float64)])
            self.by_place.index_add_(1, place_N, both_2N)

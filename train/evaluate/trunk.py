"""A trunk that is only read: the encoder of a checkpoint, frozen, with the normalisation it was trained by.

Every evaluator begins here. Features are taken before the trunk's last norm, with attention everywhere, although
training masked it.
"""

# B batch, L patches, D width, H image side in pixels

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.train.models.encoder import Encoder
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.precision import autocast
from headrace.train.pixels import Normalise
from headrace.train.runs.weights import ModelRecord, read_weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenTrunk:
    """An encoder in evaluation mode whose parameters take no gradient."""

    encoder: Encoder
    normalise: Normalise
    """From the stream's uint8 images to what the encoder takes, on its device."""
    path: Path
    """The checkpoint that was read."""
    model: ModelRecord
    """Objective, image size and seed of the run."""
    step: int
    """Optimizer steps done; 0 of fresh weights."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.encoder.shape.image_size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.normalise.mean_C.device

    @torch.no_grad()
    def means(
        self,
        images_BHH3: NDArray[np.uint8] | Tensor,
        layer_sets: Sequence[tuple[int, ...]],
        *,
        pooled: bool = False,
    ) -> list[Tensor]:
        """Return float32 [B, L, D] for each set of blocks, the mean of their outputs; `pooled` to one row, [B, D].

        Images are as a stream has them.
        """
        with autocast("auto", self.device):
            means = means_of_blocks(self.encoder, self.normalise(images_BHH3), layer_sets, pooled=pooled)
        return [x.float() for x in means]

    def digest(self) -> str:
        """Return a sha256 over sizes, names, values and the normalisation: what decides the features of a picture."""
        # The same weights in another number of heads, or with another epsilon of the norms, give other features.
        hashed = hashlib.sha256(repr((self.normalise.mean, self.normalise.std, self.encoder.shape)).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            hashed.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return hashed.hexdigest()


def open_trunk(checkpoint: Path, *, untrained: bool = False, device: torch.device | None = None) -> FrozenTrunk:
    """Read the trunk of a run folder, a checkpoint, an exported `model.safetensors`, or a released one of AIM.

    With `untrained` it has fresh weights from the run's seed. Raises ValueError if there is no trunk in it.
    """
    weights = read_weights(checkpoint)
    objective = weights.model.build()
    encoder = trunk_of(objective, weights.model, str(weights.path))
    if not untrained:
        with torch.no_grad():
            weights.load_into(objective)
    place = torch.device("cpu") if device is None else device
    return FrozenTrunk(
        encoder=encoder.requires_grad_(False).eval().to(place),
        normalise=objective.normalise.to(place),
        path=weights.path,
        model=weights.model,
        step=0 if untrained else weights.step,
    )


def trunk_of(objective: Objective, model: ModelRecord, name: str) -> Encoder:
    """Return the trunk that is probed. Raises ValueError, with the model's name, if there is none."""
    trunk = objective.trunk
    if trunk is None:
        raise ValueError(f"{name}: an objective {model.objective.kind} has no trunk that probes read")
    return trunk


END = (-1,)
"""In place of blocks: what stands for a picture at the end of the encoder, behind its last norm."""


def mean_of_blocks(encoder: Encoder, images_B3HH: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Return [B, L, D], the mean of the outputs of the blocks `layers` (0-based)."""
    return means_of_blocks(encoder, images_B3HH, (layers,))[0]


def means_of_blocks(
    encoder: Encoder, images_B3HH: Tensor, layer_sets: Sequence[tuple[int, ...]], *, pooled: bool = False
) -> list[Tensor]:
    """Return [B, L, D] for each set of blocks, in one pass; `pooled` to one row an image, [B, D].

    Blocks behind the last that is asked for are not run. Pooled at each block, so that many sets take little memory.
    The set END is what the encoder itself makes of an image, in a pass of its own where there are others.
    """
    if END in layer_sets:
        assert pooled, "the end of an encoder is one row an image"
        end, others = encoder.pooled(images_B3HH).float(), [layers for layers in layer_sets if layers != END]
        rest = iter(means_of_blocks(encoder, images_B3HH, others, pooled=True) if others else ())
        return [end if layers == END else next(rest) for layers in layer_sets]
    totals: list[Tensor | None] = [None] * len(layer_sets)
    last = max(max(layers) for layers in layer_sets)
    for number, x_BLD in enumerate(encoder.block_outputs(images_B3HH)):
        x = encoder.pool(x_BLD.float()) if pooled else x_BLD
        for which, layers in enumerate(layer_sets):
            if number in layers:
                total = totals[which]
                totals[which] = x if total is None else total + x
        if number == last:
            break
    means = [total / len(layers) for total, layers in zip(totals, layer_sets, strict=True) if total is not None]
    assert len(means) == len(layer_sets), "layers are checked by parse_layers"
    return means


def parse_layers(text: str, depth: int, *, first: int = 0) -> tuple[int, ...]:
    """Return block numbers for `lastN` (all where there are fewer), `all`, or a list such as `3,4,5`; END for `end`.

    `first` is the first block that is read. Raises ValueError for what is no such text, and for blocks before it.
    """
    if text == "end":
        return END
    if text == "all":
        return tuple(range(first, depth))
    if text.startswith("last") and text[4:].isdecimal() and int(text[4:]) > 0:
        return tuple(range(max(first, depth - int(text[4:])), depth))
    parts = text.split(",")
    if all(part.isdecimal() for part in parts) and min(map(int, parts)) < first:
        raise ValueError(
            f"layers {text!r}: the blocks before {first} of this trunk have tokens of other sizes than the last; take "
            f"{first if first == depth - 1 else f'{first}..{depth - 1}'}, or last1"
        )
    if all(part.isdecimal() and int(part) < depth for part in parts) and len(set(parts)) == len(parts):
        return tuple(sorted(int(part) for part in parts))
    raise ValueError(f"layers {text!r}: expected last6, all, end, or different numbers of 0..{depth - 1} such as 3,4,5")


def read_layers(text: str, encoder: Encoder) -> tuple[int, ...]:
    """Return the numbers of the blocks of `encoder` that `text` means. Raises ValueError as `parse_layers` does."""
    return parse_layers(text, encoder.shape.depth, first=encoder.first_read)

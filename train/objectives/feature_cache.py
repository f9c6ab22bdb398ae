"""A contrastive batch in parts: features first, their gradients from all pairs, then each part again with gradient.

The loss of pairs is not the sum over parts of a batch, but it is a function of features alone. So the first pass keeps
features and no activations; the loss gives each feature its gradient g; and in the second pass a part's loss is
sum(feature * g), whose gradient by the weights is the true one. A part costs one forward more. Source: GradCache,
arXiv:2101.06983, section 3.2.
"""

# B pairs of a part, D width

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline import Batch
from headrace.train.objectives.pair_loss import Logits, PairLosses, Pairs


class Gradients(NamedTuple):
    """Of the loss of all pairs."""

    image_BD: Tensor
    text_BD: Tensor
    scale: Tensor
    bias: Tensor | None


class CachedPart(NamedTuple):
    """What the second pass of one part needs of the first."""

    position_B: NDArray[np.int64]
    losses: PairLosses
    gradients: Gradients | None
    """None where nothing is trained."""
    generators: list[Tensor]
    """States of torch's generators before the first pass: what was dropped there is dropped again."""

    def loss(self, own: Pairs, logits: Logits) -> Tensor:
        """Return a scalar of the part's loss, with the gradient of the loss of all pairs."""
        value = self.losses.loss_B.sum()
        if self.gradients is None:
            return value
        found = (own.image_BD, own.text_BD, logits.scale, logits.bias)
        carrier = torch.zeros_like(value)
        for tensor, gradient in zip(found, self.gradients, strict=True):
            if tensor is not None and gradient is not None:
                carrier = carrier + (tensor.to(gradient.dtype) * gradient).sum()
        return value + (carrier - carrier.detach())


def cache_parts(
    parts: Sequence[Batch],
    *,
    features: Callable[[Batch], Pairs],
    losses: Callable[[Pairs, Logits], PairLosses],
    logits: Logits,
    device: torch.device,
) -> list[CachedPart]:
    """Return what each part's second pass needs; gradients where they are enabled. Called on all ranks."""
    found, generators = [], []
    with torch.no_grad():
        for part in parts:
            generators.append(generator_states(device))
            found.append(features(part))
    trains = torch.is_grad_enabled()
    sizes = [len(pairs.image_BD) for pairs in found]
    whole = Pairs(*(torch.cat(column) for column in zip(*found, strict=True)))
    leaves = Pairs(whole.image_BD.requires_grad_(trains), whole.text_BD.requires_grad_(trains), whole.counted_B)
    scale = logits.scale.detach().clone().requires_grad_(trains)
    bias = None if logits.bias is None else logits.bias.detach().clone().requires_grad_(trains)
    computed = losses(leaves, Logits(scale, bias))
    gradients: list[Gradients | None] = [None] * len(parts)
    if trains:
        gradients = _gradients(computed, leaves, Logits(scale, bias), sizes)
    cut = zip(torch.split(computed.loss_B.detach(), sizes), torch.split(computed.right_B, sizes), strict=True)
    each = zip(parts, cut, gradients, generators, strict=True)
    return [CachedPart(part.position, PairLosses(*both), own, states) for part, both, own, states in each]


def _gradients(computed: PairLosses, own: Pairs, logits: Logits, sizes: list[int]) -> list[Gradients | None]:
    """Return the gradients of the sum of losses, cut into parts; the first part has those of scale and bias."""
    wanted = [own.image_BD, own.text_BD, logits.scale, *([] if logits.bias is None else [logits.bias])]
    image_BD, text_BD, *scalars = torch.autograd.grad(computed.loss_B.sum(), wanted)
    cut = zip(torch.split(image_BD, sizes), torch.split(text_BD, sizes), strict=True)
    found: list[Gradients | None] = []
    for number, (image, text) in enumerate(cut):
        # Zeros in the others: every part must reach every weight, as ranks wait for each other's gradients.
        scale, *bias = [scalar if number == 0 else torch.zeros_like(scalar) for scalar in scalars]
        found.append(Gradients(image, text, scale, bias[0] if bias else None))
    return found


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators that a forward pass on `device` may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    """Put the generators back to `states`."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)

"""Which two dimensions of a parameter Adafactor keeps means over: of the tensor as it lies, or head by head."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

PARTS = {"qkv": 3, "kv": 2, "q": 1}
"""Linear layers of an attention whose rows are those of its heads, and of how many projections."""


class Form(NamedTuple):
    """A parameter as its second moment sees it."""

    shape: tuple[int, ...]
    """Of as many numbers in the same order as the parameter."""
    sides: tuple[int, int] | None
    """The two dimensions that are averaged over in turn, the earlier first; None = every square is kept."""

    @property
    def kept(self) -> int:
        """Return how many numbers are kept."""
        whole = math.prod(self.shape)
        return whole if self.sides is None else sum(whole // self.shape[side] for side in self.sides)


def plain_form(shape: torch.Size, least: int) -> Form:
    """Return the form of a tensor as it lies: its two longest dimensions, where both are at least `least`."""
    return Form(tuple(shape), longest_sides(shape, least))


def longest_sides(shape: torch.Size, least: int) -> tuple[int, int] | None:
    """Return the two longest dimensions of a tensor, the earlier first; None where one is shorter than `least`."""
    longest = sorted(range(len(shape)), key=lambda side: shape[side])[-2:]
    if len(longest) < 2 or shape[longest[0]] < least:
        return None
    return min(longest), max(longest)


def head_forms(module: nn.Module, least: int) -> Mapping[Tensor, Form]:
    """Return the forms of the attention matrices in `module`: each head of q, k, v and of the projection by itself.

    As big_vision's kernels of width x heads x width of a head are factored; heads narrower than `least` are not.
    """
    found: dict[Tensor, Form] = {}
    for attention in module.modules():
        heads = getattr(attention, "heads", None)
        if not isinstance(heads, int):
            continue
        for name, layer in attention.named_children():
            if not isinstance(layer, nn.Linear):
                continue
            rows, columns = layer.weight.shape
            if name in PARTS:
                wide = rows // (PARTS[name] * heads)
                found[layer.weight] = Form(
                    (rows // wide, wide, columns), (1, 2) if min(wide, columns) >= least else None
                )
            elif name == "proj":
                wide = columns // heads
                found[layer.weight] = Form((rows, heads, wide), (0, 2) if min(rows, wide) >= least else None)
    return found

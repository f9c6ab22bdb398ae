"""RandAugment on a batch of pictures, on any device: each row has operations of its own.

The arithmetic is `rand_picture`'s, and so Pillow's, in the same order of whole numbers, single and double floats.
Nothing crosses rows, so a row comes out the same however the batch is cut.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.augment.rand_augment import MOVES, Operation, affine_of
from headrace.pipeline.augment.rand_tables import TABLES

# B batch, H height, W width, C channels (3), L levels (256); n rows of a group, P pixels of all of them
CHUNK_PIXELS = 128 * 224 * 224
"""Pixels whose values are held as doubles at once: 150 MB for each of some ten arrays."""
Moved = tuple[Interpolation, tuple[int, int, int]]


def rand_batch(
    images_BHWC: Tensor,
    operations: Sequence[Sequence[Operation]],
    *,
    interpolation: Interpolation,
    fill: tuple[int, int, int],
) -> Tensor:
    """Return uint8 [B, S, S, 3] with the operations of each row done; the same tensor where there is nothing to do.

    `fill` are the levels where a move leaves nothing.
    """
    if not any(operations):
        return images_BHWC
    out = images_BHWC.clone(memory_format=torch.contiguous_format)
    at_once = max(1, CHUNK_PIXELS // max(1, out.shape[1] * out.shape[2]))
    with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
        for rows, some in _groups(operations):
            for first in range(0, len(rows), at_once):
                part = some[first : first + at_once]
                rows_n = on_device(rows[first : first + at_once], out.device)
                images_nHWC = out.index_select(0, rows_n)
                out.index_copy_(0, rows_n, _done(images_nHWC, part, (interpolation, fill)))
    return out


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor there, without waiting for what the device does."""
    host = torch.from_numpy(values)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def _groups(operations: Sequence[Sequence[Operation]]) -> Iterator[tuple[NDArray[np.int64], list[Operation]]]:
    """Give the rows that do the same kind of thing at the same place in their order, with what each does."""
    for place in range(max(map(len, operations))):
        there = [(row, done[place]) for row, done in enumerate(operations) if len(done) > place]
        for kind in dict.fromkeys(KINDS.values()):
            chosen = [(row, operation) for row, operation in there if KINDS[operation.name] == kind]
            if chosen:
                yield np.array([row for row, _ in chosen], np.int64), [operation for _, operation in chosen]


def _done(images_nHWC: Tensor, operations: Sequence[Operation], moved: Moved) -> Tensor:
    name = operations[0].name
    if name in MOVES:
        return _moved(images_nHWC, operations, moved)
    if name in TABLES:
        table_n1L = np.stack([TABLES[name](value) for name, value in operations])[:, None]
        return _by_table(images_nHWC, on_device(table_n1L, images_nHWC.device).expand(-1, 3, -1))
    factors = np.array([operation.value for operation in operations], np.float32)[:, None, None, None]
    return CHANGES[name](images_nHWC, on_device(factors, images_nHWC.device))


def _places(images_nHWC: Tensor) -> Tensor:
    """Return where each value's level stands in tables [n, 3, 256] laid out flat, int32 [n, H, W, 3]."""
    n, _, _, channels = images_nHWC.shape
    tables = torch.arange(n * channels, dtype=torch.int32, device=images_nHWC.device).reshape(n, 1, 1, channels)
    return tables * 256 + images_nHWC


def _by_table(images_nHWC: Tensor, table_nCL: Tensor) -> Tensor:
    return table_nCL.reshape(-1).index_select(0, _places(images_nHWC).reshape(-1)).reshape(images_nHWC.shape)


def _counts(images_nHWC: Tensor) -> Tensor:
    """Return how many pixels have each level, int64 [n, 3, 256]."""
    places = _places(images_nHWC).reshape(-1).long()
    counts = torch.zeros(len(images_nHWC) * 3 * 256, dtype=torch.int64, device=places.device)
    return counts.scatter_add_(0, places, torch.ones_like(places)).reshape(-1, 3, 256)


def _ends(counts_nCL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the levels, and the lowest and the highest that is there, [n, 3, 1]."""
    levels_L = torch.arange(256, device=counts_nCL.device)
    there = counts_nCL > 0
    low = torch.where(there, levels_L, 255).amin(dim=2, keepdim=True)
    high = torch.where(there, levels_L, 0).amax(dim=2, keepdim=True)
    return levels_L, low, high


def _auto_contrast(images_nHWC: Tensor, _: Tensor) -> Tensor:
    levels_L, low, high = _ends(_counts(images_nHWC))
    spread = (high - low).clamp(min=1).double()
    scale = torch.full_like(spread, 255.0) / spread  # `255.0 / spread` would multiply by the reciprocal
    stretched = torch.where(high > low, levels_L * scale - low * scale, levels_L.double())
    return _by_table(images_nHWC, stretched.trunc().clamp_(0, 255).to(torch.uint8))


def _equalize(images_nHWC: Tensor, _: Tensor) -> Tensor:
    counts = _counts(images_nHWC)
    levels_L, _low, high = _ends(counts)
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, high)) // 255
    before = counts.cumsum(dim=2) - counts
    table = torch.where(step > 0, (step // 2 + before) // step.clamp(min=1), levels_L)
    return _by_table(images_nHWC, table.clamp_(0, 255).to(torch.uint8))


def _grey(images_nHWC: Tensor) -> Tensor:
    """Return Pillow's grey values, int32 [n, H, W, 1]: weights of 16 bits."""
    red, green, blue = images_nHWC.int().chunk(3, dim=3)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    # Three kernels and no addcmul: Pillow rounds product and sum each.
    mixed = images.float().sub_(others).mul_(factors).add_(others)
    return mixed.clamp_(0, 255).to(torch.uint8)


def _color(images_nHWC: Tensor, factors_n: Tensor) -> Tensor:
    return _blended(images_nHWC, _grey(images_nHWC).float(), factors_n)


def _contrast(images_nHWC: Tensor, factors_n: Tensor) -> Tensor:
    grey = _grey(images_nHWC)
    size = grey[0].numel()
    mean = (2 * grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) + size) // (2 * size)
    return _blended(images_nHWC, mean.float(), factors_n)


def _sharpness(images_nHWC: Tensor, factors_n: Tensor) -> Tensor:
    smooth = images_nHWC.float()
    if min(images_nHWC.shape[1:3]) > 2:
        whole = images_nHWC.int()
        rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
        sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * whole[:, 1:-1, 1:-1]
        smooth[:, 1:-1, 1:-1] = ((2 * sums + 13) // 26).float()  # to the nearest; of 13 there is no half
    return _blended(images_nHWC, smooth, factors_n)


def _moved(images_nHWC: Tensor, operations: Sequence[Operation], moved: Moved) -> Tensor:
    """Take each value from where its row's operation says, by Pillow's interpolation between 2 x 2 or 4 x 4 pixels."""
    interpolation, fill = moved
    n, height, width, channels = images_nHWC.shape
    still = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    affine = np.array([affine_of(operation, height) or still for operation in operations], np.float64)
    a, b, c, d, e, f = on_device(affine, images_nHWC.device)[:, None, None, :].unbind(dim=3)
    y_H1, x_W = (torch.arange(side, dtype=torch.float64, device=images_nHWC.device) + 0.5 for side in (height, width))
    y_H1 = y_H1[:, None]
    x_nHW, y_nHW = a * x_W + b * y_H1 + c, d * x_W + e * y_H1 + f
    inside = (x_nHW >= 0) & (x_nHW < width) & (y_nHW >= 0) & (y_nHW < height)
    x_nHW, y_nHW = x_nHW - 0.5, y_nHW - 0.5
    left, top = x_nHW.floor(), y_nHW.floor()
    across, down = (x_nHW - left)[..., None], (y_nHW - top)[..., None]
    reach, between = (range(2), _linear) if interpolation == "bilinear" else (range(-1, 3), _cubic)
    flat, first = images_nHWC.reshape(-1, channels), torch.arange(n, device=images_nHWC.device)[:, None, None] * height
    columns = [(left.long() + step).clamp_(0, width - 1) for step in reach]
    lines = [((top.long() + step).clamp_(0, height - 1) + first) * width for step in reach]

    def value(line: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(0, (line + column).reshape(-1)).reshape(n, height, width, channels).double()

    mixed = between([between([value(line, column) for column in columns], across) for line in lines], down)
    levels = torch.tensor(fill, dtype=torch.uint8, device=images_nHWC.device)
    return torch.where(inside[..., None], mixed.clamp_(0, 255).to(torch.uint8), levels)


def _linear(values: Sequence[Tensor], at: Tensor) -> Tensor:
    one, two = values
    return one + (two - one) * at


def _cubic(values: Sequence[Tensor], at: Tensor) -> Tensor:
    """Pillow's cubic, of parameter -1 and not of the -0.5 that it resizes with."""
    one, two, three, four = values
    third = 2 * (one - two) + three - four
    fourth = two - one - three + four
    return two + at * ((three - one) + at * (third + at * fourth))


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
}
KINDS = dict.fromkeys(TABLES, "table") | dict.fromkeys(MOVES, "move") | {name: name for name in CHANGES}
"""What is done at once."""

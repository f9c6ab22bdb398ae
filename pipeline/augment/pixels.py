"""Colour operations on a batch of pictures, on any device: each row has parameters of its own.

Each operation is that of torchvision.transforms.v2.functional on uint8, rounded after every one as there, with the
factor as a column over the rows instead of one number. Nothing crosses rows and no library picks an algorithm by the
batch, so a row comes out the same however the batch is cut. This is the one module of the pipeline that needs torch;
what works without a tensor does not import it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.pipeline.augment.colour import Colour, steps_of

# B batch, H height, W width, C channels (3), K taps of a kernel; n rows of a group
CHUNK_PIXELS = 128 * 224 * 224
"""Pixels that are worked on at once: turning the hue holds some ten floats a pixel."""
GREY = (0.2989, 0.587, 0.114)

Group = tuple[str, int, list[int], list[float]]
"""(operation, kernel of a blur, rows, a parameter for each row): one step for every row that does the same then."""


def recolour(images_BHWC: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Return uint8 [B, S, S, 3] with the colours of each row changed; the same tensor where there is nothing to do.

    Rows whose colour is `PLAIN` stay as they are. Raises ValueError for another shape, dtype or number of colours.
    """
    if images_BHWC.dtype != torch.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        got = f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
        raise ValueError(f"recolour: images must be uint8 [B, S, S, 3], got {got}")
    if len(colours) != len(images_BHWC):
        raise ValueError(f"recolour: {len(images_BHWC)} images and {len(colours)} colours")
    if not any(steps_of(colour) for colour in colours):
        return images_BHWC
    out = images_BHWC.clone(memory_format=torch.contiguous_format)
    at_once = max(1, CHUNK_PIXELS // max(1, out.shape[1] * out.shape[2]))
    for first in range(0, len(colours), at_once):
        part = out[first : first + at_once]
        for operation, kernel, rows_n, values_n in _on_device(grouped(colours[first : first + at_once]), out.device):
            part[rows_n] = OPERATIONS[operation](part[rows_n], values_n[:, None, None, None], kernel)
    return out


def grouped(colours: Sequence[Colour]) -> list[Group]:
    """Return the steps of all rows in their order, those that are the same at the same place as one."""
    groups: dict[tuple[int, str, int], tuple[list[int], list[float]]] = {}
    for row, colour in enumerate(colours):
        for place, operation, kernel, value in steps_of(colour):
            rows, values = groups.setdefault((place, operation, kernel), ([], []))
            rows.append(row)
            values.append(value)
    return [(operation, kernel, *groups[place, operation, kernel]) for place, operation, kernel in sorted(groups)]


def _on_device(groups: Sequence[Group], device: torch.device) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Move the rows and parameters of all groups at once: a copy for each would cost more than the operations."""
    rows = torch.tensor([row for group in groups for row in group[2]], dtype=torch.int64)
    values = torch.tensor([value for group in groups for value in group[3]], dtype=torch.float64)
    if device.type == "cuda":
        rows, values = rows.pin_memory(), values.pin_memory()
    lengths = [len(group[2]) for group in groups]
    rows, values = rows.to(device, non_blocking=True), values.to(device, non_blocking=True)
    begins = itertools.accumulate(lengths, initial=0)
    for (operation, kernel, _, _), begin, length in zip(groups, begins, lengths, strict=False):
        yield operation, kernel, rows[begin : begin + length], values[begin : begin + length]


def _grey(images_nHWC: Tensor) -> Tensor:
    """Return the grey values, uint8 [n, H, W, 1]."""
    red, green, blue = images_nHWC.chunk(3, dim=3)
    grey: Tensor = red * GREY[0]
    return grey.add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).to(torch.uint8)


def _blended(images_nHWC: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Return image * factor + other * (1 - factor), cut off to whole levels as torchvision does."""
    mixed = images_nHWC * factors.float()
    # Rounded once behind product and sum, as torchvision's add with alpha: `mixed + product` is a level off in 3 % of
    # the values where a factor has one decimal.
    return torch.addcmul(mixed, others.float(), (1.0 - factors).float()).clamp_(0, 255).to(torch.uint8)


def _brightness(images_nHWC: Tensor, factors: Tensor, _: int) -> Tensor:
    return (images_nHWC * factors.float()).clamp_(0, 255).to(torch.uint8)


def _contrast(images_nHWC: Tensor, factors: Tensor, _: int) -> Tensor:
    # Whole levels are summed as integers: the mean depends on no order of additions.
    grey = _grey(images_nHWC)
    mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64).double() / grey[0].numel()
    return _blended(images_nHWC, mean.float(), factors)


def _saturation(images_nHWC: Tensor, factors: Tensor, _: int) -> Tensor:
    return _blended(images_nHWC, _grey(images_nHWC), factors)


def _hue(images_nHWC: Tensor, turns: Tensor, _: int) -> Tensor:
    """Turn the hue in HSV (Smith, "Color gamut transform pairs", 1978)."""
    images = images_nHWC / 255.0
    red, green, blue = images.chunk(3, dim=3)
    least, value = images.aminmax(dim=3, keepdim=True)
    spread = value - least
    divisor = torch.where(spread == 0, 1.0, spread)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    turned = sextant + 6.0 * turns.float()
    # Each channel is the same hat-shaped function of the hue, a third of the circle apart.
    place = (turned + turned.new_tensor((5.0, 3.0, 1.0))).remainder_(6.0)
    depth = torch.minimum(place, 4.0 - place).clamp_(0.0, 1.0)
    return (value - spread * depth).clamp_(0.0, 1.0).mul_(256.0 - 1e-3).to(torch.uint8)


def _grayscale(images_nHWC: Tensor, _: Tensor, __: int) -> Tensor:
    return _grey(images_nHWC).expand_as(images_nHWC)


def _blur(images_nHWC: Tensor, sigmas: Tensor, kernel: int) -> Tensor:
    """Convolve each row with its own Gaussian, columns then rows; the picture is reflected at its edges.

    As float32 depthwise convolutions with the rows as channels: there PyTorch has one kernel of its own, which sums
    the taps in one order whatever the batch is.
    """
    n, height, width, channels = images_nHWC.shape
    reach = kernel // 2
    taps_K = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images_nHWC.device)
    weights_nK = torch.softmax(-0.5 * (taps_K / sigmas.reshape(n, 1)) ** 2, dim=1).float()
    weights = weights_nK.repeat_interleave(channels, dim=0)[:, None, None, :]
    planes = images_nHWC.permute(0, 3, 1, 2).float().reshape(1, n * channels, height, width)
    padded = F.pad(planes, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, weights, groups=n * channels)
    both = F.conv2d(rows, weights.transpose(2, 3), groups=n * channels)
    return both.round_().clamp_(0, 255).to(torch.uint8).reshape(n, channels, height, width).permute(0, 2, 3, 1)


def _solarize(images_nHWC: Tensor, thresholds: Tensor, _: int) -> Tensor:
    return torch.where(images_nHWC >= thresholds, 255 - images_nHWC, images_nHWC)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}

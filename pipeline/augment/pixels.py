"""Colour operations on a batch of pictures, on any device: each row has parameters of its own.

Each operation is that of torchvision.transforms.v2.functional on uint8, rounded after every one as there, with the
factor as a column over the rows instead of one number. Nothing crosses rows and no library picks an algorithm by the
batch, so a row comes out the same however the batch is cut. It needs torch, as `rand_pixels`
and `erasing_pixels` do; what works without a tensor imports none of the three.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.pipeline.augment.colour import Colour
from headrace.pipeline.augment.colour_table import ColourTable, Group

# B batch, H height, W width, C channels (3), K taps of a kernel; n rows of a group
CHUNK_PIXELS = 1024 * 224 * 224
"""Pixels that are worked on at once. Both views of MoCo v3, 1,024 rows on an H200: 40 ms (16 of the host) and 1.2 GiB;
in halves 42 ms (31) and 0.8 GiB; in eighths 116 ms, all of them spent launching."""
GREY = (0.2989, 0.587, 0.114)


def recolour(images_BHWC: Tensor, colours: Sequence[Colour]) -> Tensor:
    """Return uint8 [B, S, S, 3] with the colours of each row changed; the same tensor where there is nothing to do.

    Rows whose colour is `PLAIN` stay as they are. Raises ValueError for another shape, dtype or number of colours.
    """
    if images_BHWC.dtype != torch.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        got = f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
        raise ValueError(f"recolour: images must be uint8 [B, S, S, 3], got {got}")
    if len(colours) != len(images_BHWC):
        raise ValueError(f"recolour: {len(images_BHWC)} images and {len(colours)} colours")
    table = ColourTable.of(colours)
    if not any(True for _ in table.groups()):
        return images_BHWC
    out = images_BHWC.clone(memory_format=torch.contiguous_format)
    at_once = max(1, CHUNK_PIXELS // max(1, out.shape[1] * out.shape[2]))
    # Under autocast the convolution would be done in bfloat16.
    with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
        for first in range(0, len(table), at_once):
            part = out[first : first + at_once]
            for group, rows_n, values_n2 in _on_device(list(table[first : first + at_once].groups()), out.device):
                changed = OPERATIONS[group.operation](part.index_select(0, rows_n), values_n2, group.kernel)
                part.index_copy_(0, rows_n, changed)
    return out


def _on_device(groups: Sequence[Group], device: torch.device) -> Iterator[tuple[Group, Tensor, Tensor]]:
    """Move the rows and parameters of all groups at once: a copy for each would cost more than the operations.

    The parameters come as columns `value` and `1 - value`, float32 [n, 1, 1, 2], rounded from float64 as torchvision's
    are.
    """
    if not groups:
        return
    values = np.concatenate([group.values for group in groups])
    both = torch.from_numpy(np.stack([values, 1 - values], axis=1).astype(np.float32))
    rows = torch.from_numpy(np.concatenate([group.rows for group in groups]))
    if device.type == "cuda":
        rows, both = rows.pin_memory(), both.pin_memory()
    rows, both = rows.to(device, non_blocking=True), both.to(device, non_blocking=True)[:, None, None, :]
    begin = 0
    for group in groups:
        end = begin + len(group.rows)
        yield group, rows[begin:end], both[begin:end]
        begin = end


def _grey(images_nHWC: Tensor) -> Tensor:
    """Return the grey values, uint8 [n, H, W, 1]."""
    red, green, blue = images_nHWC.chunk(3, dim=3)
    grey: Tensor = red * GREY[0]
    return grey.add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).to(torch.uint8)


def _blended(images_nHWC: Tensor, others: Tensor, factors_n2: Tensor) -> Tensor:
    """Return image * factor + other * (1 - factor), cut off to whole levels as torchvision does."""
    mixed = images_nHWC * factors_n2[..., :1]
    # Rounded once behind product and sum, as torchvision's add with alpha: `mixed + product` is a level off in 3 % of
    # the values where a factor has one decimal.
    return torch.addcmul(mixed, others.float(), factors_n2[..., 1:]).clamp_(0, 255).to(torch.uint8)


def _brightness(images_nHWC: Tensor, factors_n2: Tensor, _: int) -> Tensor:
    return (images_nHWC * factors_n2[..., :1]).clamp_(0, 255).to(torch.uint8)


def _contrast(images_nHWC: Tensor, factors_n2: Tensor, _: int) -> Tensor:
    # Whole levels are summed as integers: the mean depends on no order of additions.
    grey = _grey(images_nHWC)
    mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64).double() / grey[0].numel()
    return _blended(images_nHWC, mean.float(), factors_n2)


def _saturation(images_nHWC: Tensor, factors_n2: Tensor, _: int) -> Tensor:
    return _blended(images_nHWC, _grey(images_nHWC), factors_n2)


def _hue(images_nHWC: Tensor, turns_n2: Tensor, _: int) -> Tensor:
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
    turned = sextant + 6.0 * turns_n2[..., :1]
    # Each channel is the same hat-shaped function of the hue, a third of the circle apart.
    place = (turned + torch.arange(5, 0, -2, device=turned.device)).remainder_(6.0)
    depth = torch.minimum(place, 4.0 - place).clamp_(0.0, 1.0)
    return (value - spread * depth).clamp_(0.0, 1.0).mul_(256.0 - 1e-3).to(torch.uint8)


def _grayscale(images_nHWC: Tensor, _: Tensor, __: int) -> Tensor:
    return _grey(images_nHWC).expand_as(images_nHWC)


def _blur(images_nHWC: Tensor, sigmas_n2: Tensor, kernel: int) -> Tensor:
    """Convolve each row with its own Gaussian, columns then rows; the picture is reflected at its edges.

    As float32 depthwise convolutions with the rows as channels: there PyTorch has one kernel of its own, which sums
    the taps in one order whatever the batch is.
    """
    n, height, width, channels = images_nHWC.shape
    reach = kernel // 2
    taps_K = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images_nHWC.device)
    weights_nK = torch.softmax(-0.5 * (taps_K / sigmas_n2[:, 0, :, 0]) ** 2, dim=1).float()
    weights = weights_nK[:, None].expand(n, channels, kernel).reshape(n * channels, 1, 1, kernel)
    planes = images_nHWC.permute(0, 3, 1, 2).float().reshape(1, n * channels, height, width)
    padded = F.pad(planes, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, weights, groups=n * channels)
    both = F.conv2d(rows, weights.transpose(2, 3), groups=n * channels)
    return both.round_().clamp_(0, 255).to(torch.uint8).reshape(n, channels, height, width).permute(0, 2, 3, 1)


def _solarize(images_nHWC: Tensor, thresholds_n2: Tensor, _: int) -> Tensor:
    return torch.where(images_nHWC >= thresholds_n2[..., :1], 255 - images_nHWC, images_nHWC)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}

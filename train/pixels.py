"""From the stream's uint8 images to normalised floats, on the device.

The same arithmetic in training, validation and probes. Batches arrive channels last and leave channels first.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CENTRED = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Mean and deviation with which levels become -1 to 1, as big_vision has them."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Normalise(nn.Module):
    """Moves images to the module's device and normalises them there."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.register_buffer("mean_C", torch.tensor(mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(std), persistent=False)

    def forward(self, images_BHWC: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] from uint8 [B, H, W, 3], an array or a tensor of any device."""
        images = on_device(images_BHWC, self.mean_C.device).float() / 255.0
        return ((images - self.mean_C) / self.std_C).permute(0, 3, 1, 2).contiguous()


def on_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`, without waiting for what the device does; a tensor that is there stays itself."""
    host = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda" and not host.is_cuda and not host.is_pinned():
        host = host.pin_memory()  # a copy out of other memory would first wait for the work before it
    return host.to(device, non_blocking=True)

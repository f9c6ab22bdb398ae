"""From the stream's uint8 images to normalised floats, on the device.

The same arithmetic in training, validation and probes. Batches arrive channels last and leave channels first.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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
        images = images_BHWC if isinstance(images_BHWC, Tensor) else torch.from_numpy(np.ascontiguousarray(images_BHWC))
        if self.mean_C.is_cuda and not images.is_cuda and not images.is_pinned():
            images = images.pin_memory()
        floats = images.to(self.mean_C.device, non_blocking=True).float() / 255.0
        return ((floats - self.mean_C) / self.std_C).permute(0, 3, 1, 2).contiguous()

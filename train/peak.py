"""What a device can do at most: dense bf16, without sparsity, from the makers' data sheets."""

import re

import torch

PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "A100": 312e12,
    "B200": 2250e12,
}
"""By a word of the name that CUDA gives the device; the first that fits counts."""


def peak_flops(device: torch.device) -> float | None:
    """Return the operations a second that `device` can do in bf16; None where no table says it, as of a CPU."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """Return the peak of the device that CUDA calls `name`, None of one that is not in the table."""
    # GB200 is another chip than B200, so a whole word must fit.
    return next((peak for word, peak in PEAK_FLOPS.items() if re.search(rf"\b{word}\b", name)), None)

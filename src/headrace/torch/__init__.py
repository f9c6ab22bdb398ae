"""Batches as tensors, for the trainer and for training scripts of others. `import torch` in here is PyTorch itself."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    raise ModuleNotFoundError("headrace.torch needs PyTorch; pip install 'headrace[train]'", name="torch")

from headrace.torch.device_batches import DeviceBatches
from headrace.torch.stream_loader import StreamLoader

__all__ = ["DeviceBatches", "StreamLoader"]

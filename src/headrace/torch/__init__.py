"""Batches as tensors, for the trainer and for training scripts of others. `import torch` in here is PyTorch itself."""

from headrace.torch.device_batches import DeviceBatches
from headrace.torch.stream_loader import StreamLoader

__all__ = ["DeviceBatches", "StreamLoader"]

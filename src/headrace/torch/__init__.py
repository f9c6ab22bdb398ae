"""Batches as tensors, for the trainer and for training scripts of others. `import torch` in here is PyTorch itself."""

from headrace.torch.device_batches import DeviceBatches

__all__ = ["DeviceBatches"]

"""Tar shards, their index, manifest and images: the ground floor. Imports no torch.

The names below are what other programs use. Each is imported when it is first asked for, so that importing a small
module of this floor stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.shards.dataset import Dataset, open_dataset
    from headrace.shards.errors import ShardError
    from headrace.shards.images.decode import decode_rgb
    from headrace.shards.payloads import read_sample
    from headrace.shards.write import Sample, write_shard

__all__ = ["Dataset", "Sample", "ShardError", "decode_rgb", "open_dataset", "read_sample", "write_shard"]

_MODULES = {
    "Dataset": "dataset",
    "Sample": "write",
    "ShardError": "errors",
    "decode_rgb": "images.decode",
    "open_dataset": "dataset",
    "read_sample": "payloads",
    "write_shard": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

"""Tensors on their way into a safetensors file.

`host_tensors` is called on all ranks: a tensor that lies in parts on several of them is whole only after all took part.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from headrace.train.parallel.layout import whole


def host_tensors(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return copies in host memory that share no storage, as safetensors wants them; nothing where not `keep`."""
    copies = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            copies[name] = full.detach().to("cpu", copy=True).contiguous()
    return copies


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError naming it, also where safetensors has an error of its own."""
    try:
        save_file(dict(tensors), str(path), metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror or error}") from error


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

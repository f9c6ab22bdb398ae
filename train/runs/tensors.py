"""Tensors on their way into a safetensors file.

`host_tensors` is called on all ranks: a tensor that lies in parts on several of them is whole only after all took part.
"""

import os
import re
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
    except (SafetensorError, OSError) as error:
        # The library has its own error, and the system's number only in its text.
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        why = os.strerror(code) if code else str(error)
        raise numbered(OSError(f"{path}: cannot be written: {why}"), code) from error


def numbered(error: OSError, code: int | None) -> OSError:
    """Return an error with a text of its own and the number of the system's error, which says if a disk is full."""
    error.errno = code
    return error


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

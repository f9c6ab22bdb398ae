"""A codebook of patches: the file, and which code a patch is.

`headrace codebook` fits one. It is a safetensors file with one tensor, `codebook`: float32 [C, P], a row a code, in the
units and the order of `patches` (pixels normalised as ImageNet's, channel fastest).
"""

# C codes, N patches, P values of a patch

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor

TENSOR = "codebook"
MAX_CODES = 1 << 20
MAX_BYTES = 4 << 30
# Distances that are held at once, 64 MB.
MAX_DISTANCES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookConfig:
    """Which codebook `targets: tokens` has. `headrace codebook` prints these keys."""

    path: str
    """The file. It may lie elsewhere when the run goes on."""
    size: int
    """Codes in it."""
    sha256: str
    """Of the file, so that the run is what it says."""

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_CODES:
            raise ValueError(f"size must be 2..{MAX_CODES}, got {self.size}")
        if "://" in self.path or not self.path:
            raise ValueError(f"path must be a local file, got {self.path!r}")


def read_codebook(config: CodebookConfig, num_values: int) -> Tensor:
    """Return the codebook [C, P] of patches with `num_values` values. Raises ValueError if it is another one."""
    path = Path(config.path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"codebook {path}: over {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"codebook {path}: cannot be read: {error.strerror}; headrace codebook makes one") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != config.sha256.lower():
        raise ValueError(
            f"codebook {path}: its sha256 is {digest}, and objective.codebook.sha256 says {config.sha256[:80]!r}; use "
            "the file that the run was made with, or in a new run this sha256"
        )
    try:
        codebook = load(data).get(TENSOR)
    except SafetensorError as error:
        raise ValueError(f"codebook {path}: no safetensors file: {error}") from error
    if codebook is None or codebook.dtype != np.float32 or not np.isfinite(codebook).all():
        raise ValueError(f"codebook {path}: it has no tensor {TENSOR!r} of finite float32")
    if codebook.shape != (config.size, num_values):
        raise ValueError(
            f"codebook {path}: it is {list(codebook.shape)}, and this run's patches with objective.codebook.size need "
            f"{[config.size, num_values]}: codes, and patch x patch x 3 values"
        )
    return torch.from_numpy(codebook)


def nearest_codes(patches_NP: Tensor, codebook_CP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest code of each patch, int64 [N] (of two as near, the lower), and its squared distance [N].

    In the format of the codebook, also under autocast.
    """
    values_NP = patches_NP.to(codebook_CP.dtype)
    with torch.autocast(patches_NP.device.type, enabled=False):
        length_C = codebook_CP.square().sum(dim=1)
        code_N = torch.zeros(len(values_NP), dtype=torch.int64, device=values_NP.device)
        distance_N = values_NP.square().sum(dim=1)
        rows = max(1, MAX_DISTANCES // len(codebook_CP))
        for first in range(0, len(values_NP), rows):
            part = slice(first, first + rows)
            least = torch.addmm(length_C, values_NP[part], codebook_CP.T, alpha=-2).min(dim=1)
            code_N[part] = least.indices
            distance_N[part] += least.values
    return code_N, distance_N.clamp(min=0)

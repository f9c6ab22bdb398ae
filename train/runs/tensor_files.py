"""Files of tensors, whoever wrote them: read without running anything, and their names turned into ours.

Names are mapped for files of l3m, of timm (a trunk of AIM's form), of AIM's releases, of MoCo v3 and of Microsoft's
SwinV2. open_clip's are ours, and so are timm's and torchvision's of a contrastive or masked-image objective's trunk.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from headrace.train.models.trunks.standard_vit import POSITIONS_TOLERANCE
from headrace.train.models.vit import sincos_positions

CONFIG_KEY = "headrace_config"
"""Where a file that we wrote holds the config of its run, as JSON."""
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
"""Ends of names; the last is what MoCo's code writes, and is no archive of tar."""
RELEASED_PATCHES = "preprocessor.patchifier.proj.weight"
TIMM_PATCHES, TIMM_POSITIONS = "patch_embed.proj.weight", "pos_embed"

# timm's names of a trunk -> ours.
FROM_TIMM = (
    (r"patch_embed\.", "preprocessor.patchifier."),
    (r"blocks\.(\d+)\.norm([12])\.", r"trunk.blocks.\1.norm_\2."),
    (r"blocks\.", "trunk.blocks."),
    (r"norm\.", "trunk.post_trunk_norm."),
)

# MoCo v3's names -> those of objective moco. Its heads lie where the classifier of a timm or torchvision model was.
FROM_MOCO = (
    (r"base_encoder\.(?:head|fc)\.(\d)", r"projector.\1"),
    (r"base_encoder\.", ""),
    (r"momentum_encoder\.(?:head|fc)\.(\d)", r"momentum.projector.\1"),
    (r"momentum_encoder\.", "momentum.encoder."),
)

# Constants that files of Microsoft's SwinV2 hold, and that are computed here.
SWIN_CONSTANTS = (".relative_coords_table", ".relative_position_index", ".attn_mask")
SWIN_MERGE = "layers.0.downsample.reduction.weight"
SWIN_PLACES = "layers.0.blocks.0.attn.cpb_mlp.0.weight"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFile:
    """What a file holds."""

    config: str | None
    """Config of the run as JSON, where headrace wrote the file."""
    tensors: dict[str, Tensor]
    """On the CPU."""


def read_tensor_file(path: Path) -> TensorFile:
    """Read a safetensors file, or a pickle of tensors alone. Raises ValueError naming the file."""
    return _read_pickle(path) if path.name.endswith(PICKLES) else _read_safetensors(path)


def is_released(tensors: Tensors) -> bool:
    """True if the names are those of a released AIM."""
    return {RELEASED_PATCHES, "trunk.blocks.0.attn.qkv.weight"} <= tensors.keys() and _is_patches(
        tensors[RELEASED_PATCHES]
    )


def is_timm(tensors: Tensors) -> bool:
    """True if the names are those of a vision transformer of timm's that has all parts of AIM's trunk, and no other."""
    needed = {TIMM_PATCHES, TIMM_POSITIONS, "patch_embed.norm.weight", "blocks.0.attn.qkv.weight", "norm.weight"}
    if not needed <= tensors.keys() or not _is_patches(tensors[TIMM_PATCHES]):
        return False
    others = {"cls_token", "reg_token", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.bias", "blocks.0.ls1.gamma"}
    return not others & tensors.keys()


def in_our_names(tensors: Tensors, path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return whose names a file has, and its tensors under ours. Raises ValueError for a trunk that is not AIM's."""
    tensors = {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): tensor for name, tensor in tensors.items()}
    if any(name.startswith("preprocessor.blocks.") for name in tensors):
        return "l3m", _from_l3m(tensors, path)
    if is_moco(tensors):
        return "MoCo v3", from_moco(tensors)
    if is_microsoft_swin(tensors):
        return "Microsoft's SwinV2", from_microsoft_swin(tensors)
    if is_timm(tensors):
        return "timm", _from_timm(tensors, path)
    if is_released(tensors):
        # Masks are constants of its attention; a classifier under `head.` has no place here, and is told as left out.
        return "released AIM", {name: tensor for name, tensor in tensors.items() if not name.endswith(".attn_mask")}
    if "logit_scale" in tensors and any(name.startswith("visual.") for name in tensors):
        return "open_clip", tensors
    return "tensors", tensors


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(str(path), "pt") as file:
            config = (file.metadata() or {}).get(CONFIG_KEY)
        return TensorFile(config=config, tensors=load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> TensorFile:
    """Read tensors without running what a pickle may say: torch's `weights_only` builds nothing else."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of old protocols, which are read all the same
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # Of broken files torch raises nearly every kind: IndexError, TypeError, struct.error, AssertionError.
        # It speaks of switching the protection off first; the reason is said behind this.
        reason = re.split(r"WeightsUnpickler error:\s*|trusted source\.\s*", str(error))[-1]
        why = reason.split("\n")[0][:200]
        raise ValueError(f"{path}: not a file of tensors alone, and nothing else in it is run: {why}") from error
    config = data.get(CONFIG_KEY) if isinstance(data, dict) else None
    for key in ("model", "state_dict"):
        data = data[key] if isinstance(data, dict) and isinstance(data.get(key), dict) else data
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(data).__name__}")
    tensors = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
    return TensorFile(config=config if isinstance(config, str) else None, tensors=tensors)


def _is_patches(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[2] == tensor.shape[3]


def _from_l3m(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """Map l3m's names: q, k and v are one matrix here, positions are computed. Names: l3m's config of AIM v1 600M."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^preprocessor\.blocks\.0\.", "preprocessor.", name)
        part = re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", name)
        if part is None:
            if not name.endswith("pos_embed"):
                found[name] = tensor
            continue
        stem, letter, kind = part.groups()
        if letter == "q":
            three = [tensors.get(name.replace(".q_proj.", f".{other}_proj.")) for other in "qkv"]
            there = [one for one in three if one is not None and one.shape == tensor.shape]
            if len(there) < len(three) or not tensor.ndim:
                raise ValueError(f"{path}: {stem}: q, k and v are not all there, of one shape")
            found[f"{stem}qkv.{kind}"] = torch.cat(there)
    return found


def _from_timm(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """Map timm's names; its positions are a parameter, and must hold what is computed here."""
    positions = tensors[TIMM_POSITIONS]
    length, width = positions.shape[-2:] if positions.ndim > 1 else (0, 0)
    side = isqrt(length)
    if side * side != length or width % 4 or positions.numel() != length * width or not length:
        raise ValueError(f"{path}: positions of shape {list(positions.shape)} are of no square of patches")
    away = float((positions.float().reshape(length, width) - sincos_positions(side, side, width)).abs().max())
    if not away <= POSITIONS_TOLERANCE:
        raise ValueError(f"{path}: its positions are not AIM's fixed sines and cosines, but up to {away:.3g} away")
    found = {}
    for name, tensor in tensors.items():
        if name == TIMM_POSITIONS:
            continue
        for pattern, ours in FROM_TIMM:
            name, replaced = re.subn(f"^{pattern}", ours, name)
            if replaced:
                break
        found[name] = tensor
    return found


def is_moco(tensors: Tensors) -> bool:
    """True if the names are those of a checkpoint of MoCo v3's code."""
    return any(name.startswith("base_encoder.") for name in tensors)


def from_moco(tensors: Tensors) -> dict[str, Tensor]:
    """Map the names of MoCo v3's checkpoints."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, ours in FROM_MOCO:
            name, replaced = re.subn(f"^{pattern}", ours, name)
            if replaced:
                break
        found[name] = tensor
    return found


def is_microsoft_swin(tensors: Tensors) -> bool:
    """True if the names are those of a SwinV2 of Microsoft's, alone or inside their SimMIM."""
    return any({prefix + SWIN_MERGE, prefix + SWIN_PLACES} <= tensors.keys() for prefix in ("", "encoder."))


def from_microsoft_swin(tensors: Tensors) -> dict[str, Tensor]:
    """Map Microsoft's names: there a grid is halved at the end of a stage, here, as in timm, at the start of the next.

    The layer that predicts pixels has the same names. The token that stands for hidden patches is a vector here.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(SWIN_CONSTANTS):
            continue
        name = name.removeprefix("encoder.")
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
        found[name] = tensor.flatten() if name == "mask_token" else tensor
    return found

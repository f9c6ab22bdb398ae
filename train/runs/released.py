"""Files in the form of AIM's released models: reading their trunk, and writing a probed trunk as one of them.

The trunk has the same names there and here. What is under `head.` differs: there an attentive classifier (`cls_token`,
`k`, `v`, `linear`, `bn`), here the pixel head of pretraining. So neither file is a strict match for the other as a
whole; a trunk with a probe is one for theirs. A folder holds `model.safetensors` and `config.json`, which has what
names and shapes do not say.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from headrace.atomic import atomic_file, write_atomic
from headrace.train.models.encoder import Encoder
from headrace.train.models.heads import AttentiveProbes
from headrace.train.models.vit import VitConfig
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.patch_config import AIM_SHAPES
from headrace.train.runs.tensor_files import RELEASED_PATCHES, is_released
from headrace.train.runs.tensors import host_tensors, save_tensors

TRUNK = ("preprocessor.", "trunk.")
# What the released models have: heads of this width, images of this side.
HEAD_WIDTH = 128
IMAGE_SIZE = 224
MAX_CONFIG_BYTES = 1 << 16


def trunk_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the trunk, without any head."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(TRUNK)}


def released_config(path: Path, tensors: Mapping[str, Tensor]) -> tuple[AimConfig, int]:
    """Return the trunk's config and image size, from shapes and from `config.json` beside the file.

    Raises ValueError naming what neither of them says.
    """
    told = _read_config(path.parent / "config.json")
    width, _, patch, _ = tensors[RELEASED_PATCHES].shape
    blocks = {name.split(".")[2] for name in tensors if name.startswith("trunk.blocks.")}
    rows = [name for name, row in AIM_SHAPES.items() if (row.width, row.depth) == (width, len(blocks))]
    heads = told.get("num_heads")
    if heads is None:
        if width % HEAD_WIDTH:
            raise ValueError(f"{path}: how many attention heads has it? {path.parent / 'config.json'} has no num_heads")
        heads = width // HEAD_WIDTH
    config = AimConfig(
        kind="aim", model=rows[0] if rows else "tiny", width=width, depth=len(blocks), heads=heads, patch=patch
    )
    return config, told.get("img_size", IMAGE_SIZE)


def write_released(
    folder: Path, encoder: Encoder, probes: AttentiveProbes, *, number: int, blocks: tuple[int, ...]
) -> None:
    """Write the trunk with probe `number` as its classifier, for `AIMForImageClassification.from_pretrained(folder)`.

    Raises ValueError for an encoder of other names.
    """
    check_released_names(encoder)
    trunk = encoder.state_dict()
    query, key, value, classifier = probes.parameters_of(number)
    head = {"cls_token": query[None, None], "k.weight": key, "v.weight": value, "linear.weight": classifier}
    head |= {f"bn.{name}": tensor for name, tensor in probes.norm.state_dict().items()}
    tensors = host_tensors(trunk | {f"head.{name}": tensor for name, tensor in head.items()})
    assert isinstance(encoder.shape, VitConfig), "an encoder of the released names is one of ours"
    config = released_facts(encoder.shape) | {"num_classes": len(classifier), "probe_layers": list(blocks)}
    with atomic_file(str(folder / "model.safetensors")) as path:
        save_tensors(path, tensors, {"format": "pt"})
    write_atomic(str(folder / "config.json"), (json.dumps(config, indent=1) + "\n").encode())


def released_facts(shape: VitConfig) -> dict[str, Any]:
    """Return what `config.json` says of a trunk."""
    return {
        "img_size": shape.image_size,
        "patch_size": shape.patch,
        "embed_dim": shape.width,
        "num_blocks": shape.depth,
        "num_heads": shape.heads,
    }


def check_released_names(encoder: Encoder) -> None:
    """Raise ValueError if the encoder is no trunk in the form of the released models."""
    names = encoder.state_dict()
    if not is_released(names) or trunk_only(names).keys() != names.keys():
        raise ValueError(f"an encoder {type(encoder).__name__} has other parts than AIM's released models")


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config beside a released file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is over {MAX_CONFIG_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    # Newer files of the hub hold the model's config one level down, and so do those of timm.
    inner = data.get("config", data.get("model_args", data)) if isinstance(data, dict) else None
    if not isinstance(inner, dict):
        raise ValueError(f"{path}: not the config of a released model")
    for name in ("num_heads", "img_size"):
        if name in inner and (type(inner[name]) is not int or inner[name] < 1):
            raise ValueError(f"{path}: {name} must be a whole number above 0, got {inner[name]!r}")
    return inner

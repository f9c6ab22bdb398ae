"""Trunks of contrastive, masked-image and (with `vit`) supervised runs in the forms of timm and torchvision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headrace.train.models.encoder import Encoder
from headrace.train.models.trunks.resnet import STEM_WIDTH, Resnet
from headrace.train.models.trunks.standard_vit import StandardVit
from headrace.train.models.trunks.swin_v2 import SwinV2, SwinV2Config
from headrace.train.objectives.objective import Objective, names_in_trunk

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TimmEntry:
    """What timm makes a model of."""

    architecture: str
    built: Mapping[str, Any]
    """Arguments of the architecture."""
    first_layer: str = "patch_embed.proj"
    """The layer that sees pixels."""
    classifier: str = "head"
    """Name of the classifier."""
    is_fixed: bool = True
    """It takes images of one side alone."""


def reason_against(form: str, trunk: Encoder | None) -> str:
    """Return what a trunk has that the form has not; empty = it can be written so."""
    if form == "ml-aim" or not isinstance(trunk, StandardVit | Resnet | SwinV2):
        return f"no trunk of {'torchvision' if form == 'torchvision' else 'AIM'}'s form, which {form} needs"
    if form == "torchvision" and not isinstance(trunk, Resnet):
        return "a transformer, and torchvision's have other names; take timm"
    if isinstance(trunk, SwinV2) and trunk.config.main_norms:
        return "a SwinV2 with norms of the sum (`main_norms`), which timm has not; take torch"
    if isinstance(trunk, Resnet) and trunk.config.stem_width != STEM_WIDTH:
        return f"a ResNet of width {trunk.config.stem_width}, and those of {form} have {STEM_WIDTH}; take torch"
    if form == "timm" and isinstance(trunk, Resnet) and trunk.config.small_images:
        return "a ResNet with the stem for small images, which timm has not; take torch or torchvision"
    return ""


def plain_trunk(sketch: Objective, tensors: Tensors) -> tuple[dict[str, Tensor], Encoder]:
    """Return the tensors of the trunk alone under the names of timm and torchvision, and the trunk.

    `sketch` is the objective without memory, whose trunk has the weights afterwards.
    """
    trunk = sketch.trunk
    assert trunk is not None, "check_export has looked"
    inside = names_in_trunk(sketch)
    state = {inside[name]: tensor for name, tensor in tensors.items() if name in inside}
    trunk.load_state_dict(state, strict=True, assign=True)
    return {name: tensor.detach().contiguous() for name, tensor in trunk.plain_state().items()}, trunk


def timm_entry(trunk: Encoder) -> TimmEntry:
    """Return what timm makes this trunk of."""
    if isinstance(trunk, Resnet):
        name = "resnet50" if trunk.config.bottleneck else "resnet18"
        return TimmEntry(name, {}, first_layer="conv1", classifier="fc", is_fixed=False)
    if isinstance(trunk, SwinV2):
        return _swin_entry(trunk.config)
    assert isinstance(trunk, StandardVit), "check_export has looked"
    shape, has_token = trunk.config, trunk.config.pool == "class_token"
    built: dict[str, Any] = {
        "img_size": shape.image_size,
        "patch_size": shape.patch,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "class_token": has_token,
        "global_pool": {"class_token": "token", "mean": "avg", "map": "map"}[shape.pool],
        "fc_norm": False,
        "final_norm": shape.last_norm,
        "pos_embed": "none" if shape.positions == "none" else "learn",
    }
    if shape.mlp_width is not None:
        built["mlp_ratio"] = _ratio(shape.mlp_width, shape.width)
    if shape.gelu == "tanh":
        built["act_layer"] = "gelu_tanh"
    if not shape.bias:
        built |= {"qkv_bias": False, "proj_bias": False}
    # Its own sizes do not matter, all are replaced.
    return TimmEntry("vit_base_patch16_224", built)


def _ratio(inside: int, width: int) -> float:
    """Return what a width is multiplied by, and cut to a whole number, to give the channels of its MLPs."""
    ratio = inside / width
    return ratio if int(width * ratio) == inside else math.nextafter(ratio, math.inf)


def _swin_entry(shape: SwinV2Config) -> TimmEntry:
    built = {
        "img_size": shape.image_size,
        "patch_size": shape.patch,
        "embed_dim": shape.embed_width,
        "depths": list(shape.depths),
        "num_heads": [shape.first_heads << stage for stage in range(len(shape.depths))],
        "window_size": shape.window_side,
        "pretrained_window_sizes": list(shape.measures),
    }
    return TimmEntry("swinv2_base_window12_192", built, classifier="head.fc")

"""`headrace export`: the weights of a run in the form that another program loads.

`init_from` reads every form back; `headrace probe` and `headrace export` all but open_clip's.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.atomic import atomic_file, write_atomic
from headrace.config import canonical_json
from headrace.text import known_words
from headrace.train.config import published
from headrace.train.models.encoder import EncoderShape
from headrace.train.models.vit import NORM_EPS, VitConfig, sincos_positions
from headrace.train.objectives.objective import Objective
from headrace.train.runs.backbone_formats import TimmEntry, plain_trunk, reason_against, timm_entry
from headrace.train.runs.released import released_facts, trunk_only
from headrace.train.runs.tensor_files import CONFIG_KEY, TIMM_POSITIONS, is_released
from headrace.train.runs.tensors import num_bytes, save_tensors
from headrace.train.runs.weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PUBLISHED_CROP = 0.875
EMPTY_CLASSES = 1000
"""Of a classifier that holds zeros, as many as AIM's releases have."""

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    folder: str
    format: str
    tensors: int
    bytes: int
    """Of the tensors."""
    load: str
    """How to load it, a line of Python."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One form of weights."""

    says: str
    """What it is, a line."""
    load: str
    """How to load it, with FOLDER for its place."""
    write: Callable[[Path, Weights, dict[str, Tensor]], Tensors]
    """Write into a folder; return what was written. Raises ValueError where the model has no such form."""


def export_weights(weights: Weights, out: Path, *, form: str, dtype: str = "float32") -> Exported:
    """Write `weights` into the folder `out`, as `form` (a key of FORMATS) says.

    Floating-point tensors become `dtype` (a key of DTYPES). Raises ValueError for an unknown form or dtype, for a model
    that has no such form, and for weights that are not finite in `dtype`; OSError where the folder cannot be written.
    """
    check_export(weights, form=form, dtype=dtype)
    if form in ("ml-aim", "timm") and is_released(weights.tensors) and _shape(weights).norm_eps != NORM_EPS:
        eps = _shape(weights).norm_eps
        log.warning(
            "its norms have epsilon %g, %s computes with %g: outputs differ (1e-5: by 2e-5)", eps, form, NORM_EPS
        )
    tensors = {name: _cast(f"{weights.path}: {name}", tensor, dtype) for name, tensor in weights.tensors.items()}
    written = dict(FORMATS[form].write(out, weights, tensors))
    log.info("exported %s: %d tensors, %d bytes", out, len(written), num_bytes(written))
    load = FORMATS[form].load.replace("FOLDER", str(out))
    return Exported(folder=str(out), format=form, tensors=len(written), bytes=num_bytes(written), load=load)


def check_export(weights: Weights, *, form: str, dtype: str) -> None:
    """Raise ValueError where `export_weights` would refuse before it writes."""
    if form not in FORMATS:
        raise ValueError(f"format: unknown {form!r}; {known_words(form, FORMATS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: unknown {dtype!r}; known: {', '.join(DTYPES)}")
    kind = weights.model.objective.kind
    of_others = form == "torchvision" or (form in ("ml-aim", "timm") and not is_released(weights.tensors))
    if of_others:
        reason = reason_against(form, weights.model.sketch().trunk)
        if reason:
            raise ValueError(f"{weights.path}: an objective {kind} has {reason}")
    if form == "open_clip" and not _is_clip(weights):
        raise ValueError(f"{weights.path}: an objective {kind} has no towers of open_clip's, only clip has")


def _cast(where: str, tensor: Tensor, dtype: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(DTYPES[dtype])
    if not bool(torch.isfinite(cast).all()):
        raise ValueError(f"{where} is not finite in {dtype}; export another dtype, or an earlier checkpoint")
    return cast


def _write_safetensors(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    if weights.trunk_only:
        return _write_with_config(out, tensors, _facts(weights), {"format": "pt"})
    with atomic_file(str(out / "model.safetensors")) as path:
        save_tensors(path, tensors, {CONFIG_KEY: canonical_json(_published(weights))})
    return tensors


def _write_torch(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    data: dict[str, Any] = {"state_dict": tensors}
    if not weights.trunk_only:
        data[CONFIG_KEY] = canonical_json(_published(weights))
    with atomic_file(str(out / "model.pth")) as path:
        torch.save(data, path)
    if weights.trunk_only:
        _write_json(out / "config.json", _facts(weights))
    return tensors


def _write_ml_aim(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    trunk = trunk_only(tensors)
    width = _shape(weights).width
    empty = {
        "cls_token": torch.zeros(1, 1, width),
        "k.weight": torch.zeros(width, width),
        "v.weight": torch.zeros(width, width),
        "linear.weight": torch.zeros(EMPTY_CLASSES, width),
        "bn.running_mean": torch.zeros(width),
        "bn.running_var": torch.ones(width),
        "bn.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }
    dtype = next(iter(trunk.values())).dtype
    head = {f"head.{name}": tensor.to(dtype) if tensor.ndim else tensor for name, tensor in empty.items()}
    facts = _facts(weights) | {"num_classes": EMPTY_CLASSES}
    return _write_with_config(out, trunk | head, facts, {"format": "pt"})


def _write_open_clip(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    sketch = _sketch(weights)
    sketch.reads = weights.config.get("mixture", {})
    sketch.export_beside(out, tensors)
    return tensors


def _write_timm(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    if not is_released(tensors):
        return _write_timm_backbone(out, weights, tensors)
    shape = _shape(weights)
    side = shape.image_size // shape.patch
    named = {_timm_name(name): tensor for name, tensor in trunk_only(tensors).items()}
    named[TIMM_POSITIONS] = sincos_positions(side, side, shape.width)[None].to(next(iter(named.values())).dtype)
    head = _said_timm_head(weights, tensors)
    named |= head or {}
    classes = 0 if head is None else len(head["head.bias"])
    return _write_with_config(out, named, _timm_config(weights, classes), {"format": "pt"})


def _write_timm_backbone(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    named, trunk = plain_trunk(_sketch(weights), tensors)
    entry, head = timm_entry(trunk), _said_timm_head(weights, tensors) or {}
    head = {name.replace("head", entry.classifier): tensor for name, tensor in head.items()}
    classes = len(head.get(f"{entry.classifier}.bias", ()))
    return _write_with_config(out, named | head, _timm_facts(weights, entry, trunk.shape, classes), {"format": "pt"})


def _write_torchvision(out: Path, weights: Weights, tensors: dict[str, Tensor]) -> Tensors:
    named, _ = plain_trunk(_sketch(weights), tensors)
    with atomic_file(str(out / "model.pth")) as path:
        torch.save(named, path)
    return named


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        says="one file under our names with the run's config, as a run leaves it",
        load='safetensors.torch.load_file("FOLDER/model.safetensors")',
        write=_write_safetensors,
    ),
    "torch": Format(
        says="the same as a file of torch.save",
        load='torch.load("FOLDER/model.pth", weights_only=True)["state_dict"]',
        write=_write_torch,
    ),
    "ml-aim": Format(
        says="AIM's released form: trunk, and an empty classifier (`headrace probe --export` writes a fitted one)",
        load='AIMForImageClassification.from_pretrained("FOLDER")',
        write=_write_ml_aim,
    ),
    "timm": Format(
        says="a transformer or ResNet of timm's, with the head of a supervised run or a `mean` one of finetune",
        load='timm.create_model("local-dir:FOLDER", pretrained=True)',
        write=_write_timm,
    ),
    "torchvision": Format(
        says="a ResNet of torchvision's without its classifier: `fc` is an Identity there",
        load='resnet.load_state_dict(torch.load("FOLDER/model.pth", weights_only=True))',
        write=_write_torchvision,
    ),
    "open_clip": Format(
        says="both towers of a clip run",
        load='open_clip.create_model_and_transforms("local-dir:FOLDER/open_clip")',
        write=_write_open_clip,
    ),
}


def _write_with_config(out: Path, tensors: Tensors, config: Mapping[str, Any], metadata: Mapping[str, str]) -> Tensors:
    with atomic_file(str(out / "model.safetensors")) as path:
        save_tensors(path, tensors, metadata)
    _write_json(out / "config.json", config)
    return tensors


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(str(path), (json.dumps(data, indent=1) + "\n").encode())


def _published(weights: Weights) -> dict[str, Any]:
    """Return the config with the step that these weights are of, which may be before the last."""
    return published(weights.config) | {"steps": weights.step, "changes_at": {}}


def _sketch(weights: Weights) -> Objective:
    return weights.model.sketch()


def _is_clip(weights: Weights) -> bool:
    return "logit_scale" in weights.tensors and any(name.startswith("visual.") for name in weights.tensors)


def _shape(weights: Weights) -> VitConfig:
    trunk = _sketch(weights).trunk
    assert trunk is not None
    assert isinstance(trunk.shape, VitConfig), "check_export has seen a trunk of AIM's form"
    return trunk.shape


def _facts(weights: Weights) -> dict[str, Any]:
    return released_facts(_shape(weights))


def _timm_name(name: str) -> str:
    for start, end in (("preprocessor.patchifier.", "patch_embed."), ("trunk.post_trunk_norm.", "norm.")):
        if name.startswith(start):
            return end + name.removeprefix(start)
    return name.removeprefix("trunk.").replace(".norm_", ".norm")


def _said_timm_head(weights: Weights, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Return what `_timm_head` does, and say in the log that a classifier has no place."""
    head = _timm_head(tensors)
    if head is None and any(name.startswith("classifier.") for name in tensors):
        log.warning("%s: timm has no place for its classifier: the trunk alone is written", weights.path)
    return head


def _timm_head(tensors: Tensors) -> dict[str, Tensor] | None:
    """Return a linear layer on the mean of the last norm's tokens under timm's names; None if the head is another."""
    for stem in ("head.", "classifier.linear."):
        names = {f"{stem}{kind}" for kind in ("weight", "bias")}
        if {name for name in tensors if name.startswith(stem.split(".")[0] + ".")} == names:
            return {f"head.{name.rpartition('.')[2]}": tensors[name] for name in names}
    return None


def _timm_config(weights: Weights, classes: int) -> dict[str, Any]:
    """Return timm's `config.json`: what its entry is built with, and how a picture becomes its input."""
    shape = _shape(weights)
    built = {
        "img_size": shape.image_size,
        "patch_size": shape.patch,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "qkv_bias": False,
        "proj_bias": False,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "embed_norm_layer": "layernorm",
    }
    # Its own sizes do not matter, all are replaced; it is the entry without a layer that AIM has not.
    return _timm_facts(weights, TimmEntry("vit_base_patch16_224", built), shape, classes)


def _timm_facts(weights: Weights, entry: TimmEntry, shape: EncoderShape, classes: int) -> dict[str, Any]:
    """Return `config.json` of an entry: with how a picture becomes its input."""
    normalise = _sketch(weights).normalise
    return {
        "architecture": entry.architecture,
        "num_classes": classes,
        "num_features": shape.width,
        "model_args": entry.built,
        "pretrained_cfg": {
            "input_size": [3, shape.image_size, shape.image_size],
            "fixed_input_size": entry.is_fixed,
            "interpolation": _interpolation(weights.config),
            "crop_pct": _crop(weights.config),
            "crop_mode": "center",
            "mean": list(normalise.mean),
            "std": list(normalise.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": entry.first_layer,
            "classifier": entry.classifier,
        },
    }


def _interpolation(config: Mapping[str, Any]) -> str:
    """Return how pictures were resized in training; as published where no run is known."""
    mixture = config.get("mixture", {})
    views = mixture.get("views") or [{}]
    augment = views[0].get("augment") or mixture.get("augment") or {}
    return str(augment.get("interpolation", "bilinear" if mixture else "bicubic"))


def _crop(config: Mapping[str, Any]) -> float:
    """Return the side of the centre crop as a share of the short side: as the run validates, or as published."""
    validation = config.get("validation") or {}
    return float(validation.get("center_fraction", PUBLISHED_CROP))

"""Weights of a run, wherever they are: run folder, checkpoint, or exported file.

The config comes with the weights, so that nothing but the path is needed. In an exported file the trunk's names have no
`encoder.` in front.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.config import build_config, config_to_dict
from headrace.pipeline.augment.config import MAX_IMAGE_SIZE
from headrace.train.config import AnyObjective
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.objective import Objective, released_names
from headrace.train.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, newest_checkpoint
from headrace.train.runs.loading import read_tensors
from headrace.train.runs.released import released_config, trunk_only
from headrace.train.runs.state_file import AVERAGE
from headrace.train.runs.tensor_files import CONFIG_KEY, in_our_names, is_released, read_tensor_file
from headrace.train.steady.changes import planned_changes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """What of a run's config its weights need: read alone, so that other keys may come and go between versions."""

    objective: AnyObjective
    image_size: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be 1..{MAX_IMAGE_SIZE}, got {self.image_size}")

    def build(self) -> Objective:
        """Return the objective with the weights of step 0."""
        return build_objective(self.objective, image_size=self.image_size, seed=self.seed)

    def sketch(self) -> Objective:
        """Return the objective without memory for its weights."""
        with torch.device("meta"):
            return self.build()


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Tensors under released names, with the run they come from."""

    path: Path
    model: ModelRecord
    step: int
    """Optimizer steps done."""
    tensors: dict[str, Tensor]
    trunk_only: bool = False
    """True of a released model: its head is not ours."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of the run, as plain data; empty of a released model."""

    def check(self) -> None:
        """Raise ValueError if names or shapes are not those of the config, before memory is taken by its word."""
        sketch = self.model.sketch()
        own = released_names(sketch, sketch.state_dict())
        own = trunk_only(own) if self.trunk_only else own
        differing = sorted(own.keys() ^ self.tensors.keys())
        differing += [
            name for name in sorted(own.keys() & self.tensors.keys()) if own[name].shape != self.tensors[name].shape
        ]
        if differing:
            raise ValueError(f"{self.path}: the weights do not fit the model, first difference: {differing[0]}")

    def load_into(self, objective: Objective) -> None:
        """Put the weights into `objective`, which `model.build` made."""
        for name, tensor in released_names(objective, objective.state_dict()).items():
            if name in self.tensors:
                tensor.copy_(self.tensors[name])


def read_weights(path: Path) -> Weights:
    """Read the newest weights at `path`, or at RUN/ema and CHECKPOINT/ema their average.

    Raises ValueError if none are there, whole and as their config says.
    """
    if names_average(path):
        weights = _read_checkpoint(path.parent, of_average=True)
        weights.check()
        return weights
    if path.is_dir() and not (path / "checkpoints").exists() and not (path / "state.json").exists():
        path = next((path / name for name in ("model.safetensors", "model.pth") if (path / name).is_file()), path)
    weights = _read_exported(path) if path.is_file() else _read_checkpoint(path)
    weights.check()
    return weights


def read_model(path: Path) -> ModelRecord:
    """Return what model the weights at `path` are of; the tensors of a checkpoint are not read.

    Raises ValueError as `read_weights` does.
    """
    path = path.parent if names_average(path) else path
    checkpoint = newest_checkpoint(path / "checkpoints")
    if checkpoint is None and (path / "state.json").is_file():
        checkpoint = load_checkpoint(path)
    if checkpoint is None:
        return read_weights(path).model
    record = _record(checkpoint.config, checkpoint.path)
    merged = record.sketch().exported_config
    return record if merged is None else dataclasses.replace(record, objective=merged)


def averaged(several: Sequence[Weights]) -> Weights:
    """Return the mean of weights of one model, each counted alike, as those of the first.

    Models fine-tuned from the same weights are averaged so (arXiv:2203.05482), or the last checkpoints of a run. Raises
    ValueError naming the first that is of another model.
    """
    first, *others = several
    for other in others:
        if (other.model.objective, other.model.image_size) != (first.model.objective, first.model.image_size):
            raise ValueError(f"{other.path} is of another model than {first.path}: their weights have no mean")
    for name, tensor in first.tensors.items():
        if tensor.is_floating_point():
            # Summed in fp32 at least: a sum of bf16 would be rounded once for each.
            wide = torch.promote_types(tensor.dtype, torch.float32)
            total = sum((other.tensors[name].to(wide) for other in others), start=tensor.to(wide))
            first.tensors[name] = (total / len(several)).to(tensor.dtype)
    return first


def names_average(path: Path) -> bool:
    """True if `path` is RUN/ema or CHECKPOINT/ema: the average in a checkpoint, under which there is no such folder."""
    return path.name == AVERAGE and any((path.parent / name).exists() for name in ("checkpoints", "state.json"))


def _read_checkpoint(path: Path, *, of_average: bool = False) -> Weights:
    model: dict[str, Tensor] = {}

    def read(checkpoint: Checkpoint) -> None:
        model.update(read_tensors(checkpoint, "model"))
        if of_average and not checkpoint.files_of(AVERAGE):
            raise ValueError(f"{checkpoint.path} has no average of the weights: its run had no `ema` at that step")
        if of_average:
            model.update(read_tensors(checkpoint, AVERAGE))

    checkpoint = None
    if list_checkpoints(path / "checkpoints"):
        checkpoint = newest_checkpoint(path / "checkpoints", use=read)
    elif (path / "state.json").is_file():
        checkpoint = load_checkpoint(path)
        read(checkpoint)
    if checkpoint is None:
        raise ValueError(f"{path}: neither a run folder with checkpoints, nor a checkpoint, nor a model.safetensors")
    record, config = _record(checkpoint.config, checkpoint.path), checkpoint.config
    sketch = record.sketch()
    # As an exported file has them: adapters merged.
    tensors = dict(sketch.exported_tensors(released_names(sketch, model)))
    if sketch.exported_config is not None:
        record = dataclasses.replace(record, objective=sketch.exported_config)
        config = config | {"objective": config_to_dict(sketch.exported_config)}
    return Weights(
        path=checkpoint.path / AVERAGE if of_average else checkpoint.path,
        model=record,
        step=checkpoint.progress.step,
        tensors=tensors,
        config=config,
    )


def _read_exported(path: Path) -> Weights:
    read = read_tensor_file(path)
    if read.config is None:
        kind, tensors = in_our_names(read.tensors, path)
        if not is_released(tensors):
            raise ValueError(
                f"{path}: was not exported by headrace (it has no {CONFIG_KEY}), and holds no trunk of AIM under the "
                "names of its releases or of timm"
            )
        return _released(path, kind, tensors)
    try:
        config = json.loads(read.config)
        step = _last_step(config)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its config cannot be read: {error!r}") from error
    return Weights(path=path, model=_record(config, path), step=step, tensors=read.tensors, config=config)


def _last_step(config: Any) -> int:
    changes = planned_changes(config.get("changes_at", {})).values()
    return int([changed["steps"] for changed in ({"steps": config["steps"]}, *changes) if "steps" in changed][-1])


def _released(path: Path, kind: str, tensors: dict[str, Tensor]) -> Weights:
    config, image_size = released_config(path, tensors)
    try:
        config.trunk(image_size)
        record = ModelRecord(objective=config, image_size=image_size, seed=0)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {path.parent / 'config.json'} may say img_size and num_heads") from error
    heads = sorted({name.split(".")[0] for name in tensors.keys() - trunk_only(tensors).keys()})
    log.info("%s: %s, its trunk is taken; left out: %s", path, kind, ", ".join(heads) or "nothing")
    return Weights(path=path, model=record, step=0, tensors=trunk_only(tensors), trunk_only=True)


def _record(config: Any, path: Path) -> ModelRecord:
    try:
        facts = {
            "objective": config["objective"],
            "image_size": config["mixture"]["image_size"],
            "seed": config["seed"],
        }
        return build_config(ModelRecord, facts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its config cannot be read: {error!r}") from error

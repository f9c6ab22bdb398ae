"""`init_from`: weights of step 0 that come from somewhere else, and a report of what was taken.

Names of other programs are mapped to ours first; then `init_rename` is applied. A tensor without a place is left out,
a parameter without a tensor keeps its drawn weights, and both are told. A shape that differs is refused, and so is a
trunk that is filled in part: both are mistakes more often than wishes.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.atomic import write_atomic
from headrace.train.models.lora import is_lora
from headrace.train.models.positions import resampled
from headrace.train.objectives.objective import Objective, names_in_trunk, released_names
from headrace.train.runs.tensor_files import in_our_names, read_tensor_file
from headrace.train.runs.weights import names_average, read_weights

REPORT = "init.json"
SHOWN_NAMES = 3

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Initial:
    """What a run takes from elsewhere."""

    source: str
    """Path and kind of the weights."""
    taken: dict[str, Tensor]
    """By released name, as the objective has it."""
    left_out: tuple[str, ...]
    """Names in the file, mapped, that have no place in the objective."""
    fresh: tuple[str, ...]
    """Names of the objective that keep their drawn weights."""
    resampled: tuple[str, ...] = ()
    """Learnt positions that were of another resolution."""

    def __str__(self) -> str:
        """Return one line."""
        parameters = sum(tensor.numel() for tensor in self.taken.values())
        return (
            f"{self.source}: {len(self.taken)} tensors, {parameters:,} numbers taken; "
            f"left out: {_some(self.left_out)}; drawn afresh: {_some(self.fresh)}"
            + (f"; positions resampled: {_some(self.resampled)}" if self.resampled else "")
        )

    def facts(self) -> dict[str, Any]:
        """Return the whole report as plain data."""
        return {
            "summary": str(self),
            "from": self.source,
            "taken": sorted(self.taken),
            "left_out": list(self.left_out),
            "fresh": list(self.fresh),
            "resampled": list(self.resampled),
        }

    def load_into(self, objective: Objective) -> None:
        """Put the tensors into place."""
        with torch.no_grad():
            for name, tensor in released_names(objective, objective.state_dict()).items():
                if name in self.taken:
                    tensor.copy_(self.taken[name])


def write_report(out: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of an `Initial` into a run folder."""
    write_atomic(str(out / REPORT), (json.dumps(facts, indent=1) + "\n").encode())


def initial_weights(objective: Objective, path: Path, rename: Mapping[str, str]) -> Initial:
    """Return what `objective` (it may be on the meta device) takes from `path`.

    Raises ValueError if nothing fits, a shape differs, the trunk would be filled in part, or a value is not finite.
    """
    kind, found = _read(path)
    found = _renamed(found, rename, path)
    own = released_names(objective, objective.state_dict())
    # open_clip writes one number as [] or as [1].
    taken = {
        name: tensor.reshape(own[name].shape) if tensor.numel() == own[name].numel() == 1 else tensor
        for name, tensor in found.items()
        if name in own
    }
    positions = _for_this_resolution(taken, own)
    taken |= positions
    taken, fitted = _for_this_trunk(objective, taken, path)
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{path}: {name} has the shape {list(tensor.shape)}, this run's {list(own[name].shape)}; change the "
                f"objective, or leave it out: init_rename: {{{name}: ''}}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name} holds values that are not finite")
    if not taken:
        raise ValueError(
            f"{path}: nothing fits: it has {_some(tuple(sorted(found)))}; this run has {_some(tuple(sorted(own)))}; "
            "init_rename may map names"
        )
    _check_trunk(objective, taken, path)
    return Initial(
        source=f"{path} ({kind})",
        taken=taken,
        left_out=tuple(sorted(found.keys() - taken.keys())),
        fresh=tuple(sorted(own.keys() - taken.keys())),
        resampled=tuple(sorted({*positions, *fitted})),
    )


def _for_this_resolution(taken: Tensors, own: Tensors) -> dict[str, Tensor]:
    """Return learnt positions of image towers that were trained at another resolution, for that of `own`."""
    found = {}
    for name, tensor in taken.items():
        target = own[name]
        is_grid = name.startswith("visual.") and name.endswith("positional_embedding")
        if is_grid and tensor.shape != target.shape and tensor.shape[1:] == target.shape[1:]:
            scaled = resampled(tensor, len(target))
            if scaled is not None:
                found[name] = scaled
    return found


def _for_this_trunk(objective: Objective, taken: Tensors, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return `taken` as the trunk takes it, and the names of what had another shape before."""
    found, changed = dict(taken), []
    for name, inside in names_in_trunk(objective).items():
        if name in taken and objective.trunk is not None:
            try:
                found[name] = objective.trunk.fitted(inside, taken[name])
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
            changed += [name] * (found[name].shape != taken[name].shape)
    return found, changed


def _check_trunk(objective: Objective, taken: Tensors, path: Path) -> None:
    trunk = names_in_trunk(objective).keys()
    # Files of torch before 0.4.1, such as torchvision's older ones, have no counters; nothing is computed from them.
    optional = [name for name in trunk if is_lora(name) or name.endswith(".num_batches_tracked")]
    missing = sorted(trunk - taken.keys() - set(optional))
    if missing and len(missing) < len(trunk):
        raise ValueError(f"{path}: it fills a part of the trunk: {len(missing)} tensors are missing: {_some(missing)}")


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return what kind of weights are at `path`, and its tensors under our names."""
    if names_average(path):
        return "average of a run", read_weights(path).tensors
    if (path / ".metadata").is_file():
        raise ValueError(f"{path}: a folder of torch.distributed.checkpoint; make one file of it: dcp_to_torch_save")
    if (path / "open_clip_model.safetensors").is_file():
        path = path / "open_clip_model.safetensors"
    if path.is_dir() and not (path / "model.safetensors").is_file():
        return "run", read_weights(path).tensors
    if path.is_dir() and ((path / "checkpoints").is_dir() or (path / "state.json").is_file()):
        return ("run" if (path / "checkpoints").is_dir() else "checkpoint"), read_weights(path).tensors
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"init_from {path}: no such file or folder")
    read = read_tensor_file(file)
    if read.config is not None:
        return "exported by a run", read.tensors
    return in_our_names(read.tensors, file)


def _renamed(tensors: Tensors, rename: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Replace the longest prefix that `rename` names; '' leaves the tensor out."""
    used, found = set(), dict[str, Tensor]()
    for name, tensor in tensors.items():
        prefixes = [prefix for prefix in rename if name.startswith(prefix)]
        prefix = max(prefixes, key=len, default=None)
        used.update(prefixes)
        if prefix is not None and not rename[prefix]:
            continue
        new = name if prefix is None else rename[prefix] + name.removeprefix(prefix)
        if new in found:
            raise ValueError(f"init_rename: two tensors of {path} would be {new}")
        found[new] = tensor
    unused = sorted(rename.keys() - used)
    if unused:
        raise ValueError(f"init_rename: no name in {path} begins with {unused[0]!r}; it has {_some(sorted(tensors))}")
    return found


def _some(names: Any) -> str:
    rest = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(list(names)[:SHOWN_NAMES]) + rest or "nothing"

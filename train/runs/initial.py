"""`init_from`: weights of step 0 that come from somewhere else, and a report of what was taken.

Names of other programs are mapped to ours first; then `init_rename` is applied. A tensor without a place is left out,
a parameter without a tensor keeps its drawn weights, and both are told. A shape that differs is refused, and so is a
trunk that is filled in part: both are mistakes more often than wishes.
"""

import json
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from headrace.files import write_atomic
from headrace.train.objectives.objective import Objective, released_names
from headrace.train.runs.export import CONFIG_KEY
from headrace.train.runs.released import is_released
from headrace.train.runs.weights import PICKLES, read_weights

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

    def __str__(self) -> str:
        """Return one line."""
        parameters = sum(tensor.numel() for tensor in self.taken.values())
        return (
            f"{self.source}: {len(self.taken)} tensors, {parameters:,} numbers taken; "
            f"left out: {_some(self.left_out)}; drawn afresh: {_some(self.fresh)}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the whole report as plain data."""
        return {
            "summary": str(self),
            "from": self.source,
            "taken": sorted(self.taken),
            "left_out": list(self.left_out),
            "fresh": list(self.fresh),
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
    taken = {name: tensor for name, tensor in found.items() if name in own}
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
    _check_trunk(objective, own, taken, path)
    return Initial(
        source=f"{path} ({kind})",
        taken=taken,
        left_out=tuple(sorted(found.keys() - taken.keys())),
        fresh=tuple(sorted(own.keys() - taken.keys())),
    )


def _check_trunk(objective: Objective, own: Tensors, taken: Tensors, path: Path) -> None:
    if objective.trunk is None:
        return
    inside = {id(tensor) for tensor in objective.trunk.state_dict(keep_vars=True).values()}
    states = released_names(objective, objective.state_dict(keep_vars=True))
    trunk = {name for name in own if id(states[name]) in inside}
    missing = sorted(trunk - taken.keys())
    if missing and len(missing) < len(trunk):
        raise ValueError(f"{path}: it fills a part of the trunk: {len(missing)} tensors are missing: {_some(missing)}")


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return what kind of weights are at `path`, and its tensors under our names."""
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
    return _named(_read_pickle(file) if file.suffix in PICKLES else _read_safetensors(file), file)


def _read_safetensors(path: Path) -> tuple[bool, dict[str, Tensor]]:
    """Return if a file was exported by a run of ours, and its tensors."""
    try:
        with safe_open(str(path), "pt") as file:
            ours = CONFIG_KEY in (file.metadata() or {})
        return ours, load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> tuple[bool, dict[str, Tensor]]:
    """Read tensors without running what a pickle may say: torch's `weights_only` builds nothing else."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of old protocols, which are read all the same
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # torch speaks of switching the protection off first; the reason is said behind this.
        reason = re.split(r"WeightsUnpickler error:\s*|trusted source\.\s*", str(error))[-1]
        why = reason.split("\n")[0][:200]
        raise ValueError(f"{path}: not a file of tensors alone, and nothing else in it is run: {why}") from error
    for key in ("model", "state_dict"):
        data = data[key] if isinstance(data, dict) and isinstance(data.get(key), dict) else data
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(data).__name__}")
    return False, {str(name): value for name, value in data.items() if isinstance(value, Tensor)}


def _named(read: tuple[bool, dict[str, Tensor]], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the kind of a file by its names, and its tensors under our names."""
    ours, tensors = read
    if ours:
        return "exported by a run", tensors
    tensors = {re.sub(r"^(?:module\.|_orig_mod\.)+", "", name): tensor for name, tensor in tensors.items()}
    if any(name.startswith("preprocessor.blocks.") for name in tensors):
        return "l3m", _from_l3m(tensors, path)
    if is_released(tensors):
        # Masks are constants of its attention; a classifier under `head.` has no place here, and is told as left out.
        return "released AIM", {name: tensor for name, tensor in tensors.items() if not name.endswith(".attn_mask")}
    if "logit_scale" in tensors and any(name.startswith("visual.") for name in tensors):
        return "open_clip", tensors
    return "tensors", tensors


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
            if any(one is None for one in three):
                raise ValueError(f"{path}: {stem}: q, k and v are not all there")
            found[f"{stem}qkv.{kind}"] = torch.cat([one for one in three if one is not None])
    return found


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

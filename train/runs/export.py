"""What a finished run gives away: weights in one file that needs no headrace to read.

Invariant: names are those of the released models (AIM's trunk, open_clip's towers). The one thing a reader would get
wrong: AIM's pixel head is in the file too, under `head.`; a probe leaves it out.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from headrace.config import canonical_json, config_to_dict
from headrace.files import atomic_file
from headrace.train.config import RunConfig
from headrace.train.objectives.aim import Aim
from headrace.train.objectives.clip import Clip, open_clip_config
from headrace.train.runs.checkpoint import host_tensors

CONFIG_KEY = "headrace_config"


def export_model(out: Path, config: RunConfig, objective: Aim | Clip) -> None:
    """Write `model.safetensors` (config in its metadata) and, for CLIP, the folder `open_clip/`."""
    if isinstance(objective, Clip):
        _save(out / "open_clip" / "model.safetensors", objective.model.state_dict(), {"format": "pt"})
        text = json.dumps(open_clip_config(objective.config), indent=2, sort_keys=True) + "\n"
        # The second name is the one that open_clip's `local-dir:FOLDER` looks for.
        for name in ("model_config.json", "open_clip_config.json"):
            with atomic_file(str(out / "open_clip" / name)) as path:
                path.write_text(text, encoding="ascii")
    # One key only: safetensors writes several in no fixed order, and the same run must give the same file.
    _save(out / "model.safetensors", release_names(objective), {CONFIG_KEY: canonical_json(config_to_dict(config))})


def release_names(objective: Aim | Clip) -> dict[str, torch.Tensor]:
    """Return the weights under the names of the released models."""
    prefix = "encoder." if isinstance(objective, Aim) else "model."
    return {name.removeprefix(prefix): tensor for name, tensor in objective.state_dict().items()}


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with atomic_file(str(path)) as temporary:
        save_file(host_tensors(tensors), str(temporary), metadata=metadata)

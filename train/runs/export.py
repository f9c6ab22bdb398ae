"""What a finished run gives away: weights in one file that needs no headrace to read.

Names are those of the released models (AIM's trunk, open_clip's towers). AIM's pixel head is in the file too, under
`head.`; a probe leaves it out.
"""

import dataclasses
import logging
from pathlib import Path

from headrace.atomic import atomic_file
from headrace.config import canonical_json
from headrace.train.config import RunConfig, published_dict
from headrace.train.objectives.objective import Objective, released_names
from headrace.train.runs.tensor_files import CONFIG_KEY
from headrace.train.runs.tensors import host_tensors, num_bytes, save_tensors

log = logging.getLogger(__name__)


def export_model(out: Path, config: RunConfig, objective: Objective, *, writes: bool = True) -> None:
    """Write `model.safetensors` (config in its metadata) and what the objective writes beside it.

    Called on all ranks; the one that `writes` does so.
    """
    tensors = released_names(objective, host_tensors(objective.state_dict(), keep=writes))
    if not writes:
        return
    tensors = dict(objective.exported_tensors(tensors))
    if objective.exported_config is not None:
        config = dataclasses.replace(config, objective=objective.exported_config)
    try:
        out.mkdir(exist_ok=True)
        objective.export_beside(out, tensors)
        # One key only: safetensors writes several in no fixed order, and the same run must give the same file.
        with atomic_file(str(out / "model.safetensors")) as path:
            save_tensors(path, tensors, {CONFIG_KEY: canonical_json(published_dict(config))})
    except OSError as error:
        raise OSError(
            f"the weights could not be exported to {out}: {error}; the last checkpoint is whole: make room and run "
            "the same command again"
        ) from error
    log.info("exported %s: %d tensors, %d bytes", out / "model.safetensors", len(tensors), num_bytes(tensors))

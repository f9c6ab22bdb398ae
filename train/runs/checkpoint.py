"""The checkpoints of a run: which there are, which is taken, which go.

`checkpoints/00001000/` holds the weights (`model.safetensors`), the moments (`optimizer.safetensors`) and `state.json`
(step, stream state, config, and digests of the others). Where a model is spread over processes each has files of its
own, `model-00001-of-00008.safetensors`. A folder without a dot in front of its name is complete, as it is renamed last.
Nothing is pickled: a file that holds a pickle is refused as damaged, and never run.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from headrace.train.config import RunConfig, completed, first_difference, public_dict
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.runs.loading import restore, sources
from headrace.train.runs.saving import put_away, save_checkpoint
from headrace.train.runs.state_file import FILES, KINDS, Checkpoint, Progress, arithmetic, read_state
from headrace.train.runs.verified_file import DamagedError
from headrace.train.steady.changes import difference_before, is_changeable

__all__ = [
    "FILES",
    "Checkpoint",
    "DamagedError",
    "Progress",
    "list_checkpoints",
    "load_checkpoint",
    "newest_checkpoint",
    "refuse_other_config",
    "remove_old",
    "restore",
    "save_checkpoint",
    "warn_of_other_arithmetic",
]

log = logging.getLogger(__name__)


def remove_old(folder: Path, *, keep: int, step: int, keep_every: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, and what killed writers left.

    Those of steps that `keep_every` divides stay (0 = none). Those of later steps were found damaged when the run went
    on from an earlier one: they count for nothing, or they would push the whole ones out.
    """
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [path for path in list_checkpoints(folder) if int(path.name) <= step][:-keep]:
        if not keep_every or int(path.name) % keep_every:
            put_away(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(
    folder: Path, *, use: Callable[[Checkpoint], object] = lambda _: None, ranks: Ranks = ALONE
) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, warning of damaged ones; None if there is none at all.

    `use` does what the checkpoint is for; where that raises DamagedError, on all ranks, the one before is used. Raises
    ValueError if there are checkpoints and none of them is whole: starting afresh must be the user's decision.
    """
    paths = list_checkpoints(folder)
    newest = int(paths[-1].name) if paths else 0
    if ranks.from_first(newest, "finding the newest checkpoint") != newest:
        raise ValueError(
            f"rank {ranks.rank} finds a checkpoint of step {newest}, rank 0 another: `out` must be one shared folder"
        )
    for path in reversed(paths):
        checkpoint, damage = None, ""
        try:
            checkpoint = load_checkpoint(path)
        except DamagedError as error:
            damage = str(error)
        if not ranks.sum([bool(damage)], f"reading {path}")[0]:
            assert checkpoint is not None, "what is not damaged is there"
            try:
                use(checkpoint)
                return checkpoint
            except DamagedError as error:
                damage = str(error)
        log.warning("%s; trying the one before", damage or f"{path}: damaged for another process")
    if paths:
        raise ValueError(f"{folder}: all {len(paths)} checkpoints are damaged; remove the folder to start from step 0")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint is, and look whether its files can be what it says; their tensors are not read yet.

    Raises DamagedError naming the file that is damaged.
    """
    checkpoint = read_state(path)
    for kind in KINDS:
        with sources(checkpoint, kind):
            pass
    return checkpoint


def refuse_other_config(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raise ValueError naming the first field in which `config` differs from the checkpoint's, free fields aside.

    Changes planned for later steps are free too; those that were made are not.
    """
    step, old = checkpoint.progress.step, completed(checkpoint.config)
    difference = first_difference(old, public_dict(config))
    cure = "use another `out` or the old value"
    if difference is None:
        difference = difference_before(old.get("changes_at", {}), config.changes_at, step)
        cure = f"changes may be planned from step {step} on"
    elif is_changeable(path := difference.partition(":")[0]):
        cure += f"; from here on it may change: changes_at: {{{step}: {{{path}: ...}}}}"
    if difference is not None:
        raise ValueError(f"{checkpoint.path} was written by another config: {difference}; {cure}")


def warn_of_other_arithmetic(checkpoint: Checkpoint) -> None:
    """Warn where the steps to come round differently from those of the checkpoint."""
    now = arithmetic()
    for name in sorted(now):
        if checkpoint.arithmetic.get(name) != now[name]:
            was = checkpoint.arithmetic.get(name)
            log.warning(
                "%s: %s was %s, is %s: losses go on equal up to rounding only", checkpoint.path, name, was, now[name]
            )

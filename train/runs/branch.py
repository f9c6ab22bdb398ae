"""`continue_from`: a run that goes on from a checkpoint of another, with its weights, moments and place in the stream.

Both have the same config up to that step, so the branch is what a run with its config would be that had done all steps
itself. Its folder holds the whole record: lines of the steps before are taken over.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from headrace.pipeline.seen import FILE as SEEN_FILE
from headrace.train.config import RunConfig
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from headrace.train.runs.state_file import NAME
from headrace.train.steady.journal import FILE as JOURNAL

RECORDS = ("metrics.jsonl", SEEN_FILE, JOURNAL)
SHOWN = 5


def checkpoint_to_continue(config: RunConfig) -> Checkpoint | None:
    """Return the checkpoint that `continue_from` names, None without one.

    Raises ValueError if it is none, or is damaged.
    """
    if config.continue_from is None:
        return None
    path = Path(config.continue_from)
    if (path / NAME).is_file():
        return load_checkpoint(path)
    near = (path / "checkpoints", path, path.parent)
    there = next((found for folder in near if (found := [each.name for each in list_checkpoints(folder)])), [])[-SHOWN:]
    hint = f"; name one of those there, such as {', '.join(there)}" if there else ""
    raise ValueError(f"continue_from {path}: expected the folder of one checkpoint (RUN/checkpoints/STEP){hint}")


def branch(config: RunConfig, *, use: Callable[[Checkpoint], object], ranks: Ranks) -> Checkpoint | None:
    """Return the checkpoint that a run without one of its own begins at, after `use` of it; called on all ranks."""
    found, why = None, ""
    try:
        found = checkpoint_to_continue(config)
    except ValueError as error:
        why = str(error)
    if ranks.sum([bool(why)], "reading continue_from")[0]:
        raise ValueError(why or f"continue_from {config.continue_from}: another process could not read it")
    if found is not None:
        use(found)
    return found


def record_of(config: RunConfig, name: str) -> Path:
    """Return where the record `name` of this run is: the parent's as long as there is none in its own folder."""
    own = Path(config.out) / name
    if own.exists() or config.continue_from is None:
        return own
    return Path(config.continue_from).absolute().parent.parent / name


def take_records(config: RunConfig) -> None:
    """Take over the parent's records that are not in the run's own folder yet; who opens them cuts what came later."""
    for name in RECORDS:
        theirs, own = record_of(config, name), Path(config.out) / name
        if theirs != own and theirs.is_file():
            shutil.copyfile(theirs, own.with_name(f".{name}.tmp"))
            own.with_name(f".{name}.tmp").replace(own)

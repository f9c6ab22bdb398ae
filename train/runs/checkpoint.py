"""Checkpoints: weights, moments and the position of the stream, written whole or not at all.

`checkpoints/00001000/` holds `model.safetensors`, `optimizer.safetensors` and `state.json` (step, stream state, config,
and sha256 of the other two). A folder without a dot in front of its name is complete, as it is renamed last. Nothing is
pickled: a file that holds a pickle is refused as damaged, and never run.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headrace.train.config import RunConfig, completed, first_difference, public_dict, run_digest
from headrace.train.runs.optimizer_state import make_state, optimizer_tensors, restore_optimizer
from headrace.train.runs.tensors import host_tensors, save_tensors
from headrace.train.steady.bad_steps import StepWatch, watch_from_state, watch_to_state
from headrace.train.steady.changes import difference_before, is_changeable

VERSION = 2
"""Version 2 added `watch`: skipped steps and recent norms. Where there are none, version 1 is written as before."""
MAX_STATE_BYTES = 16 << 20
FILES = ("model.safetensors", "optimizer.safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is."""

    step: int
    """Optimizer steps done."""
    stream: dict[str, Any]
    """State of the stream: what the next step reads."""
    missing: int = 0
    """Samples left out so far for want of a caption, a label."""
    watch: StepWatch = field(default_factory=StepWatch)
    """Steps that were skipped, and norms of the latest ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What one folder holds, verified."""

    path: Path
    progress: Progress
    config: dict[str, Any]
    """The run's config as plain data."""
    arithmetic: dict[str, Any]
    """What decided the rounding of its steps."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """`PARAMETER/exp_avg` and so on."""


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Progress,
    config: RunConfig,
    writes: bool = True,
) -> Path:
    """Write a checkpoint under `folder` and return its path; an older one of the same step is replaced.

    Called on all ranks; the one that `writes` does so. Raises OSError naming the folder, and leaves nothing half
    written.
    """
    began = time.perf_counter()
    final, temporary = folder / f"{progress.step:08d}", folder / f".{progress.step:08d}.tmp"
    parts: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        FILES[0]: module.state_dict,
        FILES[1]: lambda: optimizer_tensors(module, optimizer),
    }
    if not writes:
        for part in parts.values():
            host_tensors(part(), keep=False)
        return final
    with _removed_on_failure(temporary, final, list(parts.values())) as waiting:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name in FILES:
            save_tensors(temporary / name, host_tensors(waiting.pop(0)()))
        state = _state(progress, config, temporary)
        (temporary / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
    size = sum(facts["bytes"] for facts in state["files"].values())
    log.info("checkpoint %s: %d bytes in %.1f s", final, size, time.perf_counter() - began)
    return final


@contextmanager
def _removed_on_failure(temporary: Path, final: Path, waiting: list[Any]) -> Iterator[list[Any]]:
    """Take what was half written away again, and say what to do; the parts `waiting` are gathered all the same."""
    try:
        yield waiting
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for part in waiting:
            host_tensors(part(), keep=False)  # the other ranks take part in it
        free = shutil.disk_usage(final.parent if final.parent.exists() else "/").free
        raise OSError(
            f"the checkpoint {final} could not be written: {error}; {free:,} bytes are free there; "
            "make room and run the same command again"
        ) from error


def _state(progress: Progress, config: RunConfig, folder: Path) -> dict[str, Any]:
    watch = progress.watch
    watched = {"watch": watch_to_state(watch)} if watch.skipped or watch.recent else {}
    return {
        "version": VERSION if watched else 1,
        **watched,
        "step": progress.step,
        "stream": progress.stream,
        "missing": progress.missing,
        "config": public_dict(config),
        "config_digest": run_digest(config),
        "arithmetic": arithmetic(),
        "files": {name: _facts(folder / name) for name in FILES},
    }


def remove_old(folder: Path, *, keep: int, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, and what killed writers left.

    Those of later steps were found damaged when the run went on from an earlier one: they count for nothing, or they
    would push the whole ones out.
    """
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [path for path in list_checkpoints(folder) if int(path.name) <= step][:-keep]:
        shutil.rmtree(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, warning of damaged ones; None if there is none at all.

    Raises ValueError if there are checkpoints and none of them is whole: starting afresh must be the user's decision.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            log.warning("%s; trying the one before", error)
    if paths:
        raise ValueError(f"{folder}: all {len(paths)} checkpoints are damaged; remove the folder to start from step 0")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises ValueError naming the file that is damaged."""
    state = _read_state(path / "state.json")
    try:
        watch = watch_from_state(state["watch"]) if "watch" in state else StepWatch()
    except ValueError as error:
        raise ValueError(f"{path / 'state.json'}: damaged checkpoint: {error}") from error
    tensors = [_read_tensors(path / name, state["files"].get(name)) for name in FILES]
    return Checkpoint(
        path=path,
        progress=Progress(step=state["step"], stream=state["stream"], missing=state["missing"], watch=watch),
        config=state["config"],
        arithmetic=state["arithmetic"],
        model=tensors[0],
        optimizer=tensors[1],
    )


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


def arithmetic() -> dict[str, Any]:
    """Return what decides rounding beside the config: equal on resume = equal losses to the last bit, on a CPU."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "world_size": world_size}


def warn_of_other_arithmetic(checkpoint: Checkpoint) -> None:
    """Warn where the steps to come round differently from those of the checkpoint."""
    now = arithmetic()
    for name in sorted(now):
        if checkpoint.arithmetic.get(name) != now[name]:
            was = checkpoint.arithmetic.get(name)
            log.warning(
                "%s: %s was %s, is %s: losses go on equal up to rounding only", checkpoint.path, name, was, now[name]
            )


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the checkpoint's weights and moments into place. Raises ValueError if shapes or names differ."""
    try:
        make_state(optimizer)
        module.load_state_dict(checkpoint.model)
        restore_optimizer(checkpoint.optimizer, module, optimizer)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint.path}: the weights do not fit the model: {str(error)[:300]}") from error
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error


def _read_state(path: Path) -> dict[str, Any]:
    wanted = {"step": int, "missing": int, "stream": dict, "config": dict, "arithmetic": dict, "files": dict}
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise ValueError(f"it is over {MAX_STATE_BYTES} bytes")
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("version") not in range(1, VERSION + 1):
        raise ValueError(f"{path}: not a checkpoint of version 1 to {VERSION}")
    if state["version"] > 1:
        wanted["watch"] = dict
    state.setdefault("missing", 0)  # older checkpoints of version 1 do not count
    for name, kind in wanted.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{path}: damaged checkpoint: {name} is missing or of the wrong type")
    return state


def _read_tensors(path: Path, facts: Any) -> dict[str, Tensor]:
    try:
        found = _facts(path)
    except OSError as error:
        raise ValueError(f"{path}: damaged checkpoint: {error}") from error
    if found != facts:
        raise ValueError(f"{path}: damaged checkpoint: expected {facts}, found {found}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged checkpoint: not a safetensors file: {error}") from error
    return tensors


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

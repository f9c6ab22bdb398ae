"""`state.json` of a checkpoint: how far the run is, by which config, and what its other files must be.

Version 3 has digests of every block of the files, of which there may be several for the weights and several for the
moments. Version 4 is the same with an average of the weights; where there is none version 3 is written. Version 2 added
`watch`, and both it and version 1 have two files with one sha256 each; they are read.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headrace.train.config import RunConfig, public_dict, run_digest
from headrace.train.runs.tensor_file import BLOCK_BYTES, Facts
from headrace.train.runs.verified_file import DamagedError
from headrace.train.steady.bad_steps import StepWatch, watch_from_state, watch_to_state

VERSION = 3
AVERAGED_VERSION = 4
# 16 bytes of digest for a block, as text: 32 MiB speak for a terabyte.
MAX_STATE_BYTES = 64 << 20
NAME = "state.json"
# What a checkpoint holds, each in one file or in one for each process that writes.
NEEDED = ("model", "optimizer")
AVERAGE = "ema"
KINDS = (*NEEDED, AVERAGE)
FILES = tuple(f"{kind}.safetensors" for kind in NEEDED)
_FILE_NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})(-\d{{5}}-of-\d{{5}})?\.safetensors")


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
    """What one folder holds. Its tensors are read, and checked, when they are needed."""

    path: Path
    progress: Progress
    config: dict[str, Any]
    """The run's config as plain data."""
    arithmetic: dict[str, Any]
    """What decided the rounding of its steps."""
    files: dict[str, Facts]
    """What each file must be, by name."""
    whole_sha256: dict[str, str] = field(default_factory=dict)
    """Of the files of versions 1 and 2, which are checked as a whole."""

    def files_of(self, kind: str) -> dict[Path, Facts]:
        """Return the files that hold the weights, the moments, or the average of the weights."""
        return {self.path / name: facts for name, facts in self.files.items() if kind_of(name) == kind}


def kind_of(name: str) -> str | None:
    """Return what a file of this name holds; None if it is no file of tensors."""
    match = _FILE_NAME.fullmatch(name)
    return match["kind"] if match else None


def file_name(kind: str, *, number: int, count: int) -> str:
    """Return the name of file `number` of `count`."""
    return f"{kind}.safetensors" if count == 1 else f"{kind}-{number + 1:05d}-of-{count:05d}.safetensors"


def write_state(folder: Path, progress: Progress, config: RunConfig, files: Mapping[str, Facts]) -> None:
    """Write `state.json`."""
    averaged = any(kind_of(name) == AVERAGE for name in files)
    state = {
        "version": AVERAGED_VERSION if averaged else VERSION,
        "step": progress.step,
        "stream": progress.stream,
        "missing": progress.missing,
        "watch": watch_to_state(progress.watch),
        "config": public_dict(config),
        "config_digest": run_digest(config),
        "arithmetic": arithmetic(),
        "block_bytes": BLOCK_BYTES,
        "files": {name: facts_to_dict(facts) for name, facts in files.items()},
    }
    (folder / NAME).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_state(folder: Path) -> Checkpoint:
    """Read `state.json`, and look whether its files are there.

    Raises DamagedError naming what is wrong, and another ValueError for a checkpoint of a newer headrace.
    """
    path = folder / NAME
    state = _read_checked(path)
    try:
        watch = watch_from_state(state["watch"]) if "watch" in state else StepWatch()
        facts, sums = _read_files(state)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path}: damaged checkpoint: {str(error)[:200]}") from error
    return Checkpoint(
        path=folder,
        progress=Progress(step=state["step"], stream=state["stream"], missing=state["missing"], watch=watch),
        config=state["config"],
        arithmetic=state["arithmetic"],
        files=facts,
        whole_sha256=sums,
    )


def arithmetic() -> dict[str, Any]:
    """Return what decides rounding beside the config: equal on resume = equal losses to the last bit, on a CPU."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "world_size": world_size}


def facts_to_dict(facts: Facts) -> dict[str, Any]:
    """Return what a file must be as plain data."""
    assert facts.digests is not None
    return {"bytes": facts.num_bytes, "blocks": facts.digests.hex()}


def facts_from_dict(data: Any) -> Facts:
    """Return what `facts_to_dict` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    if type(data["bytes"]) is not int or data["bytes"] < 0:
        raise ValueError(f"a file has {data['bytes']!r} bytes")
    return Facts(data["bytes"], bytes.fromhex(data["blocks"]))


def _read_checked(path: Path) -> dict[str, Any]:
    wanted = {"step": int, "missing": int, "stream": dict, "config": dict, "arithmetic": dict, "files": dict}
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise ValueError(f"it is over {MAX_STATE_BYTES} bytes")
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged checkpoint: {error}") from error
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is int and version > AVERAGED_VERSION:
        # Not damage: going on from an older checkpoint would do again, and replace, what a newer headrace did.
        raise ValueError(
            f"{path}: a checkpoint of version {version}, this headrace reads 1 to {VERSION} and {AVERAGED_VERSION}; "
            "install the headrace that wrote it, or take the checkpoint away to go on from the one before"
        )
    if not isinstance(state, dict) or version not in range(1, AVERAGED_VERSION + 1):
        raise DamagedError(f"{path}: not a checkpoint of version 1 to {AVERAGED_VERSION}")
    if state["version"] > 1:
        wanted["watch"] = dict
    state.setdefault("missing", 0)  # older checkpoints of version 1 do not count
    for name, kind in wanted.items():
        if not isinstance(state.get(name), kind):
            raise DamagedError(f"{path}: damaged checkpoint: {name} is missing or of the wrong type")
    return state


def _read_files(state: dict[str, Any]) -> tuple[dict[str, Facts], dict[str, str]]:
    files = state["files"]
    kinds = {kind_of(name) for name in files}
    if not set(NEEDED) <= kinds <= set(KINDS):
        raise ValueError(f"it names the files {sorted(files)[:4]}")
    if state["version"] < 3:
        sums = {name: files[name]["sha256"] for name in files}
        if not all(isinstance(value, str) for value in sums.values()):
            raise ValueError("a sha256 is no text")
        return {name: Facts(facts_from_dict({**files[name], "blocks": ""}).num_bytes, None) for name in files}, sums
    if state.get("block_bytes") != BLOCK_BYTES:
        raise ValueError(f"its blocks have {state.get('block_bytes')!r} bytes, expected {BLOCK_BYTES}")
    return {name: facts_from_dict(files[name]) for name in files}, {}

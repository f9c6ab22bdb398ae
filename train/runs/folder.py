"""The folder of a run: who owns it and what it records.

One run at a time writes into a folder; the lock dies with its process, so a killed run blocks nothing.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from headrace.atomic import is_full_disk, write_atomic
from headrace.pipeline import Batch
from headrace.train.config import RunConfig, public_dict
from headrace.train.parallel.ranks import Ranks

PACKAGES = ("headrace", "torch", "numpy", "safetensors", "open_clip_torch", "simplejpeg", "pillow")

log = logging.getLogger(__name__)


class BadStepError(ValueError):
    """A step would have spoiled the weights; raised on all ranks before they moved."""

    def __init__(self, text: str, *, cure: str = "") -> None:
        super().__init__(text)
        self.cure = cure
        """The setting with which the run would pass over such a step."""


class NonFiniteError(BadStepError):
    """Loss or gradient was not finite."""


class SpikeError(BadStepError):
    """The gradient norm was far above those before."""


@contextlib.contextmanager
def own_run(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Hold the run folder for as long as the context lasts. Raises ValueError if it is in use."""
    if not ranks.is_first:
        ranks.wait()
        yield
        return
    out = check_out(config)
    made = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out) as lock:
        try:
            ranks.wait()
            yield
        except BaseException:
            # A start that was refused leaves no trace: whoever sees a run folder sees a run.
            if made and [path.name for path in out.iterdir()] == [lock.name]:
                lock.unlink()
                for path in made:
                    with contextlib.suppress(OSError):
                        path.rmdir()
            raise


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Hold the lock of a run folder and yield its path. Raises ValueError if another process holds it."""
    path = out / ".lock"
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{out} is in use by another training process; wait for it or choose another `out`"
                ) from error
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # a refused start took it away between the two calls
            yield path
            return


def check_out(config: RunConfig) -> Path:
    """Return the run folder. Raises ValueError if a file stands in its place."""
    out = Path(config.out)
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise ValueError(f"out is {out}, and there is a file in the way; a run is a folder")
    return out


def write_records(config: RunConfig, *, step: int = 0, processes: int = 1) -> None:
    """Write `run.yaml`, the run as it was understood but for secrets, and add this start to `versions.json`.

    Call it when nothing can refuse the run any more: what is there speaks of the steps that were done.
    """
    text = yaml.safe_dump(public_dict(config), sort_keys=False)
    write_atomic(str(Path(config.out) / "run.yaml"), text.encode())
    _add_start(Path(config.out) / "versions.json", {"step": step, "processes": processes})


def write_bad_step(config: RunConfig, batch: Batch, ranks: Ranks, *, name: str, values: dict[str, float]) -> Path:
    """Write which samples this rank had in the step that went wrong, and return the path."""
    path = Path(config.out) / f"{name}-rank{ranks.rank}.json"
    record = {
        **{name: value if isinstance(value, int) else str(value) for name, value in values.items()},
        "position": batch.position.tolist(),
        "source": batch.source.tolist(),
        "key": [str(key) for key in batch.key],
    }
    with passing_full_disk(config):
        write_atomic(str(path), (json.dumps(record, indent=1) + "\n").encode())
    return path


@contextlib.contextmanager
def passing_full_disk(config: RunConfig) -> Iterator[None]:
    """Let a full disk be a warning where the run is to go on training without room."""
    try:
        yield
    except OSError as error:
        if config.checkpoint.on_full_disk == "stop" or not is_full_disk(error):
            raise
        log.warning("%s; training goes on (checkpoint.on_full_disk)", error)


def _add_start(path: Path, facts: dict[str, Any]) -> None:
    """Write what computes from now on, and behind it each start so far: weights may come of several versions."""
    versions: dict[str, Any] = {"python": platform.python_version(), "git_commit": _git_commit()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    starts = [*_starts(path), {"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts, **versions}]
    write_atomic(str(path), (json.dumps(versions | {"starts": starts}, indent=1) + "\n").encode())


def _starts(path: Path) -> list[Any]:
    """Return the starts that `versions.json` tells of; of one that older versions wrote, the one it tells of."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(data, dict):
        return []
    starts = data.get("starts", [data])
    return starts if isinstance(starts, list) else []


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

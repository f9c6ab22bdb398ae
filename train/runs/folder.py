"""The folder of a run: who owns it and what it records.

One run at a time writes into a folder; the lock dies with its process, so a killed run blocks nothing.
"""

import contextlib
import fcntl
import json
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import yaml

from headrace.files import write_atomic
from headrace.pipeline import Batch
from headrace.train.config import RunConfig, public_dict
from headrace.train.parallel.ranks import Ranks

PACKAGES = ("headrace", "torch", "numpy", "safetensors", "open_clip_torch", "simplejpeg", "pillow")


class BadStepError(ValueError):
    """A step would have spoiled the weights; raised on all ranks before they moved."""


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
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{out} is in use by another training process; wait for it or choose another `out`"
            ) from error
        ranks.wait()
        yield


def check_out(config: RunConfig) -> Path:
    """Return the run folder. Raises ValueError if a file stands in its place."""
    out = Path(config.out)
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise ValueError(f"out is {out}, and there is a file in the way; a run is a folder")
    return out


def write_records(config: RunConfig) -> None:
    """Write `run.yaml`, the run as it was understood but for secrets, and `versions.json`, what computes it.

    Call it when nothing can refuse the run any more: what is there speaks of the steps that were done.
    """
    text = yaml.safe_dump(public_dict(config), sort_keys=False)
    write_atomic(str(Path(config.out) / "run.yaml"), text.encode())
    _write_versions(Path(config.out) / "versions.json")


def write_bad_step(config: RunConfig, batch: Batch, ranks: Ranks, *, name: str, values: dict[str, float]) -> Path:
    """Write which samples this rank had in the step that went wrong, and return the path."""
    path = Path(config.out) / f"{name}-rank{ranks.rank}.json"
    record = {
        **{name: value if isinstance(value, int) else str(value) for name, value in values.items()},
        "position": batch.position.tolist(),
        "source": batch.source.tolist(),
        "key": [str(key) for key in batch.key],
    }
    write_atomic(str(path), (json.dumps(record, indent=1) + "\n").encode())
    return path


def _write_versions(path: Path) -> None:
    versions = {"python": platform.python_version(), "git_commit": _git_commit()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    write_atomic(str(path), (json.dumps(versions, indent=1) + "\n").encode())


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

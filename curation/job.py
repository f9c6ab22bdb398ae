"""The folder of one curation job: where each stage's files are, and who may write them.

`owner.json` exists only while a driver runs, so that finished jobs are the same bytes whoever made them (but for
`logs/`). Ownership guards against two drivers, not against a kill; commits do that.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace import files

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 255

SCHEMA_VERSION = 2
# Of schema 1 the one ledger lies in ledger/ itself; it is read as it is, new ones are written beside it.
READ_SCHEMAS = (1, 2)

# What a job writes into its folder.
PARTS = (
    "recipe.yaml",
    "input",
    "raw",
    "annotations",
    "ledger",
    "dataset",
    "datasets",
    "build",
    "report",
    "logs",
)


@dataclass(frozen=True, slots=True)
class Job:
    """The URLs of a job's parts."""

    url: str

    @property
    def raw(self) -> str:
        """Raw shards in img2dataset's layout."""
        return files.join(self.url, "raw")

    def annotations(self, name: str, digest: str) -> str:
        """The tables of one annotator with one set of settings."""
        return files.join(self.url, "annotations", f"{name}-{digest[:8]}")

    @property
    def ledgers(self) -> str:
        """One folder for each decision on every row, and what they share."""
        return files.join(self.url, "ledger")

    @property
    def dataset(self) -> str:
        """The published dataset."""
        return self.dataset_named("")

    @property
    def datasets(self) -> str:
        """The datasets beside the published one, by name."""
        return files.join(self.url, "datasets")

    def dataset_named(self, name: str) -> str:
        """A dataset beside the published one; of the empty name the published one."""
        return files.join(self.datasets, name) if name else files.join(self.url, "dataset")

    def build_failures(self, name: str = "") -> str:
        """What build could not write of a dataset, by output shard."""
        return files.join(self.url, "build", *([name] if name else []), "failures")

    @property
    def report(self) -> str:
        """The report's two files."""
        return files.join(self.url, "report")

    @property
    def logs(self) -> str:
        """What stages and units logged: no part of the result."""
        return files.join(self.url, "logs")


@contextlib.contextmanager
def own_job(job: Job, *, take_over: bool = False) -> Iterator[Job]:
    """Hold the job for this process: one driver at a time. Writes `job.json`.

    An owner that died on this host is replaced. Raises ValueError if another one is alive, or may be, and for a folder
    that is no job but holds what a job would write over, such as the user's own `recipe.yaml`.
    """
    check_folder(job)
    _check_not_taken(job)
    files.put_if_absent(_schema_url(job), (json.dumps({"schema": SCHEMA_VERSION}) + "\n").encode())
    _check_schema(job)
    _claim(job, take_over)
    try:
        files.remove_leftovers(job.url)  # of a driver that was killed while it wrote recipe.yaml or owner.json
        yield job
    finally:
        files.remove(_owner_url(job))


def check_job(job: Job, *, take_over: bool = False) -> None:
    """Raise ValueError for what `own_job` would refuse; nothing is written that stays."""
    check_folder(job)
    _check_can_be_made(job)
    _check_not_taken(job)
    if files.exists(_schema_url(job)):
        _check_schema(job)
    owner = _owner(job)
    if owner is not None:
        _check_owner(job, owner, take_over)


def check_folder(job: Job) -> None:
    """Raise ValueError if a file stands where the job's folder, or one above it, would be."""
    if not files.is_local(job.url):
        return
    folder = files.local_path(job.url)
    for path in (folder, *folder.parents):
        if _is_file(path):
            raise ValueError(f"job: {path} is a file, not a folder; name another job folder")


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # a name too long for the file system: no file has it
        return False


def _check_can_be_made(job: Job) -> None:
    """Raise ValueError if the job's folder is not there and cannot be made, or is there and cannot be written."""
    if not files.is_local(job.url):
        return
    folder = files.local_path(job.url)
    try:
        there = next(path for path in (folder, *folder.parents) if len(path.name) < MAX_NAME_BYTES and path.is_dir())
        for part in folder.relative_to(there).parts:
            if len(os.fsencode(part)) > MAX_NAME_BYTES:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        Path(tempfile.mkdtemp(dir=there, prefix=".headrace-")).rmdir()
    except OSError as error:
        raise ValueError(f"job: {folder} cannot be written: {error.strerror}; name another job folder") from error


def write_recipe(job: Job, text: str) -> None:
    """Write `recipe.yaml`: the recipe of the last stage that finished, so that a run that is refused leaves it."""
    files.write_atomic(files.join(job.url, "recipe.yaml"), text.encode())


def _check_not_taken(job: Job) -> None:
    taken = [name for name in PARTS if files.exists(files.join(job.url, name))]
    if taken and not files.exists(_schema_url(job)):
        raise ValueError(
            f"{job.url} is no job (no job.json) but holds {', '.join(taken)}, which a job would write over; "
            "name another job folder"
        )


def _schema_url(job: Job) -> str:
    return files.join(job.url, "job.json")


def _check_schema(job: Job) -> None:
    url = _schema_url(job)
    try:
        schema = json.loads(files.read_bytes(url))["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url} is not a job file of headrace; choose another job folder") from error
    if schema not in READ_SCHEMAS:
        known = " and ".join(map(str, READ_SCHEMAS))
        raise ValueError(f"{url}: job of schema {schema}, this headrace reads schemas {known}")


def _owner_url(job: Job) -> str:
    return files.join(job.url, "owner.json")


def _claim(job: Job, take_over: bool) -> None:
    with _exclusive(job):
        mine = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid())})
        owner = None
        while owner is None:  # it may end between the two looks
            if files.put_if_absent(_owner_url(job), mine.encode()):
                log.info("%s: owned by process %d on %s now", job.url, os.getpid(), socket.gethostname())
                return
            owner = _owner(job)
        _check_owner(job, owner, take_over)
        log.log(
            logging.WARNING if take_over else logging.INFO,
            "%s: its owner, process %s on %s, is gone%s; process %d on %s owns it now",
            job.url,
            owner.get("process"),
            owner.get("host"),
            " (--take-over says so)" if take_over else "",
            os.getpid(),
            socket.gethostname(),
        )
        files.write_atomic(_owner_url(job), mine.encode())


def _check_owner(job: Job, owner: dict[str, Any], take_over: bool) -> None:
    """Raise ValueError if the owner is alive, or may be."""
    if not owner and not take_over:
        raise ValueError(
            f"{_owner_url(job)} is damaged and does not say who owns the job; "
            "pass --take-over if you know that no other driver runs"
        )
    same_host = owner.get("host") == socket.gethostname()
    dead = same_host and _started(owner["process"]) != owner.get("started")
    if not (dead or take_over):
        raise ValueError(
            f"{job.url} is owned by process {owner.get('process')} on {owner.get('host')}; "
            "wait for it, or pass --take-over if you know that it is gone"
        )


def _owner(job: Job) -> dict[str, Any] | None:
    """Return what `owner.json` says, {} if it is damaged; None if there is none any more."""
    try:
        data = json.loads(files.read_bytes(_owner_url(job)))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("process"), int) else {}


@contextlib.contextmanager
def _exclusive(job: Job) -> Iterator[None]:
    """Serialise claims on a local folder, as two drivers may find the same dead owner at once."""
    if not files.is_local(job.url):
        yield
        return
    handle = os.open(files.local_path(job.url), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _started(process: int) -> str:
    """Return the kernel's start time of a process (its number may be reused); empty if it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]

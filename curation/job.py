"""The folder of one curation job: where each stage's files are, and who may write them.

`owner.json` exists only while a driver runs, so that finished jobs are the same bytes whoever made them (but for
`logs/`, and the times in `input/permissions`). Ownership guards against two drivers, not against a kill; commits do
that.
"""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace import atomic, files, urlpath
from headrace.curation.forgotten import check_finished
from headrace.lease import Fence, check_free, fence_of, find_living, held, holder_of
from headrace.shards.quarantine import Quarantine

MAX_NAME_BYTES = 255

SCHEMA_VERSION = 2
# Of schema 1 the one ledger lies in ledger/ itself; it is read as it is, new ones are written beside it.
READ_SCHEMAS = (1, 2)

# What a job writes into its folder.
PARTS = (
    "recipe.yaml",
    "input",
    "raw",
    "spool",
    "annotations",
    "ledger",
    "dataset",
    "datasets",
    "build",
    "forgotten",
    "report",
    "logs",
    "parts",
    "quarantine",
)

ADVICE = "wait for it, or pass --take-over if you know that it is gone"
HOLDER_SUFFIX = ".holder"
"""Of the record of the process that does a part of a stage."""


@dataclass(frozen=True, slots=True)
class Job:
    """The URLs of a job's parts."""

    url: str

    @property
    def raw(self) -> str:
        """Raw shards in img2dataset's layout."""
        return urlpath.join(self.url, "raw")

    @property
    def spool(self) -> str:
        """What has come of raw shards that are not finished; gone when fetch is."""
        return urlpath.join(self.url, "spool")

    def annotations(self, name: str, digest: str) -> str:
        """The tables of one annotator with one set of settings."""
        return urlpath.join(self.url, "annotations", f"{name}-{digest[:8]}")

    @property
    def ledgers(self) -> str:
        """One folder for each decision on every row, and what they share."""
        return urlpath.join(self.url, "ledger")

    @property
    def dataset(self) -> str:
        """The published dataset."""
        return self.dataset_named("")

    @property
    def datasets(self) -> str:
        """The datasets beside the published one, by name."""
        return urlpath.join(self.url, "datasets")

    def dataset_named(self, name: str) -> str:
        """A dataset beside the published one; of the empty name the published one."""
        return urlpath.join(self.datasets, name) if name else urlpath.join(self.url, "dataset")

    def build_failures(self, name: str = "") -> str:
        """What build could not write of a dataset, by output shard."""
        return urlpath.join(self.url, "build", *([name] if name else []), "failures")

    @property
    def report(self) -> str:
        """The report's two files."""
        return urlpath.join(self.url, "report")

    @property
    def parts(self) -> str:
        """What the parts of stages (`--part I/N`) tell each other; gone when a stage is finished."""
        return urlpath.join(self.url, "parts")

    def quarantine(self, stage: str) -> Quarantine:
        """Units of work of a stage that killed their worker twice; gone when the stage is finished."""
        return Quarantine(urlpath.join(self.url, "quarantine", stage))

    @property
    def logs(self) -> str:
        """What stages and units logged: no part of the result."""
        return urlpath.join(self.url, "logs")


@contextlib.contextmanager
def own_job(job: Job, *, take_over: bool = False, forgetting: bool = False) -> Iterator[Job]:
    """Hold the job for this process: one driver at a time. Writes `job.json`.

    An owner that is gone is replaced: one that died on this host, or that has been silent for ten minutes. Raises
    ValueError if another one is alive, or may be, or a part of a stage (`--part`) is, and for a folder that is no job
    but holds what a job would write over, such as the user's own `recipe.yaml`; unless `forgetting`, also for a job
    whose last take-down is not finished.
    """
    begin_job(job, forgetting=forgetting)
    with held(_owner_url(job), what=f"{job.url} is owned", advice=ADVICE, take_over=take_over) as lease:
        if not take_over:
            check_no_part_runs(job)
        atomic.remove_leftovers(job.url)  # of a driver that was killed while it wrote recipe.yaml or owner.json
        yield job
        lease.check()


def fence_of_owner(job: Job) -> Fence:
    """Return what work of the driver of the job counts on; nothing where nobody owns it.

    Raises OSError if another process owns it by now.
    """
    return fence_of(_owner_url(job))


def fence_beside_owner(job: Job) -> Fence:
    """Return what a part of a stage counts on: that nobody else than now owns the whole job."""
    found = holder_of(_owner_url(job))
    return Fence(((_owner_url(job), found.token if found is not None else ""),))


def begin_job(job: Job, *, forgetting: bool = False) -> None:
    """Write `job.json` if it is not there. Raises ValueError for a folder that is no job, or of another schema.

    Unless `forgetting`, also for a job whose last take-down was begun and is not finished.
    """
    check_folder(job)
    _check_not_taken(job)
    atomic.put_if_absent(_schema_url(job), (json.dumps({"schema": SCHEMA_VERSION}) + "\n").encode())
    _check_schema(job)
    if not forgetting:
        check_finished(job.url)


def check_job(job: Job, *, take_over: bool = False) -> None:
    """Raise ValueError for what `own_job` would refuse; nothing is written that stays."""
    check_folder(job)
    _check_can_be_made(job)
    _check_not_taken(job)
    if files.exists(_schema_url(job)):
        _check_schema(job)
    check_finished(job.url)
    check_no_owner(job, take_over=take_over, watch=False)
    if not take_over:
        check_no_part_runs(job, watch=False)


def check_no_owner(job: Job, *, take_over: bool = False, watch: bool = True) -> None:
    """Raise ValueError if a driver of the whole job is alive, or may be; without `watch` at first sight."""
    check_free(_owner_url(job), what=f"{job.url} is owned", advice=ADVICE, take_over=take_over, watch=watch)


def check_no_part_runs(job: Job, *, but_stage: str = "", watch: bool = True) -> None:
    """Raise ValueError if a part of a stage, other than `but_stage`, is under way; without `watch` at first sight."""
    stages = [stage for stage in files.list_names(job.parts) if stage != but_stage]
    folders = [urlpath.join(job.parts, stage) for stage in stages]
    urls = [urlpath.join(folder, name) for folder in folders for name in files.list_names(folder, HOLDER_SUFFIX)]
    found = {url: holder for url in urls if (holder := holder_of(url)) is not None}
    living = find_living({url: one for url, one in found.items() if watch or not one.seems_silent})
    if living is not None:
        url, holder = living
        part, stage = urlpath.basename(url).removesuffix(HOLDER_SUFFIX), urlpath.basename(urlpath.parent(url))
        raise ValueError(
            f"{job.url}: part {part} of {stage} is under way by {holder}; wait for it, or pass --take-over if you know "
            "that it is gone"
        )


def check_folder(job: Job) -> None:
    """Raise ValueError if a file stands where the job's folder, or one above it, would be."""
    if not urlpath.is_local(job.url):
        return
    folder = urlpath.local_path(job.url)
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
    if not urlpath.is_local(job.url):
        return
    folder = urlpath.local_path(job.url)
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
    atomic.write_atomic(urlpath.join(job.url, "recipe.yaml"), text.encode())


def _check_not_taken(job: Job) -> None:
    taken = [name for name in PARTS if files.exists(urlpath.join(job.url, name))]
    if taken and not files.exists(_schema_url(job)):
        raise ValueError(
            f"{job.url} is no job (no job.json) but holds {', '.join(taken)}, which a job would write over; "
            "name another job folder"
        )


def _schema_url(job: Job) -> str:
    return urlpath.join(job.url, "job.json")


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
    return urlpath.join(job.url, "owner.json")

"""Which ledger explains which dataset of a job.

`dataset/` is the published one, `datasets/NAME/` are others. Each names the ledger it was built from: in dataset.json
once it is finished, and in every commit record before.
"""

import json
from dataclasses import dataclass

from headrace import files, urlpath
from headrace.curation.job import Job
from headrace.curation.ledger import Decision, latest_decision, list_ledgers, read_decision
from headrace.shards.commit import committed, read_commit
from headrace.shards.manifest import SUMMARY_NAME


@dataclass(frozen=True, slots=True)
class Explained:
    """A ledger, and the dataset that was built from it."""

    decision: Decision
    dataset: str | None
    """Name of the dataset, empty for the published one; None: no dataset was built from this ledger."""

    @property
    def dataset_url(self) -> str | None:
        """Where the dataset lies."""
        return None if self.dataset is None else self.decision.job.dataset_named(self.dataset)

    def __str__(self) -> str:
        built = "no dataset is built from it" if self.dataset is None else shown_name(self.dataset)
        return f"ledger {self.decision.ledger.name} ({built})"


def shown_name(dataset: str) -> str:
    """Return a dataset's folder as it stands in the job."""
    return f"datasets/{dataset}" if dataset else "dataset"


def recipe_dataset(job: str, dataset: str) -> tuple[str, str]:
    """Return where a recipe's dataset lies, and a short name of it."""
    return Job(job).dataset_named(dataset), dataset or urlpath.basename(job.rstrip("/"))


def list_datasets(job: Job) -> list[str]:
    """Return the names of the datasets that are there, finished or not; the published one (empty name) first."""
    names = ["", *files.list_names(job.datasets)]
    return [name for name in names if built_from(job.dataset_named(name)) is not None]


def built_from(dataset_url: str) -> str | None:
    """Return the digest of the ledger that a dataset is built from, finished or not; None if nothing is built."""
    try:
        summary = json.loads(files.read_bytes(urlpath.join(dataset_url, SUMMARY_NAME)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        names = committed(dataset_url)
        summary = read_commit(dataset_url, names[0]) if names else {}
    digest = summary.get("ledger") if isinstance(summary, dict) else None
    return digest if isinstance(digest, str) else None


def explain_dataset(job: Job, *, dataset: str | None = None, ledger: str = "") -> Explained:
    """Return the ledger to speak of: the named dataset's, the named one, or else the published dataset's.

    Without a dataset, the ledger that select wrote last. `ledger` may be the start of a name or digest. Raises
    ValueError naming what there is.
    """
    if ledger:
        found = _of_ledger(job, ledger)
        if dataset is None:
            return Explained(found, dataset_of(found))
        if built_from(job.dataset_named(dataset)) != found.summary.digest:
            raise ValueError(f"{job.url}: {shown_name(dataset)} is not built from ledger {found.ledger.name}")
        return Explained(found, dataset)
    if dataset is None and built_from(job.dataset) is None:
        decision = latest_decision(job)
        return Explained(decision, dataset_of(decision))
    name = dataset or ""
    digest = built_from(job.dataset_named(name))
    if digest is None:
        known = ", ".join(map(shown_name, list_datasets(job))) or "none"
        raise ValueError(f"{job.url} holds no dataset {shown_name(name)}; built are: {known}")
    for decision in _decisions(job):
        if decision.summary.digest == digest:
            return Explained(decision, name)
    raise ValueError(
        f"{job.dataset_named(name)} was built from the ledger {digest[:16]}, which is not in {job.ledgers} any more; "
        "run `headrace select` with the recipe that it was built with"
    )


def explain_ledger(job: Job, digest: str) -> Explained | None:
    """Return the ledger of that digest, by which a dataset names it; None if the job, or the ledger, is not there."""
    for ledger in list_ledgers(job):
        decision = read_decision(job, ledger)
        if decision.summary.digest == digest:
            return Explained(decision, dataset_of(decision))
    return None


def dataset_of(decision: Decision, prefer: str = "") -> str | None:
    """Return the name of a dataset that is built from a ledger: `prefer` if it is, else the first one that is."""
    for name in dict.fromkeys([prefer, "", *files.list_names(decision.job.datasets)]):
        if built_from(decision.job.dataset_named(name)) == decision.summary.digest:
            return name
    return None


def _of_ledger(job: Job, start: str) -> Decision:
    found = [
        decision
        for decision in _decisions(job)
        if any(name.startswith(start) for name in (decision.ledger.name, decision.summary.digest))
    ]
    if len(found) != 1:
        known = ", ".join(ledger.name for ledger in list_ledgers(job)) or "none"
        raise ValueError(f"{job.ledgers}: {len(found)} ledgers start with {start!r}; there are: {known}")
    return found[0]


def _decisions(job: Job) -> list[Decision]:
    return [read_decision(job, ledger) for ledger in list_ledgers(job)]

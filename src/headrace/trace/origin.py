"""Where the samples of a source come from: a curation job with its ledger, an import, or tars of others.

A curated dataset names its ledger by digest; the job is the folder that the dataset lies in, or one that the user
names. Whatever cannot be told is said, and never guessed.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace import files, urlpath
from headrace.curation.datasets import Explained, built_from, explain_ledger
from headrace.curation.job import Job
from headrace.curation.ledger import rows_of_keys
from headrace.curation.why import story_of
from headrace.shards.dataset import Dataset
from headrace.shards.imports.run import JOB_NAME
from headrace.shards.manifest import FOREIGN_LAYOUT
from headrace.text import without_secrets

log = logging.getLogger(__name__)

ROW_FACTS = ("uid", "input_file", "input_row", "raw_shard", "key", "caption_of", "captions_of")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What is known of where a dataset comes from."""

    kind: str
    """`curated`, `imported`, `tars` (of others, indexed in place) or `dataset`."""
    text: str
    """One sentence for people."""
    explained: Explained | None = None
    """The ledger of a curated dataset, where the job is there."""


def origin_of(dataset: Dataset, jobs: Sequence[str] = ()) -> Origin:
    """Return where a dataset comes from; `jobs` are looked at where the job is not the folder it lies in."""
    where = without_secrets(dataset.url)
    if dataset.layout == FOREIGN_LAYOUT:
        return Origin(kind="tars", text=f"{where}: tars of others, indexed in place; no ledger tells of them")
    digest = built_from(dataset.url)
    if digest is not None:
        return _curated(where, digest, [*_parents(dataset.url), *jobs])
    imported = _read_json(urlpath.join(dataset.url, JOB_NAME))
    if imported is not None:
        kind, count = imported.get("kind", "images"), imported.get("num_inputs", "?")
        text = f"{where}: imported from {count} inputs ({kind}); no ledger tells of them"
        return Origin(kind="imported", text=without_secrets(text))
    return Origin(kind="dataset", text=f"{where}: a dataset without a ledger and without a record of an import")


def _curated(where: str, digest: str, jobs: Sequence[str]) -> Origin:
    for url in jobs:
        try:
            explained = explain_ledger(Job(url), digest)
        except (ValueError, OSError) as error:
            log.warning("%s is not looked at: %s", without_secrets(url), error)
            continue
        if explained is not None:
            text = f"{where}: curated in {without_secrets(url)}, ledger {explained.decision.ledger.name}"
            return Origin(kind="curated", text=text, explained=explained)
    advice = "its job is not there: name it (headrace trace --job JOB, headrace why JOB KEY)"
    text = f"{where}: curated, by the ledger {digest[:16]}; {advice}"
    return Origin(kind="curated", text=text)


def _parents(dataset_url: str) -> list[str]:
    """Return the job that a dataset lies in, by the names of the folders."""
    parent = urlpath.parent(dataset_url)
    if urlpath.basename(dataset_url) == "dataset":
        return [parent]
    return [urlpath.parent(parent)] if urlpath.basename(parent) == "datasets" else []


def _read_json(url: str) -> dict[str, Any] | None:
    try:
        data = json.loads(files.read_bytes(url))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def verdicts(origin: Origin, keys: Sequence[str], *, in_full: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the ledger says of samples, by key: their row, and of the keys `in_full` the verdict of each step.

    Where a raw shard is gone, the row is all there is, and `note` says so.
    """
    if origin.explained is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    wanted = set(in_full)
    for key, row in rows_of_keys(origin.explained.decision.ledger, list(dict.fromkeys(keys))).items():
        verdict = {"ledger": origin.explained.decision.ledger.name, "kept": row["kept"]}
        verdict |= {f"raw_{name}" if name == "key" else name: row.get(name) for name in ROW_FACTS}
        found[key] = verdict | (_steps(origin.explained, row) if key in wanted else {})
    return found


def _steps(explained: Explained, row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        story = story_of(explained, dict(row))
    except (ValueError, OSError) as error:
        log.info("of row %s only the ledger is told: %s", row["uid"], error)
        return {"steps": [], "note": f"the verdicts of single steps are not there: {without_secrets(str(error))}"}
    return {"steps": [dataclasses.asdict(step) for step in story.steps]}

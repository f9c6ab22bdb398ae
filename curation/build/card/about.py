"""`card.json`: the facts that croissant.json and README.md follow from, and writing all three.

They are a function of the recipe, the ledger and the shards: no clock, no host, no place of a file. So a take-down can
write them again without the recipe, and equal datasets have equal cards.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace import atomic, files, urlpath
from headrace.config import canonical_json, config_to_dict
from headrace.curation.annotate.annotators import remarks_of
from headrace.curation.build.card.croissant import croissant
from headrace.curation.build.card.readme import readme
from headrace.curation.build.config import CardConfig
from headrace.curation.ledger import Decision, LedgerSummary, StepSummary
from headrace.shards.commit import SHARD_FIELDS, committed, read_commit
from headrace.shards.forgotten import FOLDER as FORGOTTEN_FOLDER
from headrace.shards.parquet import open_parquet
from headrace.shards.write import manifest_bytes

log = logging.getLogger(__name__)

ABOUT_NAME, CROISSANT_NAME, README_NAME = "card.json", "croissant.json", "README.md"
CARD_NAMES = (ABOUT_NAME, CROISSANT_NAME, README_NAME)
SCHEMA = 1
_UNTOLD: Mapping[str, Any] = {
    "card": config_to_dict(CardConfig(title="dataset")),
    "sources": [],
    "fetched": False,
    "signals": [],
    "blocklist": False,
    "unsafe_images": "off",
    "build": {},
}


def write_card(dataset_url: str, about: Mapping[str, Any]) -> None:
    """Write `card.json`, `croissant.json` and `README.md` of a dataset whose shards are committed."""
    numbers = _numbers(dataset_url)
    written = {
        ABOUT_NAME: canonical_json(dict(about)) + "\n",
        CROISSANT_NAME: json.dumps(croissant(about, numbers), indent=1, ensure_ascii=False) + "\n",
        README_NAME: readme(about, numbers),
    }
    for name, text in written.items():
        atomic.write_atomic(urlpath.join(dataset_url, name), text.encode())


def about_dataset(decision: Decision, recipe: Mapping[str, Any], *, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the facts of a dataset: `recipe` is what `stages` tells of the recipe."""
    folders = decision.annotation_folders()
    recipe = {**_UNTOLD, **recipe}
    return {
        "schema": SCHEMA,
        **recipe,
        "classes": list(classes),
        "annotators": [made for name, url in folders.items() if (made := _annotator(name, url)) is not None],
        "remarks": remarks_of(folders),
        "ledger": ledger_facts(decision.summary),
    }


def ledger_facts(summary: LedgerSummary) -> dict[str, Any]:
    """Return what a card says of a ledger: the funnel, with the settings of each step that are numbers or words."""
    steps = [
        {
            "name": step.name,
            "step": step.step,
            "settings": _plain_settings(step.settings),
            **_evaluation(step),
            "rows_in": step.rows_in,
            "dropped": step.dropped,
            "rows_out": step.rows_out,
            "threshold": step.threshold,
        }
        for step in summary.steps
    ]
    return {"digest": summary.digest, "rows": summary.rows, "kept": summary.kept, "steps": steps}


def write_card_again(dataset_url: str, summary: LedgerSummary | None, classes: Sequence[str]) -> None:
    """Write the card of a dataset again after a take-down; nothing happens where it has none."""
    try:
        about = json.loads(files.read_bytes(urlpath.join(dataset_url, ABOUT_NAME)))
    except FileNotFoundError:
        return
    except ValueError as error:
        log.warning("%s/%s is damaged (%s); the card stays as it was", dataset_url, ABOUT_NAME, error)
        return
    if summary is not None:
        about["ledger"] = ledger_facts(summary)
    write_card(dataset_url, {**about, "classes": list(classes)})


def _annotator(name: str, folder: str) -> dict[str, Any] | None:
    """Return name, version and the sha256 of each model file of an annotator; None if its folder does not say."""
    try:
        made = json.loads(files.read_bytes(urlpath.join(folder, "annotator.json")))
    except (FileNotFoundError, ValueError):
        return None
    models = made.get("files") or {}
    return {"name": name, "version": made.get("version"), "models": dict(sorted(models.items()))}


def _evaluation(step: StepSummary) -> dict[str, Any]:
    """Return which evaluation sets a step kept out, by name, and what share of their copies it finds, if it is one."""
    sets = [item["name"] for item in step.settings.get("against") or () if isinstance(item, dict) and "name" in item]
    if not sets:
        return {}
    return {"evaluation": sets} | {
        name: step.details[name] for name in ("compared_by", "measured") if name in step.details
    }


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are numbers, truth values or words: lists and mappings hold places of files."""
    return {
        name: value
        for name, value in settings.items()
        if isinstance(value, int | float | str) and name not in ("step", "name") and value != ""
    }


def _numbers(dataset_url: str) -> dict[str, Any]:
    """Return the totals of a dataset, the sum of its manifest, its shards, and the columns of its index."""
    names = committed(dataset_url)
    records = [{**read_commit(dataset_url, name, fields=SHARD_FIELDS), "name": name} for name in names]
    manifest = manifest_bytes(records)
    columns: list[tuple[str, pa.DataType]] = []
    if names:
        with open_parquet(urlpath.join(dataset_url, "shards", f"{names[0]}.parquet")) as file:
            columns = [(field.name, field.type) for field in file.schema]
    return {
        "num_shards": len(records),
        "num_samples": sum(record["num_samples"] for record in records),
        "num_bytes": sum(record["num_bytes"] for record in records),
        "num_failed": sum(int(record.get("num_failed") or 0) for record in records),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "manifest_bytes": len(manifest),
        "shards": records,
        "columns": columns,
        "taken_down": _taken_down(dataset_url),
    }


def _taken_down(dataset_url: str) -> dict[str, int]:
    """Return how often samples were taken down since the dataset was built, and how many."""
    folder = urlpath.join(dataset_url, FORGOTTEN_FOLDER)
    records = [json.loads(files.read_bytes(urlpath.join(folder, name))) for name in files.list_names(folder, ".json")]
    return {"times": len(records), "samples": sum(len(one["samples"]) for one in records)}

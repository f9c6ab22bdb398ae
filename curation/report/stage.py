"""Write `report.html` and `report.json` for a job of curation, or for any indexed dataset.

Both are a function of the data and the recipe alone: no times, no paths but the recipe's own. The report of a job
counts the ledger that is there now, and shows pictures of a dataset only if it was built from it.
"""

import json
from dataclasses import dataclass
from typing import Any

from headrace import files
from headrace.config import canonical_json
from headrace.curation.datasets import Explained
from headrace.curation.ledger import LedgerSummary
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.galleries import Galleries, choose
from headrace.curation.report.gather import (
    TOP_HOSTS,
    Numbers,
    build_failures,
    dataset_numbers,
    gather_dataset,
    gather_job,
)
from headrace.curation.report.render import render
from headrace.curation.report.values import cuts_of
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.progress import Progress
from headrace.shards.units import OnProgress, no_progress

SCHEMA_VERSION = 1
OTHER_RECIPE = "The recipe below, of the last stage that ran, is not the one that decided this ledger; the funnel is."


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """Where the report is."""

    html: str
    json: str
    num_pictures: int

    def __str__(self) -> str:
        return f"{self.html} ({self.num_pictures} pictures), {self.json}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRecipe:
    """The recipe that a report prints."""

    text: str = ""
    decided: bool = True
    """False if another one decided the ledger."""


def plan_report(out: str) -> list[str]:
    """Return what `run_report` would do."""
    return [f"write {files.join(out, 'report.html')} and report.json"]


def run_report(
    explained: Explained,
    config: ReportConfig,
    out: str,
    *,
    recipe: ShownRecipe,
    on_progress: OnProgress = no_progress,
) -> ReportSummary:
    """Write the report of a ledger, and of the dataset that is built from it, into the folder `out`."""
    on_progress(Progress(done=0, total=1, noun="reports"))
    decision = explained.decision
    numbers = gather_job(decision)
    dataset = _built_dataset(explained)
    galleries = choose(decision, dataset, numbers.duplicates, samples=config.samples, pixels=config.thumbnail_pixels)
    report = _job_report(explained, numbers, dataset)
    report["title"] = config.title or "Curation report"
    if not recipe.decided:
        report["notes"].append(OTHER_RECIPE)
    if config.samples and not _num_pictures(galleries):
        report["notes"].append(
            "No pictures: a picture is shown only where its face boxes are known (annotate.faces) and blurred."
        )
    summary = _write(out, report, galleries, recipe.text)
    on_progress(Progress(done=1, total=1, noun="reports"))
    return summary


def report_dataset(url: str, config: ReportConfig, out: str, *, index_dir: str | None = None) -> ReportSummary:
    """Write the report of an indexed dataset without a ledger: statistics only, no pictures."""
    dataset = open_dataset(url, index_dir=index_dir)
    numbers = gather_dataset(dataset)
    totals = dataset_numbers(dataset)
    facts = {name: totals.pop(name) for name in ("num_shards", "num_samples", "num_bytes")}
    report = {
        **_empty(),
        "title": config.title or "Dataset report",
        "facts": {**facts, **_distinct(numbers)},
        "histograms": {name: {**item.as_dict(), "cuts": []} for name, item in numbers.histograms.items()},
        "hosts": _hosts(numbers),
        "dataset": totals,
    }
    return _write(out, report, Galleries(), "")


def _empty() -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "subtitle": "",
        "notes": [],
        "funnel": [],
        "fetch_errors": {},
        "decode_errors": {},
        "build_failures": {"by_reason": {}, "rows": []},
        "duplicates": {"num_groups": 0, "num_dropped": 0, "group_sizes": {}},
    }


def _job_report(explained: Explained, numbers: Numbers, dataset: Dataset | None) -> dict[str, Any]:
    job, ledger = explained.decision.job, explained.decision.summary
    failures = {"by_reason": {}, "rows": []} if explained.dataset is None else build_failures(job, explained.dataset)
    fetched = ledger.rows - sum(numbers.errors.counts.values())
    facts: dict[str, Any] = {
        "input_rows": ledger.rows,
        "fetched": fetched,
        "kept": ledger.kept,
        "kept_share": round(100 * ledger.kept / ledger.rows, 2) if ledger.rows else 0.0,
    }
    totals: dict[str, Any] = {}
    notes = []
    if dataset is not None:
        totals = dataset_numbers(dataset)
        facts |= {name: totals.pop(name) for name in ("num_shards", "num_samples", "num_bytes")}
        facts["build_failures"] = sum(failures["by_reason"].values())
    else:
        notes.append("The dataset is not built from this ledger yet, so no published picture is shown.")
    if any(tally.forgot for tally in numbers.hosts.values()):
        notes.append("There are more hosts than are counted one by one; the counts of rare hosts are too low.")
    return {
        **_empty(),
        "subtitle": f"From {ledger.rows:,} rows to {ledger.kept:,}: {explained}",
        "notes": notes,
        "facts": {**facts, **_distinct(numbers)},
        "funnel": [
            {
                "name": step.name,
                "step": step.step,
                "settings": step.settings,
                "rows_in": step.rows_in,
                "dropped": step.dropped,
                "rows_out": step.rows_out,
                "threshold": step.threshold,
                "details": step.details,
            }
            for step in ledger.steps
        ],
        "fetch_errors": dict(numbers.errors.top(100)),
        "decode_errors": dict(numbers.decode_errors.top(100)),
        "build_failures": failures,
        "duplicates": _duplicates(numbers),
        "histograms": {
            name: {**item.as_dict(), "cuts": _cuts(ledger, name)} for name, item in numbers.histograms.items()
        },
        "hosts": _hosts(numbers),
        "dataset": totals,
    }


def _cuts(ledger: LedgerSummary, column: str) -> list[dict[str, Any]]:
    found = [(step.name, cut) for step in ledger.steps for cut in cuts_of(step) if cut.expression == column]
    return [{"step": name, "value": float(cut.threshold)} for name, cut in found if cut.threshold is not None]


def _duplicates(numbers: Numbers) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for count in sorted(numbers.duplicates.counts.values()):
        sizes[str(count + 1)] = sizes.get(str(count + 1), 0) + 1
    return {
        "num_groups": len(numbers.duplicates.counts),
        "num_dropped": sum(numbers.duplicates.counts.values()),
        "group_sizes": sizes,
    }


def _distinct(numbers: Numbers) -> dict[str, int]:
    return {f"distinct_{name}": sketch.count() for name, sketch in numbers.distinct.items()}


def _hosts(numbers: Numbers) -> list[dict[str, Any]]:
    return [
        {
            "host": host,
            "rows": rows,
            "failed": numbers.hosts["failed"].counts[host],
            "kept": numbers.hosts["kept"].counts[host],
            "images": numbers.host_images[host].count() if host in numbers.host_images else None,
        }
        for host, rows in numbers.hosts["rows"].top(TOP_HOSTS)
        if host
    ]


def _built_dataset(explained: Explained) -> Dataset | None:
    url = explained.dataset_url
    return open_dataset(url) if url is not None and files.exists(files.join(url, "dataset.json")) else None


def _num_pictures(galleries: Galleries) -> int:
    shown = [*galleries.faces, *galleries.kept]
    shown += [item for _, _, near, under in galleries.cuts for item in (*near, *under)]
    return len(shown) + sum(len(items) for _, _, items in galleries.groups)


def _write(out: str, report: dict[str, Any], galleries: Galleries, recipe_text: str) -> ReportSummary:
    report["galleries"] = {
        "cuts": [
            {"step": name, "threshold": threshold, "kept": _uids(near), "dropped": _uids(under)}
            for name, threshold, near, under in galleries.cuts
        ],
        "near_duplicates": [
            {"best": uid, "dropped": count, "shown": _uids(items)} for uid, count, items in galleries.groups
        ],
        "faces": _uids(galleries.faces),
        "kept": _uids(galleries.kept),
    }
    files.remove_leftovers(out)
    html, numbers = files.join(out, "report.html"), files.join(out, "report.json")
    text = json.dumps(json.loads(canonical_json(report)), indent=1, sort_keys=True, ensure_ascii=True)
    files.write_atomic(numbers, (text + "\n").encode())
    files.write_atomic(html, render(report, galleries, recipe_text))
    return ReportSummary(html=html, json=numbers, num_pictures=_num_pictures(galleries))


def _uids(items: list[Any]) -> list[str]:
    return [item.row["uid"] for item in items]

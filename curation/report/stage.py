"""Write `report.html` and `report.json` for a job of curation, or for any indexed dataset.

Both are a function of the data and the recipe alone: no times, no paths but the recipe's own. The report of a job
counts the ledger that is there now, and shows pictures of a dataset only if it was built from it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.annotate.annotators import remarks_of
from headrace.curation.datasets import Explained
from headrace.curation.ledger import LedgerSummary
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.galleries import Galleries, Pair, choose, choose_of_dataset
from headrace.curation.report.gather import (
    TOP_HOSTS,
    Numbers,
    build_failures,
    dataset_numbers,
    gather_dataset,
    gather_job,
)
from headrace.curation.report.render import render
from headrace.curation.report.shown.references import FindFaces
from headrace.curation.report.values import cuts_of
from headrace.curation.select.steps import step_of
from headrace.lease import NO_FENCE, Fence
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.foreign.unindexed import names_tars, open_tars
from headrace.shards.manifest import SUMMARY_NAME
from headrace.shards.progress import Progress
from headrace.shards.units import OnProgress, no_progress

SCHEMA_VERSION = 2
"""1 had no curves, effects, pairs and lists of rows."""
TOP_CLASSES = 12
FUNNEL_SHOWN = ("name", "rows_in", "dropped", "rows_out", "threshold")
OTHER_RECIPE = "The recipe below, of the last stage that ran, is not the one that decided this ledger; the funnel is."


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """Where the report is."""

    html: str
    json: str
    num_pictures: int
    facts: dict[str, Any] = field(default_factory=dict)
    """The numbers of the overview."""
    funnel: list[dict[str, Any]] = field(default_factory=list)
    """The steps, `FUNNEL_SHOWN` of each."""

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
    return [f"write {urlpath.join(out, 'report.html')} and report.json"]


def run_report(
    explained: Explained,
    config: ReportConfig,
    out: str,
    *,
    recipe: ShownRecipe,
    find_faces: FindFaces | None = None,
    on_progress: OnProgress = no_progress,
    fence: Fence = NO_FENCE,
) -> ReportSummary:
    """Write the report of a ledger, and of the dataset that is built from it, into the folder `out`.

    `find_faces` looks for faces in pictures of evaluation sets, which no annotator has seen. Raises OSError if another
    process owns the job by now, as `fence` tells.
    """
    on_progress(Progress(done=0, total=1, noun="reports"))
    decision = explained.decision
    numbers = gather_job(decision)
    dataset = built_dataset(explained)
    galleries = choose(decision, dataset, numbers.duplicates, config, find_faces)
    report = _job_report(explained, numbers, dataset)
    report["title"] = config.title or "Curation report"
    report["remarks"] = remarks_of(decision.annotation_folders())
    report["limits"] = limits(config)
    if not recipe.decided:
        report["notes"].append(OTHER_RECIPE)
    if config.num_samples and not any(galleries.shown()):
        report["notes"].append(
            "No pictures: a picture is shown only where its face boxes are known (annotate.faces) and blurred. For "
            "data that holds no people: report.pictures: all."
        )
    summary = _write(out, report, galleries, recipe.text, fence)
    on_progress(Progress(done=1, total=1, noun="reports"))
    return summary


def report_dataset(url: str, config: ReportConfig, out: str, *, index_dir: str | None = None) -> ReportSummary:
    """Write the report of a dataset without a ledger, or of tars; pictures only with `pictures: all`."""
    dataset = open_any(url, index_dir=index_dir)
    numbers = gather_dataset(dataset)
    totals = dataset_numbers(dataset)
    facts = {name: totals.pop(name) for name in ("num_shards", "num_samples", "num_bytes")}
    report = {
        **_empty(),
        "title": config.title or "Dataset report",
        # Tars without an index have no URLs and no sums: their number is not known, which is not none.
        "facts": {**facts, **{name: number for name, number in _distinct(numbers).items() if number}},
        "histograms": {name: {**item.as_dict(), "cuts": []} for name, item in numbers.histograms.items()},
        "hosts": _hosts(numbers),
        "dataset": totals,
        "categories": numbers.categories.as_dicts(),
        "sizes": numbers.sizes.as_dict(),
        "limits": limits(config),
    }
    return _write(out, report, choose_of_dataset(dataset, config), "")


def open_any(url: str, *, index_dir: str | None = None) -> Dataset:
    """Open a dataset, or tars that have no index: those are indexed first, into `index_dir` or the user's cache."""
    if names_tars(url) or not files.exists(urlpath.join(index_dir or url, SUMMARY_NAME)):
        return open_tars(url, index_dir=index_dir or "")
    return open_dataset(url, index_dir=index_dir)


def limits(config: ReportConfig) -> list[str]:
    """Return how much the page shows at most, whatever the size of the data."""
    return [
        f"{config.num_samples} pictures in a gallery, {config.pairs if config.num_samples else 0} pairs of a step that "
        f"drops copies (every one if it dropped no more), {config.rows} dropped rows of a step (the same), {TOP_HOSTS} "
        "hosts; which ones follows from the data, so two reports of one job are the same bytes.",
        "Counts are of all rows. The key report of the recipe sets the limits.",
    ]


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
        "host_failures": {"classes": [], "hosts": []},
        "curves": [],
        "distances": [],
        "effects": [],
        "categories": {},
        "sizes": {},
        "remarks": [],
        "limits": [],
        "dropped_rows": [],
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
        "host_failures": _host_failures(numbers),
        "curves": numbers.curves.as_dicts(),
        "distances": _distances(ledger, numbers),
        "effects": numbers.effects.as_dicts(numbers.histograms),
        "categories": numbers.categories.as_dicts(),
        "sizes": numbers.sizes.as_dict(),
        "dataset": totals,
    }


def _host_failures(numbers: Numbers) -> dict[str, Any]:
    """Return the classes of most failures, and the hosts of most failures with their rows of each class."""
    classes = [name for name, _ in numbers.errors.top(TOP_CLASSES)]
    top = [host for host, count in numbers.hosts["failed"].top(TOP_HOSTS) if host and count]
    hosts = [
        {"host": host, "failed": numbers.hosts["failed"].counts[host], "rows": numbers.hosts["rows"].counts[host]}
        | {"classes": [numbers.host_failures.counts[f"{host}\t{name}"] for name in classes]}
        for host in top
    ]
    return {"classes": classes, "hosts": hosts}


def _distances(ledger: LedgerSummary, numbers: Numbers) -> list[dict[str, Any]]:
    """Return for each step that cuts at a distance how far what it dropped is from what it was dropped for."""
    steps = {step.name: step for step in ledger.steps}
    return [
        {
            "step": name,
            "threshold": steps[name].threshold,
            "rows_in": steps[name].rows_in,
            # Only there, and by one number, each row is judged alone: with another limit, groups are others.
            "exact": step_of(steps[name]).links == "references"
            and sum(counts.values()) + steps[name].dropped.get("no-hash", 0) == sum(steps[name].dropped.values()),
            "measured": step_of(steps[name]).measured,
            "unjudged": steps[name].dropped.get("no-hash", 0),
            "counts": [[value, count] for value, count in sorted(counts.items())],
        }
        for name, counts in numbers.distances.items()
        if counts
    ]


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


def built_dataset(explained: Explained) -> Dataset | None:
    url = explained.dataset_url
    return open_dataset(url) if url is not None and files.exists(urlpath.join(url, "dataset.json")) else None


def _write(
    out: str, report: dict[str, Any], galleries: Galleries, recipe_text: str, fence: Fence = NO_FENCE
) -> ReportSummary:
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
        "pairs": [
            {"step": name, "dropped": dropped, "shown": _pairs(pairs)} for name, dropped, pairs in galleries.pairs
        ],
        "beyond": [
            {"step": name, "distance": distance, "compared": compared, "shown": _pairs(pairs)}
            for name, distance, compared, pairs in galleries.beyond
        ],
        "extremes": [
            {"what": extreme.title, "column": extreme.column, "rows": [[row["uid"], row["value"]] for row in rows]}
            for extreme, _, rows in galleries.extremes
        ],
        "dropped": {name: _uids(items) for name, items in galleries.dropped.items()},
    }
    report["dropped_rows"] = galleries.dropped_rows
    html, numbers = urlpath.join(out, "report.html"), urlpath.join(out, "report.json")
    text = json.dumps(json.loads(canonical_json(report)), indent=1, sort_keys=True, ensure_ascii=True)
    page = render(report, galleries, recipe_text)
    fence.check()
    atomic.remove_leftovers(out)
    atomic.write_atomic(numbers, (text + "\n").encode())
    fence.check()
    atomic.write_atomic(html, page)
    return ReportSummary(
        html=html,
        json=numbers,
        num_pictures=sum(1 for _ in galleries.shown()),
        facts=report["facts"],
        funnel=[{name: step[name] for name in FUNNEL_SHOWN} for step in report["funnel"]],
    )


def _pairs(pairs: list[Pair]) -> list[list[str]]:
    return [[pair.left.row["uid"], pair.right.row["uid"], pair.note] for pair in pairs]


def _uids(items: list[Any]) -> list[str]:
    return [item.row["uid"] for item in items]

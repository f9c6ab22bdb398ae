"""The report's numbers and pictures as one page.

Nothing is computed here; what the page shows is what `report.json` holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.curation.report.galleries import Galleries, Shown
from headrace.page import charts
from headrace.page import html as page
from headrace.page.charts import Bar
from headrace.page.html import Html, Page, Picture, Value
from headrace.text import without_secrets

Numbers = Mapping[str, Any]

_FACTS = {
    "input_rows": "Input rows",
    "fetched": "Fetched",
    "kept": "Kept",
    "kept_share": "Kept, %",
    "num_shards": "Shards",
    "num_samples": "Samples",
    "num_bytes": "Bytes",
    "build_failures": "Build failures",
    "distinct_hosts": "Hosts, about",
    "distinct_urls": "Distinct URLs, about",
    "distinct_captions": "Distinct captions, about",
    "distinct_images": "Distinct images, about",
}


def render(report: Numbers, galleries: Galleries, recipe_text: str) -> bytes:
    """Return the HTML file."""
    result = Page(title=report["title"], subtitle=report["subtitle"], footer="Made by headrace report; opens offline.")
    result.section(
        "Overview", page.facts([(_FACTS[name], value) for name, value in report["facts"].items()]), _notes(report)
    )
    if report["funnel"]:
        result.section("Funnel", *_funnel(report["funnel"]))
    if report["histograms"]:
        result.section("Distributions", *_histograms(report["histograms"], with_after=bool(report["funnel"])))
    _add_galleries(result, report, galleries)
    if report["hosts"]:
        result.section("Hosts", *_hosts(report))
    if report["funnel"]:
        result.section("Failures", *_failures(report))
    if report["dataset"]:
        result.section("Dataset", *_dataset(report["dataset"]))
    if recipe_text:
        note = "As it was understood, defaults included; without job, engine and limits, which change no result."
        result.section("Recipe", page.paragraph(note), page.code(without_secrets(recipe_text)))
    return result.render()


def _notes(report: Numbers) -> Html:
    return page.join(*(page.paragraph(note) for note in report["notes"]))


def _funnel(funnel: Sequence[Numbers]) -> list[Html]:
    bars = [
        Bar(
            label=step["name"],
            parts=(step["rows_out"], step["rows_in"] - step["rows_out"]),
            value=f"{page.show(step['rows_out'])} left, {page.show(step['rows_in'] - step['rows_out'])} dropped",
        )
        for step in funnel
    ]
    rows: list[list[Value]] = []
    for step in funnel:
        drops = sorted(step["dropped"].items(), key=lambda item: (-item[1], item[0]))
        for reason, count in drops or [("", 0)]:
            rows.append([step["name"], reason, count, _percent(count, step["rows_in"]), step["threshold"]])
    head = ["step", "reason", "dropped", "% of the step's rows", "threshold"]
    return [charts.bar_chart(bars, legend=("left", "dropped")), page.heading("Reasons"), page.table(head, rows)]


def _histograms(histograms: Mapping[str, Numbers], *, with_after: bool) -> list[Html]:
    drawn, constant = [], []
    for name, data in histograms.items():
        if not data["edges"]:
            constant.append(f"{name} {page.show(data['constant'])}")
            continue
        layers = [("fetched", data["before"]), ("kept", data["after"])] if with_after else [("samples", data["before"])]
        cuts = [(f"{cut['step']} {page.show(cut['value'])}", cut["value"]) for cut in data["cuts"]]
        drawn.append(charts.histogram(data["edges"], layers, x_label=name, cuts=cuts))
    note = "The ends hold what lies beyond them; values that are missing are left out."
    if constant:
        note += f" The same everywhere: {', '.join(constant)}."
    return [page.paragraph(note), page.columns(*drawn)]


def _add_galleries(result: Page, report: Numbers, galleries: Galleries) -> None:
    for name, threshold, near, under in galleries.cuts:
        blocks = [page.paragraph(f"Threshold {page.show(threshold)}: the pictures nearest to it.")]
        for word, items in (("Kept", near), ("Dropped", under)):
            if items:
                blocks += [page.heading(word), page.gallery([_picture(item) for item in items])]
        result.section(f"Around the cut: {name}", *blocks)
    if galleries.groups or report["duplicates"]["num_groups"]:
        blocks = []
        for _, dropped, items in galleries.groups:
            blocks += [page.heading(f"{dropped + 1} alike"), page.gallery([_picture(item) for item in items])]
        num_groups, num_dropped = (page.show(report["duplicates"][name]) for name in ("num_groups", "num_dropped"))
        note = f"{num_groups} groups; {num_dropped} rows dropped."
        result.section("Near-duplicates", page.paragraph(note), *blocks)
    if galleries.faces:
        result.section("Blurred faces", page.gallery([_picture(item) for item in galleries.faces]))
    if galleries.kept:
        result.section("Samples kept", page.gallery([_picture(item) for item in galleries.kept]))


def _picture(item: Shown) -> Picture:
    thumbnail = item.thumbnail
    return Picture(data=thumbnail.data, title=thumbnail.caption or "(no caption)", lines=(item.note, thumbnail.url))


def _hosts(report: Numbers) -> list[Html]:
    head = ["host", "rows", "failed", "failed, %", "kept", "distinct images, about"]
    rows: list[list[Value]] = [
        [
            item["host"],
            item["rows"],
            item["failed"],
            _percent(item["failed"], item["rows"]),
            item["kept"],
            item["images"],
        ]
        for item in report["hosts"]
    ]
    if not report["funnel"]:
        head, rows = [head[0], head[1]], [row[:2] for row in rows]
    note = "The hosts with the most rows. Distinct counts are estimates (HyperLogLog)."
    return [page.paragraph(note), page.table(head, rows)]


def _failures(report: Numbers) -> list[Html]:
    blocks = [page.heading("Fetch, by class"), _counts("class", report["fetch_errors"])]
    blocks += [page.heading("Images that do not decode"), _counts("class", report["decode_errors"])]
    failures = report["build_failures"]
    blocks += [page.heading("Build, by reason"), _counts("reason", failures["by_reason"])]
    if failures["rows"]:
        head = ["uid", "raw_shard", "key", "reason", "message"]
        rows = [[row[name] for name in head] for row in failures["rows"]]
        blocks.append(page.details(f"The first {len(rows)} rows", page.table(head, rows)))
    return blocks


def _dataset(dataset: Numbers) -> list[Html]:
    single: list[tuple[str, Value]] = [
        (name.replace("_", " "), value) for name, value in dataset.items() if not isinstance(value, Mapping)
    ]
    tables = [
        page.join(page.heading(name), _counts(name, value))
        for name, value in dataset.items()
        if isinstance(value, Mapping)
    ]
    return [page.facts(single), page.columns(*tables)]


def _counts(name: str, counts: Mapping[str, int]) -> Html:
    rows: list[list[Value]] = [[key or "(none)", count] for key, count in counts.items()]
    return page.table([name, "rows"], rows)


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0

"""Everything without pictures: distributions, categories, sizes, hosts, failures, dropped rows, the dataset."""

from collections.abc import Mapping
from typing import Any

from headrace.curation.report.sections.funnel import percent
from headrace.page import charts
from headrace.page import html as page
from headrace.page.html import Copy, Html, Value

Numbers = Mapping[str, Any]


def histograms(numbers: Mapping[str, Numbers], *, with_after: bool) -> list[Html]:
    """The distribution of every number, before and after."""
    drawn, constant = [], []
    for name, data in numbers.items():
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


def sizes(data: Numbers, *, with_after: bool) -> list[Html]:
    """Pictures by width and height."""
    words = (("Fetched", "before"), ("Kept", "after")) if with_after else (("Samples", "before"),)
    drawn = [
        page.join(
            page.heading(word),
            charts.heat(data["edges"], data[name], x_label="width, pixels", y_label="height, pixels"),
        )
        for word, name in words
    ]
    return [page.paragraph("Pictures by width and height, in half octaves. Darker is more."), page.columns(*drawn)]


def categories(columns: Mapping[str, list[list[Any]]], *, with_after: bool) -> list[Html]:
    """Counts of each column of words: languages, formats."""
    blocks = []
    for name, counts in columns.items():
        total = sum(before for _, before, _ in counts) or 1
        rows: list[list[Value]] = [
            [value or "(none)", before, percent(before, total), *([after] if with_after else [])]
            for value, before, after in counts
        ]
        head = [name, "fetched" if with_after else "samples", "%", *(["kept"] if with_after else [])]
        blocks.append(page.join(page.heading(name), page.table(head, rows)))
    return [page.columns(*blocks)]


def hosts(report: Numbers) -> list[Html]:
    """The hosts of most rows, and the classes of failure at those of most failures."""
    head = ["host", "rows", "failed", "failed, %", "kept", "distinct images, about"]
    rows: list[list[Value]] = [
        [
            item["host"],
            item["rows"],
            item["failed"],
            percent(item["failed"], item["rows"]),
            item["kept"],
            item["images"],
        ]
        for item in report["hosts"]
    ]
    if not report["funnel"]:
        head, rows = [head[0], head[1]], [row[:2] for row in rows]
    note = "The hosts with the most rows. Distinct counts are estimates (HyperLogLog)."
    blocks = [page.paragraph(note), page.table(head, rows)]
    failures = report["host_failures"]
    if failures["hosts"]:
        crossed: list[list[Value]] = [
            [item["host"], item["failed"], percent(item["failed"], item["rows"]), *item["classes"]]
            for item in failures["hosts"]
        ]
        blocks += [
            page.heading("Failures by host and class"),
            page.table(["host", "failed", "% of its rows", *failures["classes"]], crossed),
        ]
    return blocks


def failures(report: Numbers) -> list[Html]:
    """What was not fetched, decoded or built."""
    blocks = [page.heading("Fetch, by class"), counted("class", report["fetch_errors"])]
    blocks += [page.heading("Images that do not decode"), counted("class", report["decode_errors"])]
    found = report["build_failures"]
    blocks += [page.heading("Build, by reason"), counted("reason", found["by_reason"])]
    if found["rows"]:
        head = ["uid", "raw_shard", "key", "reason", "message"]
        rows = [[row[name] for name in head] for row in found["rows"]]
        blocks.append(page.details(f"The first {len(rows)} rows", page.table(head, rows)))
    return blocks


def dropped_rows(steps: list[Numbers]) -> list[Html]:
    """Rows that each step dropped, to browse and search."""
    blocks = []
    for step in steps:
        rows: list[list[Value | Copy]] = [
            [
                row["reason"],
                _short(row["value"]),
                row["caption"],
                row["url"],
                row["duplicate_of"],
                Copy(text=row["uid"]),
            ]
            for row in step["rows"]
        ]
        title = f"{step['step']}: {page.show(step['dropped'])} dropped"
        if len(rows) < step["dropped"]:
            title += f", {page.show(len(rows))} listed"
        if not step["told"]:
            title += "; without URLs and captions"
        head = ["reason", "value", "caption", "url", "copy of", "uid"]
        blocks.append(page.details(title, page.table(head, rows)))
    note = "Rows by step. Where not all are listed, those of the lowest uid (a hash), some of every reason."
    return [page.paragraph(note), *blocks]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def dataset(numbers: Numbers) -> list[Html]:
    """Totals and counts of the dataset."""
    single: list[tuple[str, Value]] = [
        (name.replace("_", " "), value) for name, value in numbers.items() if not isinstance(value, Mapping)
    ]
    tables = [
        page.join(page.heading(name), counted(name, value))
        for name, value in numbers.items()
        if isinstance(value, Mapping)
    ]
    return [page.facts(single), page.columns(*tables)]


def counted(name: str, counts: Mapping[str, int]) -> Html:
    """A table of counts."""
    rows: list[list[Value]] = [[key or "(none)", count] for key, count in counts.items()]
    return page.table([name, "rows"], rows)

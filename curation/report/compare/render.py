"""The page that shows two datasets beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.curation.report.compare.overlap import IDENTITIES
from headrace.curation.report.render import FACTS
from headrace.curation.report.sections.funnel import percent
from headrace.page import charts
from headrace.page import html as page
from headrace.page.charts import Bar
from headrace.page.html import Copy, Html, Page, Value

Numbers = Mapping[str, Any]


def render(report: Numbers) -> bytes:
    """Return the HTML file."""
    first, second = report["names"]
    result = Page(
        title=report["title"], subtitle=f"A: {first}. B: {second}.", footer="Made by headrace report; opens offline."
    )
    result.section("Overview", _facts(report["facts"]))
    result.section("Overlap", *_overlap(report["overlap"]))
    if any(report["funnels"]):
        result.section("Funnels", *_funnels(report["funnels"]))
    if report["histograms"]:
        result.section("Distributions", *_histograms(report["histograms"]))
    if report["domains"]["rows"]:
        result.section("Domains", *_domains(report["domains"]), closed=True)
    alone = report["overlap"]["alone_by"]
    for letter, name in (("a", "A"), ("b", "B")):
        rows = report["overlap"]["only"][letter]
        if alone:
            counts = report["overlap"]["by"][alone]
            num = counts[letter] - counts["both"]
            note = f"{page.show(num)} by {IDENTITIES[alone]}; {page.show(len(rows))} listed, an arbitrary sample."
            listed: list[list[Value | Copy]] = [
                [row["caption"], row["url"], Copy(text=row["uid"] or "")] for row in rows
            ]
            table = page.table(["caption", "url", "uid"], listed)
            result.section(f"Only in {name}", page.paragraph(note), table, closed=True)
    return result.render()


def _facts(facts: Sequence[Numbers]) -> Html:
    names = [name for name in FACTS if any(name in side for side in facts)]
    rows: list[list[Value]] = [[FACTS[name], *(_fact(name, side.get(name)) for side in facts)] for name in names]
    return page.table(["", "A", "B"], rows)


def _fact(name: str, value: int | None) -> Value:
    return page.human_bytes(value) if name == "num_bytes" and value is not None else page.show(value)


def _overlap(overlap: Numbers) -> list[Html]:
    rows: list[list[Value]] = []
    bars = []
    for name, words in IDENTITIES.items():
        found = overlap["by"][name]
        a, b, both = found["a"], found["b"], found["both"]
        shares = [percent(both, a), percent(both, b)]
        rows.append([words, a, b, both, *shares, found["unknown_a"], found["unknown_b"]])
        if a and b:
            parts = (a - both, both, b - both)
            bars.append(Bar(label=words, parts=parts, value=f"{page.show(both)} in both"))
    head = ["the same by", "in A", "in B", "in both", "% of A", "% of B", "unknown in A", "unknown in B"]
    note = "Different values on each side, and those on both: exact. Unknown: samples that have no such value."
    return [page.paragraph(note), charts.bar_chart(bars, legend=("only A", "both", "only B")), page.table(head, rows)]


def _funnels(funnels: Sequence[Sequence[Numbers]]) -> list[Html]:
    names = list(dict.fromkeys(step["name"] for funnel in funnels for step in funnel))
    by_name = [{step["name"]: step for step in funnel} for funnel in funnels]
    rows: list[list[Value]] = []
    for name in names:
        row: list[Value] = [name]
        for steps in by_name:
            step = steps.get(name)
            lost = None if step is None else percent(step["rows_in"] - step["rows_out"], step["rows_in"])
            row += [None, None, None] if step is None else [step["rows_out"], lost, step["threshold"]]
        rows.append(row)
    drawn = []
    for letter, funnel in zip("AB", funnels, strict=True):
        bars = [
            Bar(
                label=step["name"],
                parts=(step["rows_out"], step["rows_in"] - step["rows_out"]),
                value=f"{page.show(step['rows_out'])} left",
            )
            for step in funnel
        ]
        drawn.append(page.join(page.heading(letter), charts.bar_chart(bars, legend=("left", "dropped"))))
    head = ["step", "left in A", "dropped in A, %", "threshold of A", "left in B", "dropped in B, %", "threshold of B"]
    return [page.columns(*drawn), page.table(head, rows)]


def _histograms(histograms: Mapping[str, Numbers]) -> list[Html]:
    drawn = []
    for name, data in histograms.items():
        if data["edges"]:
            layers = [("A, per mille", _shares(data["before"])), ("B, per mille", _shares(data["after"]))]
            lines = [(words, list(zip(data["edges"][:-1], counts, strict=True))) for words, counts in layers]
            drawn.append(charts.line_chart(lines, x_label=name, y_label="samples of a thousand"))
    note = "Numbers that both have: samples of each thousand in a bin; the bins are those of A."
    return [page.paragraph(note), page.columns(*drawn)]


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [1000 * count / total for count in counts]


def _domains(data: Numbers) -> list[Html]:
    a, b = data["distinct"]
    note = f"{page.show(a)} domains in A, {page.show(b)} in B; {page.show(data['only'][0])} only in A, "
    note += f"{page.show(data['only'][1])} only in B. Those whose share of the samples differs most."
    if data["forgot"]:
        note += " There are more domains than are counted one by one; rare ones are left out."
    head = ["domain", "samples in A", "samples in B", "share in B less share in A, points"]
    return [page.paragraph(note), page.table(head, data["rows"])]

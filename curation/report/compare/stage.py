"""Write `compare.html` and `compare.json`: two datasets beside each other.

Memory is that of one shard of each, sketches, and the database of `overlap.py`. Same data, same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import atomic, urlpath
from headrace.config import canonical_json
from headrace.curation.report.compare.overlap import overlaps
from headrace.curation.report.compare.render import render
from headrace.curation.report.compare.side import Side
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.domains import domains
from headrace.curation.report.gather import shown_columns
from headrace.curation.report.sketch import Counts, Histogram, Ranges, hosts, numbers

SCHEMA_VERSION = 1
TOP_DOMAINS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareSummary:
    """Where the comparison is, and its numbers."""

    html: str
    json: str
    facts: list[dict[str, Any]]
    overlap: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.html}, {self.json}"


def compare(sides: tuple[Side, Side], config: ReportConfig, out: str) -> CompareSummary:
    """Compare two datasets and write the page and its numbers into the folder `out`."""
    columns = _shared_numbers(sides)
    report: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "title": config.title or "Two datasets",
        "names": [side.name for side in sides],
        "facts": [side.facts() for side in sides],
        "funnels": [side.funnel() for side in sides],
        "histograms": {name: item.as_dict() for name, item in columns.items()},
        "domains": _domains(sides),
        "overlap": overlaps(sides, config.rows),
    }
    atomic.remove_leftovers(out)
    html, data = urlpath.join(out, "compare.html"), urlpath.join(out, "compare.json")
    text = json.dumps(json.loads(canonical_json(report)), indent=1, sort_keys=True, ensure_ascii=True)
    atomic.write_atomic(data, (text + "\n").encode())
    atomic.write_atomic(html, render(report))
    return CompareSummary(html=html, json=data, facts=report["facts"], overlap=report["overlap"]["by"])


def _shared_numbers(sides: Sequence[Side]) -> dict[str, Histogram]:
    """Return the histograms of the numbers that both have: `before` of the first, `after` of the second."""
    ranges, has = Ranges(), [set[str](), set[str]()]
    for names, side in zip(has, sides, strict=True):
        for table in side.tables():
            shown = shown_columns(table.schema)
            names.update(shown)
            ranges.add(table, shown)
    found = {name: item for name, item in ranges.histograms().items() if all(name in names for names in has)}
    for line, side in enumerate(sides):
        for table in side.tables():
            for name, histogram in found.items():
                if name in table.column_names:
                    values = numbers(table[name])
                    nothing = values[:0]
                    histogram.add(*((values, nothing) if line == 0 else (nothing, values)))
    return found


def _domains(sides: Sequence[Side]) -> dict[str, Any]:
    """Return the domains whose share of the samples differs most, with their samples on each side."""
    counts = [Counts(), Counts()]
    for tally, side in zip(counts, sides, strict=True):
        for table in side.tables():
            if "url" in table.column_names:
                tally.add(domains(hosts(table["url"].cast(pa.string()))))
    totals = [sum(tally.counts.values()) or 1 for tally in counts]
    names = {name for tally in counts for name in tally.counts}

    def apart(name: str) -> float:
        first, second = (tally.counts[name] / total for tally, total in zip(counts, totals, strict=True))
        return second - first

    top = sorted(names, key=lambda name: (-abs(apart(name)), name))[:TOP_DOMAINS]
    return {
        "distinct": [len(tally.counts) for tally in counts],
        "only": [len(set(counts[one].counts) - set(counts[1 - one].counts)) for one in (0, 1)],
        "forgot": any(tally.forgot for tally in counts),
        "rows": [[name, *(tally.counts[name] for tally in counts), round(100 * apart(name), 4)] for name in top],
    }

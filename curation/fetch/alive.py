"""What of a list is alive: rows by class, by host and by the year of the list, of one job or of two side by side.

Every row of the list counts once, as it stands now: one that a retry fetched is alive. The file holds no times, so two
runs with the same answers write the same bytes, and shares of two lists, or of one list at two times, can be compared.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards, read_raw, recorded_of
from headrace.curation.raw.record import read_json
from headrace.curation.raw.segments import list_shards, read_segments
from headrace.text import shown

log = logging.getLogger(__name__)

SCHEMA = 1
FILE_NAME = "fetch.json"
SUCCESS = "success"
MAX_HOSTS = 1 << 20
"""Hosts that are counted one by one; beyond, those with the fewest rows become `other`."""
SHOWN_HOSTS = 1000
OTHER = "(other)"
NO_HOST = "(no host)"
NO_YEAR = "(no year)"

_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]/?#]*\]|[^/?#:]+)"
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?=(?:[01]\d[0-3]\d)?(?!\d))")  # also in 20140301
_IDENTITY = ("uid", "input_file", "input_row")


@dataclass(kw_only=True, slots=True)
class Alive:
    """Rows of a list by what became of them; each counter holds `success` and the error classes."""

    classes: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, Counter[str]] = field(default_factory=dict)
    years: dict[str, Counter[str]] = field(default_factory=dict)
    reused: int = 0
    """Rows whose image an earlier job had."""
    retried: int = 0
    """Rows that a retry fetched."""

    @property
    def rows(self) -> int:
        """Rows of the list."""
        return self.classes.total()


def report_url(job: Job) -> str:
    """Return where a job's fetch report lies."""
    return urlpath.join(job.report, FILE_NAME)


def write_alive(job: Job, date_column: str | None) -> str:
    """Write the fetch report of a job, unless it is up to date; return where it lies."""
    url, names = report_url(job), raw_shards(job)
    inputs = _digest(job, names, date_column)
    if _inputs_of(url) == inputs:
        return url
    report = as_json(count_alive(job, names, date_column), inputs)
    atomic.write_atomic(url, (canonical_json(report) + "\n").encode())
    log.info("%s: %d of %d rows alive", url, report["alive"], report["rows"])
    return url


def _inputs_of(url: str) -> Any:
    """Return what a report was made of; None where there is none, or a damaged one, which is written anew."""
    try:
        return read_json(url).get("inputs")
    except ValueError:
        return None


def read_alive(target: str) -> dict[str, Any]:
    """Return the fetch report of a job, or one that was kept as a file. Raises ValueError."""
    url = target if target.endswith(".json") else report_url(Job(target))
    if not files.exists(url):
        raise ValueError(f"{url}: no fetch report; run `headrace fetch` (again), which writes it at its end")
    report = read_json(url)
    whole = as_json(Alive(), "")
    if report.get("schema") != SCHEMA or any(type(report.get(name)) is not type(whole[name]) for name in whole):
        raise ValueError(f"{url}: not a fetch report of this headrace; remove it and run `headrace fetch` again")
    return report


def _digest(job: Job, names: Iterable[str], date_column: str | None) -> str:
    told: list[Any] = [SCHEMA, date_column]
    for name in names:
        recorded = recorded_of(job, name)
        told.append([name, recorded.rows, recorded.table_sha256])
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()


def count_alive(job: Job, names: Iterable[str], date_column: str | None) -> Alive:
    """Count the rows of the list of a job."""
    segments = read_segments(job)
    listed = list_shards(segments) if segments else frozenset(names)
    found, mended = Alive(), set[tuple[Any, ...]]()
    for name in names:
        if name not in listed:
            table = read_raw(job, name)
            found.reused += _num_reused(table)
            mended.update(_identities(table))
    for name in names:
        if name in listed:
            _count(found, read_raw(job, name), mended, date_column)
    return found


def _num_reused(table: pa.Table) -> int:
    column = table["reused_from"]
    return len(column) - int(column.null_count)


def _identities(table: pa.Table) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in _IDENTITY), strict=True)


def _count(found: Alive, table: pa.Table, mended: set[tuple[Any, ...]], date_column: str | None) -> None:
    classes = pc.fill_null(table["error_class"], SUCCESS).to_pylist()
    if mended:
        for row, identity in enumerate(_identities(table)):
            if identity in mended and classes[row] != SUCCESS:
                classes[row] = SUCCESS
                found.retried += 1
    found.reused += _num_reused(table)
    found.classes.update(classes)
    _add(found.hosts, hosts_of(table["url"]), classes)
    if len(found.hosts) > MAX_HOSTS:
        _merge_small(found.hosts)
    if date_column is not None:
        if date_column not in table.column_names:
            raise ValueError(
                f"input.date_column: the raw shards have no column {shown(date_column)}; known: "
                f"{', '.join(table.column_names)}"
            )
        _add(found.years, [year_of(value) for value in table[date_column].to_pylist()], classes)


def _add(counts: dict[str, Counter[str]], groups: Iterable[str], classes: Iterable[str]) -> None:
    for (group, kind), rows in Counter(zip(groups, classes, strict=True)).items():
        counts.setdefault(group, Counter())[kind] += rows


def _merge_small(hosts: dict[str, Counter[str]]) -> None:
    order = sorted(hosts, key=lambda host: (hosts[host].total(), host))
    for host in order[: len(order) - MAX_HOSTS // 2]:
        if host != OTHER:
            hosts.setdefault(OTHER, Counter()).update(hosts.pop(host))


def hosts_of(urls: pa.ChunkedArray) -> list[str]:
    """Return the host of each URL in lower case."""
    found = pc.struct_field(pc.extract_regex(urls.combine_chunks(), _HOST), "host")
    return [host or NO_HOST for host in pc.utf8_lower(found).to_pylist()]


def year_of(value: Any) -> str:
    """Return the year that a date, a number or a text names."""
    match = _YEAR.search(str(value)) if value is not None else None
    return match.group() if match else NO_YEAR


def as_json(found: Alive, inputs: str) -> dict[str, Any]:
    """Return the report as it is written: the largest hosts, the others added up."""
    order = sorted(found.hosts, key=lambda host: (host == OTHER, -found.hosts[host].total(), host))
    shown = [host for host in order[:SHOWN_HOSTS] if host != OTHER]
    rest = [host for host in order if host not in set(shown)]
    other = sum((found.hosts[host] for host in rest), Counter[str]())
    return {
        "schema": SCHEMA,
        "inputs": inputs,
        **_line(found.classes),
        "reused": found.reused,
        "retried": found.retried,
        "num_hosts": len(found.hosts) - (OTHER in found.hosts),
        "hosts_are_exact": OTHER not in found.hosts,
        "hosts": [{"host": host, **_line(found.hosts[host])} for host in shown],
        "other_hosts": _line(other),
        "years": {year: _line(found.years[year]) for year in sorted(found.years)},
    }


def _line(counts: Mapping[str, int]) -> dict[str, Any]:
    rows = sum(counts.values())
    classes = {name: counts[name] for name in sorted(counts) if name != SUCCESS and counts[name]}
    return {"rows": rows, "alive": counts.get(SUCCESS, 0), "classes": classes}


@dataclass(frozen=True, slots=True)
class Change:
    """Shares of one group of rows in two reports; None: the report has no such rows."""

    kind: str
    """`alive`, `class`, `host` or `year`."""
    name: str
    before: float | None
    after: float | None
    rows_before: int
    rows_after: int

    @property
    def difference(self) -> float:
        """Of the shares; 0 where one is missing."""
        return 0.0 if self.before is None or self.after is None else self.after - self.before


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return how shares differ: of all alive rows and each class, then alive rows by year and by host.

    Hosts are those that both reports name, the largest differences first.
    """
    changes = [_change("alive", "alive", before, after)]
    names = sorted({*before["classes"], *after["classes"]})
    changes += [
        Change("class", name, _share(before, name), _share(after, name), before["rows"], after["rows"])
        for name in names
    ]
    nothing: dict[str, Any] = {"rows": 0, "alive": 0}
    for year in sorted({*before["years"], *after["years"]}):
        changes.append(_change("year", year, before["years"].get(year, nothing), after["years"].get(year, nothing)))
    old, new = ({item["host"]: item for item in report["hosts"]} for report in (before, after))
    hosts = [_change("host", host, old[host], new[host]) for host in old if host in new]
    hosts.sort(key=lambda change: (-abs(change.difference) * min(change.rows_before, change.rows_after), change.name))
    return [*changes, *hosts]


def _change(kind: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    shares = [report["alive"] / report["rows"] if report["rows"] else None for report in (before, after)]
    return Change(kind, name, shares[0], shares[1], before["rows"], after["rows"])


def _share(report: Mapping[str, Any], name: str) -> float | None:
    return report["classes"].get(name, 0) / report["rows"] if report["rows"] else None

"""The public summary of a dataset: what the template for Article 53(1)(d) of the EU AI Act asks and the job knows.

It names domains, counts and what the crawler does; no URL, no caption, no uid, no address. What only the provider knows
is listed as left to fill in. It is no legal advice.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.job import Job
from headrace.curation.report.compare.side import Side
from headrace.curation.report.domains import ADDRESS, NONE, domains
from headrace.curation.report.sketch import hosts
from headrace.curation.report.tables import all_captions
from headrace.page import html as page
from headrace.page.html import Html, Page, Value

SCHEMA_VERSION = 1
TOP_SHARE = 0.1
"""Of all domains, by size of what was taken from them: what the template asks of a provider that is no small one."""
MAX_DOMAINS = 1 << 20
"""Domains counted one by one; beyond, the smallest are forgotten, and it says so."""
SHOWN_LANGUAGES = 20
TO_FILL_IN = (
    "Provider: name, contact, authorised representative.",
    "Model: name, versions, models it is based on, date of placing on the market.",
    "Purpose of the crawler.",
    "Other sources: public, licensed, user and synthetic data beside this dataset.",
    "Other measures against illegal content, and other processing.",
)
_MONTH = re.compile(r"(?P<year>20\d\d)-?(?P<month>0[1-9]|1[0-2])")
_SIGNALS = {
    "robots_txt": "robots.txt (RFC 9309)",
    "x_robots_tag": "X-Robots-Tag (noai, noimageai, noindex, noimageindex, none)",
    "tdm_header": "the header TDM-Reservation (W3C TDM Reservation Protocol)",
    "tdm_file": "/.well-known/tdmrep.json (W3C TDM Reservation Protocol)",
    "content_usage": "Content-Usage: train-ai=n (IETF AIPREF)",
    "content_signal": "Content-Signal: ai-train=no",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Crawl:
    """What a recipe says of its crawl."""

    user_agent: str
    obeyed: Mapping[str, bool]
    """Field of `fetch.signals` -> whether it is obeyed."""
    agents: tuple[str, ...]
    """Further crawlers whose rules are obeyed."""
    per_host: int


@dataclass(kw_only=True, slots=True)
class Domains:
    """Samples and bytes by domain."""

    samples: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    forgot: bool = False

    def add(self, names: pa.Array, sizes: pa.ChunkedArray | None) -> None:
        """Count the samples of a table."""
        size = pa.nulls(len(names), pa.int64()) if sizes is None else sizes.cast(pa.int64())
        grouped = (
            pa.table({"name": names, "size": size}).group_by("name").aggregate([("name", "count"), ("size", "sum")])
        )
        for row in grouped.to_pylist():
            name = row["name"]
            self.samples[name] = self.samples.get(name, 0) + row["name_count"]
            self.sizes[name] = self.sizes.get(name, 0) + (row["size_sum"] or 0)
        if len(self.samples) > MAX_DOMAINS:
            kept = self.largest()[: MAX_DOMAINS // 2]
            self.samples = {name: self.samples[name] for name in kept}
            self.sizes = {name: self.sizes[name] for name in kept}
            self.forgot = True

    def largest(self) -> list[str]:
        """Return the domains, those of most bytes first, then of most samples."""
        return sorted(self.samples, key=lambda name: (-self.sizes[name], -self.samples[name], name))


def public_summary(side: Side, crawl: Crawl | None) -> dict[str, Any]:
    """Return the summary of a dataset, or of what a ledger keeps; `crawl` is None where somebody else fetched."""
    counts, languages = Domains(), dict[str, int]()
    samples = captions = characters = num_bytes = 0
    blurred: int | None = None
    for table in side.tables():
        sizes = next((table[name] for name in ("size", "file_bytes") if name in table.column_names), None)
        counts.add(domains(hosts(table["url"].cast(pa.string()))), sizes)
        samples += table.num_rows
        num_bytes += 0 if sizes is None else int(pc.sum(sizes).as_py() or 0)
        texts = all_captions(table)
        captions += len(texts) - texts.null_count
        characters += int(pc.sum(pc.utf8_length(texts)).as_py() or 0)
        if "faces_blurred" in table.column_names:
            blurred = (blurred or 0) + int(pc.sum(table["faces_blurred"]).as_py() or 0)
        if "language" in table.column_names:
            for found in pc.value_counts(pc.fill_null(table["language"], "")).to_pylist():
                languages[found["values"]] = languages.get(found["values"], 0) + found["counts"]
    job = None if side.explained is None else side.explained.decision.job
    return {
        "schema": SCHEMA_VERSION,
        "title": "Public summary of training content",
        "general": {
            "modalities": ["image", "text"] if captions else ["image"],
            "images": samples,
            "images_range": _range(samples),
            "image_bytes": num_bytes,
            "captions": captions,
            "caption_characters": characters,
            "languages": _languages(languages),
            "collected": None if job is None else _period(job),
        },
        "crawled": _crawled(counts, crawl),
        "processing": {**_processing(side), "faces_blurred": blurred},
        "to_fill_in": list(TO_FILL_IN),
    }


def _range(images: int) -> str:
    if images < 1_000_000:
        return "less than 1 million images"
    return "1 million to 1 billion images" if images <= 1_000_000_000 else "more than 1 billion images"


def _languages(counts: Mapping[str, int]) -> list[list[Any]]:
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_LANGUAGES]
    return [[name or "(unknown)", count] for name, count in top]


def _period(job: Job) -> list[str] | None:
    """Return the first and the last month of fetching, by the job's logs; None if they are gone."""
    months = []
    folder = urlpath.join(job.url, "logs")
    for name in files.list_names(folder, ".log"):
        if name.startswith("fetch-"):
            lines = files.read_bytes(urlpath.join(folder, name)).decode("utf-8", "replace").splitlines()
            months += [_MONTH.match(text) for text in (name.removeprefix("fetch-"), *lines[:1], *lines[-1:])]
    found = sorted(f"{month['year']}-{month['month']}" for month in months if month is not None)
    return [found[0], found[-1]] if found else None


def _crawled(counts: Domains, crawl: Crawl | None) -> dict[str, Any]:
    named = [name for name in counts.largest() if name not in (ADDRESS, NONE)]
    listed = named[: math.ceil(TOP_SHARE * len(named))]
    total = sum(counts.sizes.values())
    return {
        "crawler": None if crawl is None else crawl.user_agent,
        "behaviour": [] if crawl is None else list(_behaviour(crawl)),
        "domains": len(named),
        "domains_are_exact": not counts.forgot,
        "domains_listed": len(listed),
        "share_of_bytes_listed": round(100 * sum(counts.sizes[name] for name in listed) / total, 2) if total else None,
        "without_domain": sum(counts.samples.get(name, 0) for name in (ADDRESS, NONE)),
        "top_domains": [[name, counts.samples[name], counts.sizes[name]] for name in listed],
    }


def _behaviour(crawl: Crawl) -> Iterator[str]:
    obeyed = [words for name, words in _SIGNALS.items() if crawl.obeyed.get(name)]
    ignored = [words for name, words in _SIGNALS.items() if not crawl.obeyed.get(name)]
    yield f"Obeys: {'; '.join(obeyed) or 'no signal of the owners'}."
    if ignored:
        yield f"Does not obey: {'; '.join(ignored)}."
    if crawl.agents:
        yield f"Obeys what robots.txt says to {', '.join(crawl.agents)} too."
    yield f"At most {crawl.per_host} requests at once to one host from one process; backs off on 429 and 503."
    yield "Asks for the single files of a list: it follows no links of pages, logs in nowhere and solves no captcha."


def _processing(side: Side) -> dict[str, Any]:
    steps = [] if side.explained is None else side.explained.decision.summary.steps
    return {
        "rights_reserved": steps[0].dropped.get("opted-out", 0) if steps else None,
        "steps": [{"name": step.name, "kind": step.step, "removed": sum(step.dropped.values())} for step in steps],
    }


def check_public_name(url: str) -> None:
    """Raise ValueError if a summary cannot be written into a file of this name."""
    if not url.endswith((".html", ".json")):
        raise ValueError(f"--public {url}: the name must end in .html or .json")


def write_public(url: str, summary: Mapping[str, Any]) -> None:
    """Write the summary as JSON or HTML, as the file's name says. Raises ValueError for another name."""
    check_public_name(url)
    text = json.dumps(json.loads(canonical_json(summary)), indent=1, sort_keys=True) + "\n"
    atomic.write_atomic(url, text.encode() if url.endswith(".json") else _render(summary))


def _render(summary: Mapping[str, Any]) -> bytes:
    general, crawled, processing = summary["general"], summary["crawled"], summary["processing"]
    result = Page(
        title=summary["title"],
        subtitle="After the template for Article 53(1)(d) of Regulation (EU) 2024/1689: what the data themselves tell.",
        footer="Made by headrace report --public. No URL, caption or person is named.",
    )
    period = general["collected"]
    facts: list[tuple[str, Value]] = [
        ("Modalities", ", ".join(general["modalities"])),
        ("Images", general["images"]),
        ("Range", general["images_range"]),
        ("Size of the images", page.human_bytes(general["image_bytes"])),
        ("Captions", general["captions"]),
        ("Characters of captions", general["caption_characters"]),
        ("Collected", "not known" if period is None else " to ".join(period)),
    ]
    languages = page.table(["language of captions", "captions"], general["languages"])
    result.section("1. General information", page.facts(facts), languages if general["languages"] else Html(""))
    told = f"The {page.show(crawled['domains_listed'])} domains of most bytes, of {page.show(crawled['domains'])}"
    told += "." if crawled["domains_are_exact"] else " or more; small ones were not all counted."
    result.section(
        "2. Data crawled from online sources",
        page.paragraph(f"Crawler: {crawled['crawler'] or 'not known here'}"),
        *(page.paragraph(text) for text in crawled["behaviour"]),
        page.paragraph(told),
        page.table(["domain", "images", "bytes"], crawled["top_domains"]),
        page.paragraph(f"{page.show(crawled['without_domain'])} images have no domain name."),
    )
    reserved, blurred = (
        "not known" if processing[name] is None else page.show(processing[name])
        for name in ("rights_reserved", "faces_blurred")
    )
    result.section(
        "3. Data processing",
        page.paragraph(f"Left out as their owners reserve them: {reserved}. Faces blurred: {blurred}."),
        page.table(["step", "kind", "removed"], [list(step.values()) for step in processing["steps"]]),
    )
    result.section("Left to fill in", *(page.paragraph(text) for text in summary["to_fill_in"]))
    return result.render()

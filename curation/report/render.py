"""The report's numbers and pictures as one page.

Nothing is computed here; what the page shows is what `report.json` holds.
"""

from collections.abc import Mapping
from typing import Any

from headrace.curation.report.galleries import Galleries
from headrace.curation.report.sections.funnel import effects, funnel, thresholds
from headrace.curation.report.sections.pictures import add_pictures
from headrace.curation.report.sections.tables import (
    categories,
    dataset,
    dropped_rows,
    failures,
    histograms,
    hosts,
    sizes,
)
from headrace.page import html as page
from headrace.page.html import Html, Page, Value
from headrace.text import without_secrets

Numbers = Mapping[str, Any]

FACTS = {
    "input_rows": "Input rows",
    "fetched": "Fetched",
    "kept": "Kept",
    "kept_share": "Kept, %",
    "num_shards": "Shards",
    "num_samples": "Samples",
    "num_bytes": "Size",
    "build_failures": "Build failures",
    "distinct_hosts": "Hosts, about",
    "distinct_urls": "Distinct URLs, about",
    "distinct_captions": "Distinct captions, about",
    "distinct_images": "Distinct images, about",
}


def render(report: Numbers, galleries: Galleries, recipe_text: str) -> bytes:
    """Return the HTML file."""
    result = Page(title=report["title"], subtitle=report["subtitle"], footer="Made by headrace report; opens offline.")
    judged = bool(report["funnel"])
    result.section("Overview", page.facts([*map(_fact, report["facts"].items())]), _notes(report))
    if judged:
        result.section("Funnel", *funnel(report["funnel"]))
    if report["effects"]:
        result.section("What each step changed", *effects(report["effects"]), closed=True)
    if report["curves"] or report["distances"]:
        result.section("Other thresholds", *thresholds(report["curves"], report["distances"]), closed=True)
    if report["histograms"]:
        result.section("Distributions", *histograms(report["histograms"], with_after=judged), closed=True)
    if report["sizes"] and any(map(any, report["sizes"]["before"])):
        result.section("Resolution", *sizes(report["sizes"], with_after=judged), closed=True)
    if report["categories"]:
        result.section("Languages and kinds", *categories(report["categories"], with_after=judged), closed=True)
    add_pictures(result, report, galleries)
    if report["hosts"]:
        result.section("Hosts", *hosts(report), closed=True)
    if judged:
        result.section("Failures", *failures(report), closed=True)
    if report["dropped_rows"]:
        result.section("Dropped rows", *dropped_rows(report["dropped_rows"]), closed=True)
    if report["dataset"]:
        result.section("Dataset", *dataset(report["dataset"]), closed=True)
    if recipe_text:
        note = "As it was understood, defaults included; without job, engine and limits, which change no result."
        result.section("Recipe", page.paragraph(note), page.code(without_secrets(recipe_text)), closed=True)
    return result.render()


def _fact(item: tuple[str, Value]) -> tuple[str, Value]:
    name, value = item
    return FACTS[name], page.human_bytes(value) if name == "num_bytes" and isinstance(value, int) else value


def _notes(report: Numbers) -> Html:
    told = page.join(*(page.paragraph(note) for note in report["notes"]))
    limits = [page.paragraph(text) for text in report["limits"]]
    return page.join(told, page.details("What this page shows at most", *limits) if limits else Html(""))

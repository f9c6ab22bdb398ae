"""A traced step as one page that opens offline: what `headrace trace --json` says, with the pictures."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from headrace.page import html as page
from headrace.page.html import Html, Page, Picture, Value
from headrace.trace.step import PROOFS, TracedSample, TracedStep

LISTED = 5000
"""Most rows of the page's table."""
FOOTER = (
    "Made by headrace trace; opens offline. The pictures are those of the dataset: whoever gets this page gets them."
)


def render(traced: TracedStep, *, name: str, global_batch: int, num_views: int) -> bytes:
    """Return the HTML file; `name` is the run's."""
    first, end = traced.positions
    what = (
        f"step {traced.step:,}"
        if end - first > 1 or global_batch == 1
        else f"position {first:,} (step {traced.step:,})"
    )
    result = Page(title=f"{what} of {name}", subtitle=PROOFS[traced.proof], footer=FOOTER)
    result.section("Overview", *_overview(traced, num_views))
    shown = [sample for sample in traced.samples if sample.position in traced.pictures]
    if shown:
        rest = len(traced.samples) - len(shown)
        note = "Left the original, with the window of each view; beside it each view as it was seen (at most four)."
        more = f" {rest:,} samples more are listed below." if rest else ""
        pictures = [_picture(sample, traced.pictures[sample.position]) for sample in shown]
        result.section("Pictures", page.paragraph(note + more), page.gallery(pictures, wide=True))
    replaced = [sample for sample in traced.samples if sample.instead_of is not None]
    if replaced:
        head = ["position", "planned", "what was wrong with it", "given instead"]
        rows: list[list[Value]] = [
            [str(sample.position), sample.instead_of, sample.damage, sample.key] for sample in replaced
        ]
        result.section("Damaged samples", page.table(head, rows))
    result.section("Samples", *_samples(traced))
    verdicts = [sample for sample in shown if sample.verdict is not None]
    if verdicts:
        result.section("Verdicts", *(_verdict(sample) for sample in verdicts))
    return result.render()


def _overview(traced: TracedStep, num_views: int) -> list[Html]:
    first, end = traced.positions
    replaced = sum(sample.instead_of is not None for sample in traced.samples)
    facts: list[tuple[str, Value]] = [
        ("Step", traced.step),
        ("First position", first),
        ("Samples", end - first),
        ("Replaced", replaced),
        ("Views of each", num_views),
    ]
    counts = Counter(sample.source for sample in traced.samples)
    rows: list[list[Value]] = [[name, counts.get(name, 0), text] for name, text in traced.origins.items()]
    blocks = [page.facts(facts), page.table(["source", "samples here", "where it comes from"], rows)]
    if traced.skipped is not None:
        blocks.append(page.paragraph(f"The run skipped this step ({traced.skipped}): the weights did not move."))
    if traced.note:
        blocks.append(page.paragraph(f"Pictures: {traced.note}."))
    return blocks


def _picture(sample: TracedSample, data: bytes) -> Picture:
    lines = [f"position {sample.position}, {sample.source}, epoch {sample.epoch}"]
    if sample.instead_of is not None:
        lines.append(f"instead of {sample.instead_of}: {sample.damage}")
    lines += [f"key {sample.key}", sample.url or "no URL"]
    if sample.label is not None:
        lines.append(f"label {sample.label}")
    if sample.verdict is not None:
        lines.append(_short(sample.verdict))
    return Picture(data=data, title=sample.caption or sample.key, lines=tuple(lines))


def _short(verdict: Mapping[str, Any]) -> str:
    kept = "kept" if verdict["kept"] else "dropped"
    looked = [step for step in verdict.get("steps", ()) if step["value"] is not None]
    values = ", ".join(f"{step['name']} {page.show(step['value'])}" for step in looked)
    return f"{kept}: {values}" if values else kept


def _samples(traced: TracedStep) -> list[Html]:
    head = ["position", "source", "epoch", "key", "URL", "uid", "shard", "byte", "comes from"]
    rows: list[list[Value]] = [
        [
            str(sample.position),
            sample.source,
            sample.epoch,
            sample.key + (f" (instead of {sample.instead_of})" if sample.instead_of is not None else ""),
            sample.url or "not known",
            sample.uid,
            sample.shard,
            str(sample.offset),
            _comes_from(sample),
        ]
        for sample in traced.samples[:LISTED]
    ]
    blocks = [page.table(head, rows)]
    if len(traced.samples) > LISTED:
        blocks.append(page.paragraph(f"The first {LISTED:,} of {len(traced.samples):,}; --json has them all."))
    return blocks


def _comes_from(sample: TracedSample) -> str:
    if sample.verdict is not None:
        return f"row {sample.verdict['input_row']} of {sample.verdict['input_file']}"
    return f"input {sample.imported_from}" if sample.imported_from is not None else "not known"


def _verdict(sample: TracedSample) -> Html:
    verdict = sample.verdict
    assert verdict is not None
    head = ["step", "outcome", "reason", "value", "threshold"]
    rows: list[list[Value]] = [[step[name] for name in ("name", *head[1:])] for step in verdict.get("steps", ())]
    note = [page.paragraph(verdict["note"])] if verdict.get("note") else []
    title = f"{sample.key}: ledger {verdict['ledger']}, {_comes_from(sample)}, raw shard {verdict['raw_shard']}"
    return page.details(title, *([page.table(head, rows)] if rows else []), *note)

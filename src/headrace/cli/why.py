"""`headrace why`: what became of one row of the input, and why."""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.result import say_next
from headrace.text import cut_line, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.curation.why import RowStory

COLOURS = {"passed": "green", "dropped": "red", "not reached": "dim"}


def why_command(
    job: Annotated[str, typer.Argument(metavar="JOB|DATASET", help="Folder or URL of a job, or of a dataset.")],
    uid: Annotated[
        str,
        typer.Argument(help="A uid, the start of one, a URL of the list, or the key of a sample in a batch."),
    ],
    dataset: Annotated[
        str, typer.Option("--dataset", help="Name of the dataset to speak of; default: the published one.")
    ] = "",
    ledger: Annotated[
        str,
        typer.Option("--ledger", help="The ledger to speak of; default: the one that explains the dataset."),
    ] = "",
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Also find the nearest kept row and evaluation images; reads all hashes.")
    ] = False,
    index_dir: Annotated[str, typer.Option("--index-dir", help="Where the index of a read-only dataset lies.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Also show the hashes by which nothing was decided.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: one list with an object a row.")] = False,
) -> None:
    """Show every row of a uid, URL or key: how it was fetched, what each step decided, where it stands in the dataset.

    Of a dataset that was imported, or of tars of others: which input a sample was, and where it lies.

    Example: headrace why /data/job 0f3a9c
    """
    import dataclasses
    import json as json_module

    from rich.console import Console

    from headrace.curation.job import Job
    from headrace.curation.why import explain
    from headrace.trace.sample import is_dataset

    if is_dataset(job, index_dir):
        curated = _why_dataset(job, uid, index_dir, json=json)
        if curated is None:
            return
        job, dataset, ledger = curated
    stories = explain(Job(job), uid, dataset=dataset or None, ledger=ledger, nearest=nearest)
    if json:
        print(json_module.dumps([dataclasses.asdict(story) for story in stories], indent=1))
        return
    console = Console()
    for number, story in enumerate(stories):
        if number:
            console.rule()
        _show(console, story, everything=everything)
    named = [*(["--dataset", dataset] if dataset else []), *(["--ledger", ledger] if ledger else [])]
    say_next(["headrace", "report", job, *named])


def _why_dataset(url: str, query: str, index_dir: str, *, json: bool) -> tuple[str, str, str] | None:
    """Say where a sample of a dataset comes from; of a curated one return its (job, dataset, ledger), to say it all."""
    import json as json_module

    from headrace.trace.origin import origin_of
    from headrace.trace.sample import open_one, samples_named

    opened = open_one(url, index_dir)
    explained = origin_of(opened.sources[0].dataset).explained
    if explained is not None:
        return explained.decision.job.url, explained.dataset or "", explained.decision.ledger.name
    origin, samples = samples_named(opened, query)
    if json:
        print(json_module.dumps([{"comes_from": origin.text, "kind": origin.kind, **sample} for sample in samples]))
        return None
    print(one_line(origin.text))
    for sample in samples:
        print()
        for name, value in sample.items():
            if value is not None:
                print(f"{name.replace('_', ' '):<14} {_number(value)}")
    return None


def _show(console: "Console", story: "RowStory", *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(story):
        facts.add_row(Text(name, style="bold"), Text(value))
    console.print(facts)
    steps = Table("step", "outcome", "reason", "value", "threshold")
    for step in story.steps:
        cells = (step.name, step.outcome, step.reason or "", _number(step.value), _number(step.threshold))
        steps.add_row(*(Text(cell) for cell in cells), style=COLOURS[step.outcome])
    console.print(steps)
    shown = {name: value for name, value in story.columns.items() if value is not None and not isinstance(value, list)}
    hidden = () if everything else set(story.hashes).difference(story.decided_by).intersection(shown)
    columns = [f"{name} {_number(value)}" for name, value in shown.items() if name not in hidden]
    if hidden:
        columns.append(f"and {len(hidden)} hashes (--all)")
    if columns:
        console.print(Text(", ".join(columns), style="dim"))


def _facts(story: "RowStory") -> list[tuple[str, str]]:
    fetched = story.status or "unknown"
    if story.error_class:
        fetched += f": {story.error_class}" + (f" ({story.error_message})" if story.error_message else "")
    if story.reused_from:
        fetched += f", taken from {story.reused_from}"
    facts = [
        ("told by", f"ledger {story.ledger} ({story.dataset or 'no dataset is built from it'})"),
        ("uid", story.uid),
        ("url", _one_line(story.url)),
        ("caption", _one_line(story.caption) + (f" (of row {story.caption_of})" if story.caption_of else "")),
        *(("and", f"{_one_line(one.caption)} (of row {one.uid})") for one in story.captions[1:]),
        ("input", f"row {story.input_row} of {story.input_file}"),
        ("raw", f"shard {story.raw_shard}, key {story.key}: {_one_line(fetched)}"),
    ]
    if story.kept:
        built = story.build + (f": {story.build_reason}: {story.build_message}" if story.build_reason else "")
        place = f"kept: shard {story.out_shard}, index {story.out_index}, key {story.dataset_key} ({built})"
    else:
        drop = next(step for step in story.steps if step.outcome == "dropped")
        place = f"dropped by {drop.name}: {drop.reason}"
        if drop.duplicate_of is not None:
            place += f"; a copy of {_one_line(drop.duplicate_of)}"
    near = [("nearest", f"{item.kind} {_one_line(item.name)}: {item.distance} of 256 bits") for item in story.nearest]
    return [*facts, ("verdict", place), *near]


def _one_line(text: str | None) -> str:
    return "none" if text is None else cut_line(text)


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else _one_line(str(value))

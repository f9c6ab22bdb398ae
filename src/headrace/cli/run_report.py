"""`headrace run-report`: curves of one or several runs as one HTML page."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, say_json
from headrace.text import cut_line, printable

if TYPE_CHECKING:
    from headrace.page.html import Link
    from headrace.train.runs.report import Remarkable, Run

PICTURES = 64
MAX_TRACES = 200


def run_report_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page.")] = "run-report.html",
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Training runs",
    traces: Annotated[
        int,
        typer.Option(
            "--traces",
            metavar="N",
            min=0,
            max=MAX_TRACES,
            help="Write the `headrace trace` pages of up to N steps too, into OUT-traces/, and link them: steps that "
            "stopped a run, skipped ones, then those that stand out furthest.",
        ),
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Write one page that opens offline: loss, learning rate, gradient norms, speed, waiting, skipped steps, changes.

    Steps that stand out are listed with the command that shows their pictures, or with a link to its page.

    Example: headrace run-report runs/a runs/b --out compared.html --traces 10
    """
    from headrace import atomic
    from headrace.train.runs.report import read_runs, remarkable, render, summaries

    found = read_runs(runs)
    steps = remarkable(found)
    pages, traced = _trace(found, steps[:traces], out) if traces else ({}, [])
    atomic.write_atomic(out, render(found, title=title, pages=pages))
    rows = summaries(found)
    if json:
        say_json("run-report", {"page": out, "runs": rows, "traces": traced})
        return
    for row in rows:
        loss = "" if row["loss"] is None else f", loss {row['loss']:.4f}"
        best = row["best_validation_loss"]
        validation = "" if best is None else f", best validation loss {best:.4f}"
        skipped = f", {row['skipped_steps']} steps skipped" if row["skipped_steps"] else ""
        print(printable(f"{row['run']}: {row['steps']:,} steps{loss}{validation}{skipped}"))
    for one in traced:
        if one["why"]:
            print(cut_line(printable(f"{one['run']}: step {one['step']} cannot be traced: {one['why']}")))
    if traces:
        print(f"{len(pages)} of {len(steps)} steps that stand out are traced")
    print(f"{printable(out)} is written")


def _trace(
    runs: "list[Run]", steps: "list[Remarkable]", out: str
) -> "tuple[dict[Remarkable, Link], list[dict[str, Any]]]":
    """Write a page for each step; return the links to them, and what became of each."""
    from headrace import urlpath
    from headrace.page.html import Link
    from headrace.trace.pages import write_step_pages

    folder = f"{out.removesuffix('.html')}-traces"
    links: dict[Remarkable, Link] = {}
    traced: list[dict[str, Any]] = []
    with show_progress("trace"):
        for number, run in enumerate(runs):
            own = [step for name, step in steps if name == run.folder]
            names = {step: f"{number}-{_file_name(run.name)}-step-{step}.html" for step in own}
            pages = {step: urlpath.join(folder, name) for step, name in names.items()}
            why = write_step_pages(run.folder, pages, pictures=PICTURES) if pages else {}
            for step in own:
                page = None if why[step] else pages[step]
                traced.append({"run": run.name, "step": step, "page": page, "why": why[step] or None})
                if page:
                    path = (folder.rpartition("/")[2], names[step])
                    links[run.folder, step] = Link(path=path, text=f"pictures of step {step}")
    return links, traced


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name)[:60]

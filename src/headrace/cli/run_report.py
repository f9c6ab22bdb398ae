"""`headrace run-report`: curves of one or several runs as one HTML page."""

from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_json
from headrace.text import printable


def run_report_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page.")] = "run-report.html",
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Training runs",
    json: JsonOption = False,
) -> None:
    """Write one page that opens offline: loss, learning rate, gradient norms, speed, waiting, skipped steps, changes.

    Steps that stand out are listed with the command that shows their pictures.

    Example: headrace run-report runs/a runs/b --out compared.html
    """
    from headrace import files
    from headrace.train.runs.report import read_runs, render, summaries

    found = read_runs(runs)
    files.write_atomic(out, render(found, title=title))
    rows = summaries(found)
    if json:
        say_json("run-report", {"page": out, "runs": rows})
        return
    for row in rows:
        loss = "" if row["loss"] is None else f", loss {row['loss']:.4f}"
        best = row["best_validation_loss"]
        validation = "" if best is None else f", best validation loss {best:.4f}"
        skipped = f", {row['skipped_steps']} steps skipped" if row["skipped_steps"] else ""
        print(printable(f"{row['run']}: {row['steps']:,} steps{loss}{validation}{skipped}"))
    print(f"{printable(out)} is written")

"""`headrace report`: a job or a dataset as one HTML file and as JSON."""

from typing import Annotated

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, say_json


def report_command(
    target: Annotated[str, typer.Argument(metavar="JOB|DATASET|RECIPE.yaml", help="Folder of a job or dataset.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Folder to write to; default: report/ in the target.")
    ] = None,
    index_dir: Annotated[
        str | None, typer.Option("--index-dir", help="Where a read-only dataset's index lies.")
    ] = None,
    dataset: Annotated[
        str, typer.Option("--dataset", help="Of a job: the dataset built under this name; default: the published one.")
    ] = "",
    ledger: Annotated[
        str,
        typer.Option("--ledger", help="Of a job: this ledger; default: the one that explains the dataset."),
    ] = "",
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Pictures in each gallery.")] = None,
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Write report.html (one file, opens offline) and report.json.

    A job gives funnel, scores around each cut, failures and pictures; a dataset gives statistics only.

    Example: headrace report jobs/pool --out report-of-pool
    """
    from dataclasses import replace

    from headrace import files
    from headrace.curation.datasets import explain_dataset
    from headrace.curation.job import Job
    from headrace.curation.report.stage import report_dataset
    from headrace.curation.stages import config_of, explain_recipe, report_folder, report_job

    is_recipe = target.endswith((".yaml", ".yml"))
    if is_recipe:
        from headrace.curation.recipe import load_recipe

        recipe = load_recipe(target)
        target, config = recipe.job, recipe.report
        dataset = dataset or recipe.build.dataset
    else:
        config = config_of(Job(target))
    config = replace(config, title=config.title if title is None else title)
    config = replace(config, samples=config.samples if samples is None else samples)
    folder = out or report_folder(Job(target), dataset)
    is_job = files.exists(files.join(target, "job.json")) or files.exists(files.join(target, "ledger"))
    planned = is_recipe and dry_run  # other stages may come first
    if not (is_job or planned or files.exists(files.join(index_dir or target, "dataset.json"))):
        raise ValueError(
            f"{target} is neither a job (no job.json) nor an indexed dataset (no dataset.json); "
            "for tars without an index run `headrace index` first"
        )
    if dry_run:
        typer.echo(f"report: write {files.join(folder, 'report.html')} and report.json")
        return
    if is_job:
        of_recipe = is_recipe and not ledger
        explained = (
            explain_recipe(recipe)
            if of_recipe
            else explain_dataset(Job(target), dataset=dataset or None, ledger=ledger)
        )
        with show_progress("report") as on_progress:
            summary = report_job(explained, config, folder, on_progress=on_progress)
        if not json:
            typer.echo(f"report: of {explained}")
    else:
        with show_progress("report"):
            summary = report_dataset(target, config, folder, index_dir=index_dir)
    if json:
        say_json("report", summary)
    else:
        typer.echo(f"report: {summary}")

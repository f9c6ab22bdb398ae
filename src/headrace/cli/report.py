"""`headrace report`: a job or a dataset as one HTML file and as JSON."""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, after_datasets, say_json, say_next, say_plan
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.curation.datasets import Explained
    from headrace.curation.job import Job
    from headrace.curation.recipe import Recipe
    from headrace.curation.report.config import ReportConfig
    from headrace.curation.report.stage import ReportSummary


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
    from headrace import files
    from headrace.curation.datasets import explain_dataset
    from headrace.curation.job import Job
    from headrace.curation.stages import config_of, report_folder

    recipe = _recipe(target)
    job = Job(target if recipe is None else recipe.job)
    config = _changed(config_of(job) if recipe is None else recipe.report, title=title, samples=samples)
    is_job = files.exists(files.join(job.url, "job.json")) or files.exists(files.join(job.url, "ledger"))
    if not is_job and not (recipe is not None and dry_run):  # with a recipe, other stages may come before
        _check_dataset(job.url, index_dir or job.url)
    if is_job and ledger and not dataset:
        dataset = explain_dataset(job, ledger=ledger).dataset or ""
    asked = None if dataset or ledger else recipe
    folder = out or report_folder(job, dataset if asked is None else asked.build.dataset)
    if dry_run:
        say_plan("report", [f"report: write {files.join(folder, 'report.html')} and report.json"], json=json)
    elif is_job:
        _report_job(_explain(job, asked, dataset=dataset, ledger=ledger), config, folder, json=json)
    else:
        _report_dataset(job.url, config, folder, index_dir=index_dir, json=json)


def _recipe(target: str) -> "Recipe | None":
    from headrace.curation.recipe import load_recipe

    return load_recipe(target) if target.endswith((".yaml", ".yml")) else None


def _changed(config: "ReportConfig", *, title: str | None, samples: int | None) -> "ReportConfig":
    from dataclasses import replace

    config = config if title is None else replace(config, title=title)
    return config if samples is None else replace(config, samples=samples)


def _check_dataset(target: str, index_dir: str) -> None:
    from headrace import files

    if not files.exists(files.join(index_dir, "dataset.json")):
        raise ValueError(
            f"{target} is neither a job (no job.json) nor an indexed dataset (no dataset.json); "
            "for tars without an index run `headrace index` first"
        )


def _explain(job: "Job", recipe: "Recipe | None", *, dataset: str, ledger: str) -> "Explained":
    from headrace.curation.datasets import explain_dataset
    from headrace.curation.stages import explain_recipe

    if recipe is not None:
        return explain_recipe(recipe)
    return explain_dataset(job, dataset=dataset or None, ledger=ledger)


def _report_job(explained: "Explained", config: "ReportConfig", folder: str, *, json: bool) -> None:
    from headrace.curation.stages import report_job

    with show_progress("report") as on_progress:
        summary = report_job(explained, config, folder, on_progress=on_progress)
    if not json:
        print(printable(f"report: of {explained}"))
    dataset = explained.dataset_url
    _say(summary, [["headrace", "build", "RECIPE.yaml"]] if dataset is None else after_datasets(dataset), json=json)


def _report_dataset(url: str, config: "ReportConfig", folder: str, *, index_dir: str | None, json: bool) -> None:
    from headrace.curation.report.stage import report_dataset

    with show_progress("report"):
        summary = report_dataset(url, config, folder, index_dir=index_dir)
    _say(summary, after_datasets(url, index_dir=index_dir or ""), json=json)


def _say(summary: "ReportSummary", following: list[list[str]], *, json: bool) -> None:
    if json:
        say_json("report", summary)
    else:
        print(printable(f"report: {summary}"))
        say_next(*following)

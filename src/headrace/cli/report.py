"""`headrace report`: a job or a dataset as one HTML file and as JSON, or two of them beside each other."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headrace.cli.progress import show_progress
from headrace.cli.report_exports import check_exports, write_exports
from headrace.cli.report_lines import compare_lines, report_lines
from headrace.cli.result import NEW_MIXTURE, JsonOption, after_datasets, say_json, say_next, say_plan
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.curation.datasets import Explained
    from headrace.curation.job import Job
    from headrace.curation.recipe import Recipe
    from headrace.curation.report.compare.side import Side
    from headrace.curation.report.config import ReportConfig
    from headrace.curation.report.stage import ReportSummary

Pictures = Literal["harmless", "all", "none"]
COMPARE_FOLDER = "report-compare"
TARS_FOLDER = "report"


def report_command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB|DATASET|TARS|RECIPE.yaml [OTHER]",
            help="Folder of a job or dataset, or tars (quote a pattern); with a second one, both are compared.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", help="Folder to write to; default: report/ in the target, of tars in this folder."),
    ] = None,
    index_dir: Annotated[
        str | None, typer.Option("--index-dir", help="Where a read-only dataset's index lies, or that of tars is put.")
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
    pictures: Annotated[
        Pictures | None, typer.Option("--pictures", help="Which pictures are shown; default: as the recipe says.")
    ] = None,
    atlas: Annotated[
        str | None,
        typer.Option("--atlas", metavar="FILE.parquet", help="Also write a map of all rows, for Embedding Atlas."),
    ] = None,
    public: Annotated[
        str | None,
        typer.Option("--public", metavar="FILE.html|.json", help="Also write a summary to publish: domains, counts."),
    ] = None,
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Write report.html (one file, opens offline) and report.json; of two targets, compare.html and compare.json.

    A job gives funnel, what other thresholds keep, failures and pictures; a dataset or tars give statistics.

    Example: headrace report jobs/pool --out report-of-pool
    """
    if len(targets) > 2:
        raise ValueError(f"one target, or two to compare, got {len(targets)}; quote a pattern of tars: 'data/*.tar'")
    if len(targets) == 2:
        given = {
            "--dataset": dataset,
            "--ledger": ledger,
            "--index-dir": index_dir,
            "--atlas": atlas,
            "--public": public,
        }
        if refused := [name for name, value in given.items() if value]:
            raise ValueError(f"{', '.join(refused)}: not with two targets; name each dataset by its own folder")
        config = _changed(_config_of(targets[0]), title=title, samples=samples, pictures=pictures)
        _compare(targets, config, out or COMPARE_FOLDER, json=json, dry_run=dry_run)
        return
    places = {"out": out, "index_dir": index_dir, "dataset": dataset, "ledger": ledger}
    exports = {name: url for name, url in (("atlas", atlas), ("public", public)) if url is not None}
    check_exports(exports)
    changes = {"title": title, "samples": samples, "pictures": pictures}
    _report(targets[0], places, changes, exports, json=json, dry_run=dry_run)


def _report(
    target: str,
    places: dict[str, str | None],
    changes: dict[str, Any],
    exports: dict[str, str],
    *,
    json: bool,
    dry_run: bool,
) -> None:
    from headrace import urlpath
    from headrace.curation.datasets import explain_dataset
    from headrace.curation.job import Job
    from headrace.curation.report.stage import report_dataset
    from headrace.curation.stages import config_of, report_folder, report_job

    out, index_dir = places["out"], places["index_dir"]
    dataset, ledger = places["dataset"] or "", places["ledger"] or ""
    recipe = _recipe(target)
    job = Job(target if recipe is None else recipe.job)
    is_job = _is_job(job)
    config = _changed(config_of(job) if recipe is None else recipe.report, **changes)
    tars = not is_job and recipe is None and _are_tars(target, index_dir)
    if not is_job and not tars and not (recipe is not None and dry_run):  # with a recipe, other stages may come before
        _check_dataset(job.url, index_dir or job.url)
    if is_job and ledger and not dataset:
        dataset = explain_dataset(job, ledger=ledger).dataset or ""
    asked = None if dataset or ledger else recipe
    folder = out or (TARS_FOLDER if tars else report_folder(job, dataset if asked is None else asked.build.dataset))
    if dry_run:
        lines = [f"report: write {url}" for url in exports.values()]
        say_plan("report", [f"report: write {urlpath.join(folder, 'report.html')} and report.json", *lines], json=json)
        return
    explained = _explain(job, asked, dataset=dataset, ledger=ledger) if is_job else None
    with show_progress("report") as on_progress:
        if explained is not None:
            summary = report_job(explained, config, folder, on_progress=on_progress)
        else:
            summary = report_dataset(target, config, folder, index_dir=index_dir)
        written = write_exports(exports, _side_of(target, explained, index_dir), config) if exports else {}
    if explained is not None and not json:
        print(printable(f"report: of {explained}"))
    _say(summary, written, _following(target, explained, index_dir, tars=tars), json=json)


def _recipe(target: str) -> "Recipe | None":
    from headrace.curation.recipe import load_recipe

    return load_recipe(target) if target.endswith((".yaml", ".yml")) else None


def _is_job(job: "Job") -> bool:
    from headrace import files, urlpath

    return files.exists(urlpath.join(job.url, "job.json")) or files.exists(urlpath.join(job.url, "ledger"))


def _are_tars(target: str, index_dir: str | None) -> bool:
    from headrace import files, urlpath
    from headrace.shards.foreign.find import compressed_tars, expand_files
    from headrace.shards.foreign.unindexed import names_tars

    if names_tars(target):
        return True
    if files.exists(urlpath.join(index_dir or target, "dataset.json")):
        return False
    return bool(expand_files(target, ".tar") or compressed_tars(target))


def _config_of(target: str) -> "ReportConfig":
    from headrace.curation.job import Job
    from headrace.curation.stages import config_of

    recipe = _recipe(target)
    return config_of(Job(target)) if recipe is None else recipe.report


def _changed(config: "ReportConfig", **changes: Any) -> "ReportConfig":
    from dataclasses import replace

    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def _check_dataset(target: str, index_dir: str) -> None:
    from headrace import files, urlpath

    if not files.exists(urlpath.join(index_dir, "dataset.json")):
        raise ValueError(
            f"{target} is neither a job (no job.json), nor an indexed dataset (no dataset.json), nor a folder of tars; "
            "give the folder that the recipe names as `job`, a dataset, or tars"
        )


def _explain(job: "Job", recipe: "Recipe | None", *, dataset: str, ledger: str) -> "Explained":
    from headrace.curation.datasets import explain_dataset
    from headrace.curation.stages import explain_recipe

    if recipe is not None:
        return explain_recipe(recipe)
    return explain_dataset(job, dataset=dataset or None, ledger=ledger)


def _following(target: str, explained: "Explained | None", index_dir: str | None, *, tars: bool) -> list[list[str]]:
    """Return what one would type next."""
    if explained is not None:
        built = explained.dataset_url
        return [["headrace", "build", "RECIPE.yaml"]] if built is None else after_datasets(built)
    return [NEW_MIXTURE] if tars else after_datasets(target, index_dir=index_dir or "")


def _compare(targets: list[str], config: "ReportConfig", out: str, *, json: bool, dry_run: bool) -> None:
    from headrace import urlpath
    from headrace.curation.report.compare.stage import compare

    first, second = (_side(target) for target in targets)
    if dry_run:
        say_plan("report", [f"report: write {urlpath.join(out, 'compare.html')} and compare.json"], json=json)
        return
    with show_progress("report"):
        summary = compare((first, second), config, out)
    if json:
        say_json("report", summary)
        return
    for letter, side in zip("AB", (first, second), strict=True):
        print(printable(f"report: {letter} is {side.name}"))
    for line in compare_lines(summary.facts, summary.overlap):
        print(line)
    print(printable(f"report: {summary}"))
    say_next(*(["headrace", "report", target] for target in targets))


def _side(target: str) -> "Side":
    from headrace.curation.job import Job

    recipe = _recipe(target)
    job = Job(target if recipe is None else recipe.job)
    if _is_job(job):
        return _side_of(target, _explain(job, recipe, dataset="", ledger=""), None)
    if not _are_tars(target, None):
        _check_dataset(target, target)
    return _side_of(target, None, None)


def _side_of(target: str, explained: "Explained | None", index_dir: str | None) -> "Side":
    from headrace.curation.report.compare.side import Side
    from headrace.curation.report.stage import built_dataset, open_any

    dataset = open_any(target, index_dir=index_dir) if explained is None else built_dataset(explained)
    return Side(name=target, dataset=dataset, explained=explained)


def _say(summary: "ReportSummary", exports: dict[str, str], following: list[list[str]], *, json: bool) -> None:
    if json:
        say_json("report", {**dataclasses.asdict(summary), **exports})
    else:
        for line in report_lines(summary.facts, summary.funnel):
            print(line)
        print(printable(f"report: {summary}"))
        for url in exports.values():
            print(printable(f"report: {url}"))
        say_next(*following)

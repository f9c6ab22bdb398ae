"""The one place that knows a recipe and the stages: which part of the one each of the others takes.

What a stage needs is imported when it is called, so that a command waits for no library of another stage.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from headrace import files, urlpath
from headrace.config import build_config, config_to_dict
from headrace.curation.datasets import Explained, dataset_of
from headrace.curation.job import Job, fence_of_owner
from headrace.curation.ledger import Decision, LedgerSummary, digest_of, latest_decision
from headrace.curation.part import Divided
from headrace.curation.recipe import Recipe
from headrace.curation.report.config import ReportConfig
from headrace.lease import NO_FENCE, Fence
from headrace.shards.units import OnProgress, no_progress
from headrace.strict_yaml import parse_yaml
from headrace.text import without_secrets

if TYPE_CHECKING:
    from headrace.curation.annotate.stage import AnnotateSummary
    from headrace.curation.build.stage import BuildSummary, Origin
    from headrace.curation.fetch.stage import FetchSummary
    from headrace.curation.report.exports.public import Crawl
    from headrace.curation.report.shown.references import FindFaces
    from headrace.curation.report.stage import ReportSummary, ShownRecipe
    from headrace.curation.select.stage import Selection

log = logging.getLogger(__name__)

# What changes no result is not printed in a report.
_NOT_SHOWN = ("job", "engine", "limits")
_NO_RESULT = ("job", "engine", "limits", "report")
# What the parts of a stage must agree on; where none is named, on all that makes a result.
_DIVIDED_BY = {"fetch": ("input", "fetch", "seed"), "annotate": ("annotate",)}


def fetch(recipe: Recipe, *, on_progress: OnProgress = no_progress, retry_failed: bool = False) -> "FetchSummary":
    """Fetch what is not fetched yet."""
    from headrace.curation.fetch.stage import run_fetch

    return run_fetch(
        Job(recipe.job),
        recipe.input,
        recipe.fetch,
        seed=recipe.seed,
        engine=recipe.engine,
        on_progress=on_progress,
        retry_failed=retry_failed,
    )


def plan_fetch(recipe: Recipe, *, retry_failed: bool = False) -> list[str]:
    """Say what `fetch` would do."""
    from headrace.curation.fetch.stage import plan_fetch as plan

    return plan(
        Job(recipe.job),
        recipe.input,
        recipe.fetch,
        seed=recipe.seed,
        engine=recipe.engine,
        retry_failed=retry_failed,
    )


def annotate(recipe: Recipe, *, on_progress: OnProgress = no_progress) -> "AnnotateSummary":
    """Run every annotator on every raw shard it has not done yet."""
    from headrace.curation.annotate.stage import run_annotate

    return run_annotate(Job(recipe.job), recipe.annotate, engine=recipe.engine, on_progress=on_progress)


def plan_annotate(recipe: Recipe) -> list[str]:
    """Say what `annotate` would do."""
    from headrace.curation.annotate.stage import plan_annotate as plan

    return plan(Job(recipe.job), recipe.annotate)


def select(recipe: Recipe, *, on_progress: OnProgress = no_progress) -> LedgerSummary:
    """Write the ledger."""
    from headrace.curation.select.stage import run_select

    return run_select(
        Job(recipe.job),
        _selection(recipe),
        _annotations(recipe),
        limits=recipe.limits,
        engine=recipe.engine,
        on_progress=on_progress,
    )


def plan_select(recipe: Recipe, *, annotate_first: bool = False) -> list[str]:
    """Say what `select` would do."""
    from headrace.curation.select.stage import plan_select as plan

    return plan(
        Job(recipe.job),
        _selection(recipe),
        _annotations(recipe),
        limits=recipe.limits,
        engine=recipe.engine,
        annotate_first=annotate_first,
    )


def build(recipe: Recipe, *, on_progress: OnProgress = no_progress, start_over: bool = False) -> "BuildSummary":
    """Build every output shard of the ledger that is not built yet."""
    from headrace.curation.build.stage import run_build

    return run_build(
        Job(recipe.job),
        recipe.build,
        _origin(recipe),
        engine=recipe.engine,
        on_progress=on_progress,
        start_over=start_over,
    )


def plan_build(recipe: Recipe, *, start_over: bool = False, select_first: bool = False) -> list[str]:
    """Say what `build` would do."""
    from headrace.curation.build.stage import plan_build as plan

    return plan(Job(recipe.job), recipe.build, _origin(recipe), start_over=start_over, select_first=select_first)


def report(recipe: Recipe, *, on_progress: OnProgress = no_progress) -> "ReportSummary":
    """Write the report of the recipe's job."""
    job = Job(recipe.job)
    fence = fence_of_owner(job)
    out = report_folder(job, recipe.build.dataset)
    return report_job(explain_recipe(recipe), recipe.report, out, on_progress=on_progress, fence=fence)


def plan_report(recipe: Recipe) -> list[str]:
    """Say what `report` would do."""
    from headrace.curation.report.stage import plan_report as plan

    return plan(report_folder(Job(recipe.job), recipe.build.dataset))


def _divide_fetch(recipe: Recipe, **options: Any) -> Divided:
    from headrace.curation.fetch.stage import divide_fetch

    if options.pop("retry_failed", False):
        raise ValueError("--retry-failed is not divided: run it without --part, after --merge")
    return divide_fetch(Job(recipe.job), recipe.input, recipe.fetch, seed=recipe.seed, engine=recipe.engine, **options)


def _divide_annotate(recipe: Recipe, **options: Any) -> Divided:
    from headrace.curation.annotate.stage import divide_annotate

    return divide_annotate(Job(recipe.job), recipe.annotate, engine=recipe.engine, **options)


def _divide_build(recipe: Recipe, **options: Any) -> Divided:
    from headrace.curation.build.stage import divide_build

    return divide_build(Job(recipe.job), recipe.build, _origin(recipe), engine=recipe.engine, **options)


# Stage -> it as units, of which `--part` does some.
DIVIDE: Mapping[str, Callable[..., Divided]] = {
    "fetch": _divide_fetch,
    "annotate": _divide_annotate,
    "build": _divide_build,
}


def part_digest(recipe: Recipe, stage: str) -> str:
    """Return the digest of what must be the same in all parts of a stage."""
    data = config_to_dict(recipe)
    names = _DIVIDED_BY.get(stage, [name for name in data if name not in _NO_RESULT])
    return digest_of({name: data[name] for name in names})


# Stage -> what runs it: a function of (recipe, on_progress=..., further options); `str` of the result is one line.
RUN: Mapping[str, Callable[..., object]] = {
    "fetch": fetch,
    "annotate": annotate,
    "select": select,
    "build": build,
    "report": report,
}
PLAN: Mapping[str, Callable[..., list[str]]] = {
    "fetch": plan_fetch,
    "annotate": plan_annotate,
    "select": plan_select,
    "build": plan_build,
    "report": plan_report,
}


def report_job(
    explained: Explained,
    config: ReportConfig,
    out: str,
    *,
    on_progress: OnProgress = no_progress,
    fence: Fence = NO_FENCE,
) -> "ReportSummary":
    """Write the report of a ledger and its dataset into the folder `out`, with the recipe that lies in the job.

    Who owns the job gives its `fence`; who only reads it has none.
    """
    from headrace.curation.report.stage import run_report

    return run_report(
        explained,
        config,
        out,
        recipe=_shown_recipe(explained.decision),
        find_faces=_find_faces(explained.decision.job),
        on_progress=on_progress,
        fence=fence,
    )


def crawl_of(job: Job) -> "Crawl | None":
    """Return what the job's recipe says of its crawl; None if it has none, or took what somebody else fetched."""
    from headrace.curation.report.exports.public import Crawl

    data = _recipe_data(job)
    if data is None:
        return None
    recipe = build_config(Recipe, data)
    if recipe.input.raw is not None:
        return None
    signals = recipe.fetch.obeyed
    obeyed = {name: value for name, value in config_to_dict(signals).items() if isinstance(value, bool)}
    return Crawl(
        user_agent=recipe.fetch.user_agent, obeyed=obeyed, agents=signals.obey_agents, per_host=recipe.fetch.per_host
    )


def _find_faces(job: Job) -> "FindFaces | None":
    """Return the face detector of the job's recipe; None if it has none, or its model is not here."""
    import numpy as np

    from headrace.curation.annotate.annotators.faces import find_faces

    data = _recipe_data(job)
    try:
        config = None if data is None else getattr(build_config(Recipe, data).annotate, "faces", None)
        if config is None:
            return None
        find_faces(np.zeros((64, 64, 3), np.uint8), config)
    except (ValueError, OSError, ImportError) as error:
        log.info("%s: pictures of evaluation sets are not shown: %s", job.url, error)
        return None
    return lambda pixels: find_faces(pixels, config).boxes.tolist()


def report_folder(job: Job, dataset: str) -> str:
    """Return where the report of a dataset lies; of the published one in `report/` itself."""
    return urlpath.join(job.report, dataset) if dataset else job.report


def explain_recipe(recipe: Recipe) -> Explained:
    """Return the ledger that this recipe decided last, and the dataset built from it. Raises ValueError."""
    decision = latest_decision(Job(recipe.job), decided_by(recipe))
    return Explained(decision, dataset_of(decision, recipe.build.dataset))


def config_of(job: Job) -> ReportConfig:
    """Return what the job's own recipe says about its report; the defaults if it is no job."""
    data = _recipe_data(job)
    return ReportConfig() if data is None else build_config(ReportConfig, data.get("report", {}))


def decided_by(recipe: Recipe) -> str:
    """Return what `decided_by` of a ledger is if this recipe made it. Reads model files, as their content counts."""
    return _decision_digest(recipe, {name: urlpath.basename(url) for name, url in _annotations(recipe).items()})


def decides(recipe: Recipe, ledger: LedgerSummary) -> bool:
    """True if `recipe` made the ledger. Where a model file is out of reach, its annotators count as the ledger's."""
    try:
        return decided_by(recipe) == ledger.decided_by
    except ValueError:
        return _decision_digest(recipe, ledger.annotations) == ledger.decided_by


def _decision_digest(recipe: Recipe, annotations: Mapping[str, str]) -> str:
    from headrace.curation.select.stage import decision_digest

    return decision_digest(_selection(recipe), annotations)


def _selection(recipe: Recipe) -> "Selection":
    from headrace.curation.select.place import Placement
    from headrace.curation.select.stage import Selection

    return Selection(steps=recipe.steps, placement=Placement(seed=recipe.seed, **config_to_dict(recipe.placement)))


def _annotations(recipe: Recipe) -> dict[str, str]:
    from headrace.curation.annotate.tables import annotation_folders

    return annotation_folders(recipe.annotate, Job(recipe.job))


def _origin(recipe: Recipe) -> "Origin":
    from headrace.curation.build.config import settings_of
    from headrace.curation.build.stage import Origin

    data = {name: value for name, value in config_to_dict(recipe).items() if name not in _NO_RESULT}
    # Where it lies is no part of what it is; nor are keys of later versions, where they change nothing.
    settings = settings_of(recipe.build)
    data["build"] = {name: value for name, value in settings.items() if name not in ("dataset", "card")}
    data["placement"] = recipe.placement.settings()
    return Origin(
        decided_by=decided_by(recipe),
        placement=recipe.placement.settings(),
        recipe_digest=digest_of(data),
        card=_card(recipe, {name: value for name, value in settings.items() if name not in ("dataset", "card")}),
    )


def _card(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what of a recipe the card of its dataset tells: names of lists, and no place on this machine."""
    lists = recipe.input.urls or ((recipe.input.raw,) if recipe.input.raw else ())
    sources = [urlpath.basename(without_secrets(url).rstrip("/")) for url in lists]
    card = config_to_dict(recipe.build.card)
    card["title"] = card["title"] or sources[0].partition(".")[0] or "dataset"
    obeyed = config_to_dict(recipe.fetch.obeyed)
    return {
        "card": card,
        "sources": sources,
        "fetched": recipe.input.raw is None,
        "signals": [name for name, value in obeyed.items() if value is True],
        "blocklist": bool(recipe.fetch.blocklist),
        "unsafe_images": recipe.unsafe_images,
        "build": settings,
    }


def _shown_recipe(decision: Decision) -> "ShownRecipe":
    """Return the recipe of the last stage that finished, without what changes no result."""
    from headrace.curation.report.stage import ShownRecipe

    job = decision.job
    data = _recipe_data(job)
    if data is None:
        return ShownRecipe()
    shown = {name: value for name, value in data.items() if name not in _NOT_SHOWN}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)
    try:
        decided = decides(build_config(Recipe, data), decision.summary)
    except ValueError as error:
        log.info("%s/recipe.yaml: %s", job.url, error)
        decided = False
    return ShownRecipe(text=text, decided=decided)


def recipe_of_img2dataset(arguments: str) -> str:
    """Return an img2dataset command line as a recipe: YAML, with a comment for each flag that is not the same here.

    Raises ValueError for what img2dataset, or a recipe, would not take.
    """
    from headrace.curation.fetch.img2dataset.flags import recipe_data

    data, told = recipe_data(arguments)
    build_config(Recipe, data)
    notes = "".join(f"# --{flag}: {text}\n" for flag, text in told.items())
    head = "# From the command line of img2dataset. What is not the same here:\n" if notes else ""
    return head + notes + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def _recipe_data(job: Job) -> dict[str, Any] | None:
    """Return the recipe of the last stage that finished, as it was understood; None if there is none."""
    url = urlpath.join(job.url, "recipe.yaml")
    try:
        data = parse_yaml(files.read_bytes(url).decode())
    except (FileNotFoundError, NotADirectoryError):  # the latter where tars are named, and no job
        return None
    if not isinstance(data, dict):
        raise ValueError(f"{url}: expected a mapping at the top, got {type(data).__name__}")
    return data

"""Select: tables of raw rows and annotations -> the ledger, one verdict for every input row.

Global and exact, in the order the recipe states. The one thing a reader would get wrong: select reads only the
annotations of the recipe's own annotators and settings; columns that another recipe left in the job are not seen.
"""

from typing import TYPE_CHECKING

import pyarrow as pa

from headrace import files
from headrace.config import config_to_dict
from headrace.curation.annotate.config import annotators
from headrace.curation.annotate.tables import annotation_folders
from headrace.curation.engine import OnProgress, no_progress
from headrace.curation.fetch.lists.inputs import lists_are_text
from headrace.curation.job import Job
from headrace.curation.ledger import LedgerSummary
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.select.load import Annotation, Inputs, NotReadyError, find_inputs, visible_columns
from headrace.curation.select.place import Placement
from headrace.curation.select.stage import Plan, check_columns, check_plan, decision_digest, select_rows

if TYPE_CHECKING:
    from headrace.curation.recipe import Recipe

__all__ = ["check_recipe", "decided_by", "decides", "plan_select", "run_select"]


def plan_select(recipe: "Recipe", *, annotate_first: bool = False) -> list[str]:
    """Say what select would do: each step, and whether it fits the columns there are (or will be)."""
    job = Job(recipe.job)
    lines = [f"{len(recipe.select)} steps after fetch and decode; ledgers at {job.ledgers}"]
    for number, step in enumerate(recipe.select):
        settings = {name: value for name, value in config_to_dict(step).items() if name not in ("step", "name")}
        shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        lines.append(f"  {number + 1}. {step.name} ({step.step}): {shown}")
    check_recipe(recipe)
    try:
        inputs = _inputs(recipe)
        columns = check_plan(inputs, _plan(recipe))
    except NotReadyError as error:
        return [*lines, "from the rows that fetch and annotate will write" if annotate_first else f"not ready: {error}"]
    return [*lines, f"from {len(inputs.shards)} raw shards with the columns {', '.join(columns)}"]


def check_recipe(recipe: "Recipe") -> None:
    """Check the steps before anything is fetched, against the columns that the stages before will make.

    Raises ValueError for an expression that is not accepted, or a column that nothing makes. Columns carried from the
    input list are text if it is csv, else of no type yet; of existing raw shards (`input.raw`) not even the names are
    known: nothing is checked.
    """
    if recipe.input.raw is not None:
        return
    annotated = [annotator.columns for annotator in annotators(recipe.annotate).values()]
    schemas, untyped = [*annotated, OWN_SCHEMA], recipe.input.columns
    if lists_are_text(recipe.input):
        schemas, untyped = [*schemas, pa.schema([(name, pa.string()) for name in untyped])], ()
    check_columns(recipe.select, visible_columns(schemas), untyped)


def run_select(recipe: "Recipe", *, on_progress: OnProgress = no_progress) -> LedgerSummary:
    """Write the ledger; nothing is done where it already follows from the same inputs and recipe."""
    return select_rows(
        _inputs(recipe), _plan(recipe), limits=recipe.limits, engine=recipe.engine, on_progress=on_progress
    )


def decided_by(recipe: "Recipe") -> str:
    """Return what `decided_by` of a ledger is if this recipe made it. Reads model files, as their content counts."""
    folders = annotation_folders(recipe.annotate, Job(recipe.job))
    return decision_digest(_plan(recipe), {name: files.basename(url) for name, url in folders.items()})


def decides(recipe: "Recipe", ledger: LedgerSummary) -> bool:
    """True if `recipe` made the ledger. Where a model file is out of reach, its annotators count as the ledger's."""
    try:
        return decided_by(recipe) == ledger.decided_by
    except ValueError:
        return decision_digest(_plan(recipe), ledger.annotations) == ledger.decided_by


def _inputs(recipe: "Recipe") -> Inputs:
    job = Job(recipe.job)
    folders = annotation_folders(recipe.annotate, job)
    return find_inputs(job, [Annotation(name, url) for name, url in folders.items()])


def _plan(recipe: "Recipe") -> Plan:
    placement = Placement(
        seed=recipe.seed,
        shuffle_window=recipe.build.shuffle_window,
        samples_per_shard=recipe.build.samples_per_shard,
    )
    return Plan(steps=recipe.select, placement=placement)

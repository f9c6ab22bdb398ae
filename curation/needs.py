"""What the stages of a recipe need, looked for before the first of them starts.

A fetch may take days; a mistyped path of a model, or a package that is not installed, must not wait for its end.
"""

import importlib.util
from collections.abc import Sequence

import pyarrow as pa

from headrace import files
from headrace.curation.annotate.config import annotators
from headrace.curation.annotate.tables import annotation_digests
from headrace.curation.fetch.lists.inputs import lists_are_text
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.recipe import Recipe
from headrace.curation.select.load import visible_columns
from headrace.curation.select.stage import check_columns


def check_needs(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ValueError for a model file or an evaluation set that is not there, ModuleNotFoundError for a package."""
    if "annotate" in stages:
        for name, annotator in annotators(recipe.annotate).items():
            _check_packages(f"annotate.{name}", annotator.packages)
        annotation_digests(recipe.annotate)
    if "select" in stages:
        for step in recipe.select:
            _check_packages(f"step {step.name!r}", step.packages)
            for evaluation in step.evaluation_sets():
                if not files.exists(evaluation.url):
                    raise ValueError(f"evaluation set {evaluation.name!r}: no such file or folder: {evaluation.url}")


def check_recipe(recipe: Recipe) -> None:
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


def _check_packages(who: str, packages: Sequence[str]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{who} needs the package {package}", name=package)

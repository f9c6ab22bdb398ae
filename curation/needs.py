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
from headrace.curation.fetch.lists.label import LABEL
from headrace.curation.raw.img2dataset import foreign_shards
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.recipe import Recipe
from headrace.curation.select.evaluation import check_evaluation_set
from headrace.curation.select.load import visible_columns
from headrace.curation.select.stage import check_columns
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.parquet import open_parquet
from headrace.text import shown


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
                check_evaluation_set(evaluation)


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
        carried = [(name, pa.int64() if name == LABEL else pa.string()) for name in untyped]
        schemas, untyped = [*schemas, pa.schema(carried)], ()
    check_columns(recipe.select, visible_columns(schemas), untyped)


def check_names(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ValueError for a carried column whose name means another one later, or one that nothing makes.

    What was fetched under such a name could not be given another one.
    """
    from headrace.curation.build.unit import BUILT_FIELDS, CAPTION_OF

    if "fetch" not in stages:
        return
    made = {
        name.lower(): f"annotate.{key}"
        for key, one in annotators(recipe.annotate).items()
        for name in one.columns.names
    }
    for name in recipe.input.columns:
        if name.lower() in made:
            raise ValueError(
                f"input.columns: {name!r} is a column that {made[name.lower()]} makes; give the column of the list "
                "another name, leave it out, or the annotator"
            )
    built = {*BUILT_FIELDS.names, CAPTION_OF.name}
    own = {name for name in INDEX_SCHEMA.names if name != LABEL and name in recipe.input.columns}
    taken = [name for name in recipe.build.columns if name in own | built]
    if taken:
        raise ValueError(
            f"build.columns: every dataset has a column {taken[0]!r} of its own; give the one of the list another "
            "name, or leave it out of build.columns"
        )
    known = {*made, *(name.lower() for name in (*recipe.input.columns, *_raw_columns(recipe), *INDEX_SCHEMA.names))}
    unknown = [name for name in recipe.build.columns if name.lower() not in known]
    if unknown:
        raise ValueError(
            f"build.columns: nothing makes {shown(unknown[0])}: input.columns does not carry it, and no annotator of "
            f"the recipe makes it; known columns: {', '.join(sorted(known))}"
        )


def _raw_columns(recipe: Recipe) -> list[str]:
    names = list(OWN_SCHEMA.names)
    if recipe.input.raw is not None:
        first = foreign_shards(recipe.input.raw)[0]
        with open_parquet(files.join(recipe.input.raw, f"{first}.parquet")) as parquet:
            names += parquet.schema.names
    return names


def _check_packages(who: str, packages: Sequence[str]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{who} needs the package {package}", name=package)

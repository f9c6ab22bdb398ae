"""What the stages of a recipe need, looked for before the first of them starts.

A fetch may take days; a mistyped path of a model, or a package that is not installed, must not wait for its end.
"""

import importlib.util
from collections.abc import Sequence

import pyarrow as pa

from headrace import urlpath
from headrace.curation.annotate.config import annotators
from headrace.curation.annotate.tables import annotation_digests, annotation_folders
from headrace.curation.blocklist import load_blocklist
from headrace.curation.fetch.lists.inputs import lists_are_text
from headrace.curation.fetch.lists.label import LABEL
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import foreign_shards
from headrace.curation.raw.schema import OWN_SCHEMA
from headrace.curation.recipe import Recipe
from headrace.curation.select.evaluation import check_evaluation_set
from headrace.curation.select.load import visible_columns
from headrace.curation.select.stage import check_columns
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.parquet import open_parquet
from headrace.text import known_words, shown


def check_needs(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ValueError for a model file or an evaluation set that is not there, or is none, or is another's.

    Raises ModuleNotFoundError for a package.
    """
    if "fetch" in stages and recipe.fetch.engine == "img2dataset" and recipe.input.urls:
        _check_packages("fetch.engine: img2dataset", ["img2dataset"])
    if "annotate" in stages:
        for name, annotator in annotators(recipe.annotate).items():
            _check_packages(f"annotate.{name}", annotator.needed_packages())
            annotator.check_models()
        annotation_digests(recipe.annotate)
    if recipe.fetch.blocklist and {"fetch", "select"} & set(stages):
        load_blocklist(recipe.fetch.blocklist)
    if "select" in stages:
        for step in recipe.steps:
            _check_packages(f"step {step.name!r}", step.needed_packages())
            for evaluation in step.evaluation_sets():
                check_evaluation_set(evaluation)
        # Of the models only what a step counts on: select names any other that is not there itself.
        counted_on = {name for step in recipe.steps for name in step.counts_on()}
        annotations = annotation_folders(recipe.annotate, Job(recipe.job), counted_on)
        for step in recipe.steps:
            step.check_annotations(annotations)


def check_recipe(recipe: Recipe) -> None:
    """Check the steps before anything is fetched, against the columns that the stages before will make.

    Raises ValueError for an expression that is not accepted, or a column that nothing makes. Columns carried from the
    input list are text if it is csv, else of no type yet; of existing raw shards (`input.raw`) not even the names are
    known: nothing is checked.
    """
    if recipe.input.raw is not None:
        return
    annotated = [annotator.schema() for annotator in annotators(recipe.annotate).values()]
    schemas, untyped = [*annotated, OWN_SCHEMA], recipe.input.columns
    if lists_are_text(recipe.input):
        carried = [(name, pa.int64() if name == LABEL else pa.string()) for name in untyped]
        schemas, untyped = [*schemas, pa.schema(carried)], ()
    check_columns(recipe.steps, visible_columns(schemas), untyped)


def check_names(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ValueError for a carried column whose name means another one later, or one that nothing makes.

    What was fetched under such a name could not be given another one.
    """
    from headrace.curation.build.captions import ALL_CAPTIONS, CAPTION_OF
    from headrace.curation.build.labels import LABELS
    from headrace.curation.build.unit import BUILT_FIELDS, CAPTION_CHOSEN, REGIONS_BLURRED

    needing = [name for name in stages if name in ("annotate", "build")]
    if needing and recipe.input.urls and recipe.fetch.output_format != "webdataset":
        raise ValueError(
            f"fetch.output_format: {recipe.fetch.output_format} is for fetch alone; {' and '.join(needing)} read tars: "
            "leave it at webdataset for this job"
        )
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
    built = {*BUILT_FIELDS.names, CAPTION_OF.name, REGIONS_BLURRED.name}
    if recipe.build.chooses_captions:
        built |= set(CAPTION_CHOSEN.names)
    if any(step.merges_captions() for step in recipe.steps):
        built |= set(ALL_CAPTIONS.names)
    if recipe.build.labels.column:
        built |= {LABELS.name}
    own = {name for name in INDEX_SCHEMA.names if name != LABEL and name in recipe.input.columns}
    taken = [name for name in recipe.build.carried if name in own | built]
    if taken:
        raise ValueError(
            f"build.columns: every dataset has a column {taken[0]!r} of its own; give the one of the list another "
            "name, or leave it out of build.columns"
        )
    known = {*made, *(name.lower() for name in (*recipe.input.columns, *_raw_columns(recipe), *INDEX_SCHEMA.names))}
    settings = {"columns": recipe.build.columns, "caption": recipe.build.caption}
    settings |= {"labels.column": (recipe.build.labels.column,)} if recipe.build.labels.column else {}
    for setting, names in settings.items():
        unknown = [name for name in names if name.lower() not in known]
        if unknown:
            raise ValueError(
                f"build.{setting}: nothing makes {shown(unknown[0])}: input.columns does not carry it, and no "
                f"annotator of the recipe makes it; {known_words(unknown[0], sorted(known), what='known columns')}"
            )
    _check_label_type(recipe)


def _check_label_type(recipe: Recipe) -> None:
    """Raise ValueError for a column of an annotator that can be no label; of carried ones the type is known later."""
    from headrace.curation.build.labels import check_type

    for one in annotators(recipe.annotate).values():
        if recipe.build.labels.column in one.columns.names:
            check_type(one.columns.field(recipe.build.labels.column).type, recipe.build.labels)


def _raw_columns(recipe: Recipe) -> list[str]:
    names = list(OWN_SCHEMA.names)
    if recipe.input.raw is not None:
        first = foreign_shards(recipe.input.raw)[0]
        with open_parquet(urlpath.join(recipe.input.raw, f"{first}.parquet")) as parquet:
            names += parquet.schema.names
    return names


def _check_packages(who: str, packages: Sequence[str]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{who} needs the package {package}", name=package)

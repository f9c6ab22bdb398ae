"""What the stages of a recipe need, looked for before the first of them starts.

A fetch may take days; a mistyped path of a model, or a package that is not installed, must not wait for its end.
"""

import importlib.util
from collections.abc import Sequence

from headrace import files
from headrace.curation.annotate.config import annotators
from headrace.curation.annotate.tables import annotation_digests
from headrace.curation.recipe import Recipe


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


def _check_packages(who: str, packages: Sequence[str]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{who} needs the package {package}", name=package)

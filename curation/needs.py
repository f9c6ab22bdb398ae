"""What the stages of a recipe need, looked for before the first of them starts.

A fetch may take days; a mistyped path of a model, or a package that is not installed, must not wait for its end.
"""

import importlib.util
from collections.abc import Sequence

from headrace import files
from headrace.curation.annotate import annotation_digests
from headrace.curation.recipe import Recipe
from headrace.curation.select.steps.configs import Decontaminate

# Annotator -> packages of the extras that it imports.
PACKAGES = {"clip": ("open_clip", "torch"), "unsafe_image": ("onnxruntime",)}


def check_needs(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ValueError for a model file or an evaluation set that is not there, ModuleNotFoundError for a package."""
    if "annotate" in stages:
        for annotator, packages in PACKAGES.items():
            for package in packages:
                if getattr(recipe.annotate, annotator) is not None and importlib.util.find_spec(package) is None:
                    raise ModuleNotFoundError(f"annotate.{annotator} needs {package}", name=package)
        annotation_digests(recipe.annotate)
    if "select" in stages:
        for step in recipe.select:
            for evaluation in step.against if isinstance(step, Decontaminate) else ():
                if not files.exists(evaluation.url):
                    raise ValueError(f"evaluation set {evaluation.name!r}: no such file or folder: {evaluation.url}")

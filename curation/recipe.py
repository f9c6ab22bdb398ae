"""A recipe: one YAML file that says everything about a job of curation.

The one thing a reader would get wrong: `unsafe_images: remove` is the default and a promise; a recipe that cannot
keep it (no image model, no `unsafe` step) is refused, until it says `off`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from headrace import files
from headrace.config import config_to_dict, load_config
from headrace.curation.annotate.config import AnnotateConfig
from headrace.curation.build.config import BuildConfig
from headrace.curation.engine import EngineConfig
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.report.config import ReportConfig
from headrace.curation.select.steps.configs import Limits, SelectStep, Unsafe, check_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """From a URL list to a dataset."""

    job: str
    """Folder of the job, at any fsspec URL; everything is written under it."""
    seed: int = 0
    """Seed of the order of the rows and of the shuffle of the dataset."""
    unsafe_images: Literal["remove", "off"] = "remove"
    """`remove` promises that images over the unsafe step's threshold are gone; `off` makes no promise."""
    input: InputConfig
    """The URL list, or raw shards that exist already."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How the list is downloaded."""
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    """Which columns are computed."""
    select: tuple[SelectStep, ...] = ()
    """The steps that decide what is kept, in order."""
    build: BuildConfig = field(default_factory=BuildConfig)
    """How the dataset is written."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """What the report shows."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Where the work runs. Never changes the result."""
    limits: Limits = field(default_factory=Limits)
    """What the database of select may use. Never changes the result."""

    def __post_init__(self) -> None:
        if not self.job.strip(" /"):
            raise ValueError(f"job must name a folder, got {self.job!r}")
        if self.engine.executor != "inline":
            files.check_shared(self.job, self.input.raw or "")
        check_steps(self.select)
        if self.unsafe_images == "remove":
            self._check_unsafe_promise()
        if self.build.blur_faces and self.annotate.faces is None:
            raise ValueError(
                "build.blur_faces is on, but no faces would be found: add annotate.faces or build.blur_faces: false"
            )

    def _check_unsafe_promise(self) -> None:
        if self.annotate.unsafe_image is None:
            missing = "annotate.unsafe_image has no model"
        elif not any(isinstance(step, Unsafe) and step.image_threshold is not None for step in self.select):
            missing = "select has no step `unsafe` with an image_threshold"
        else:
            return
        raise ValueError(
            f"the recipe promises to remove unsafe images, but {missing}; add it, or say unsafe_images: off"
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file. Raises ValueError naming the file, the key and what to do."""
    return load_config(Recipe, path, overrides)


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as it was understood, defaults included, as YAML that `load_recipe` reads."""
    return yaml.safe_dump(config_to_dict(recipe), sort_keys=False, allow_unicode=True, width=120)

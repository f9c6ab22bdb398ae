"""A recipe: one YAML file that says everything about a job of curation.

`unsafe_images: remove` is the default and a promise: a recipe that cannot keep it (no image model, no step that removes
them) is refused, until it says `off`. So is `build.blur_faces` without a detector that finds them, until it says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml

from headrace import urlpath
from headrace.config import config_to_dict, load_config
from headrace.config_types import Extended
from headrace.curation.annotate.annotators import column_hints
from headrace.curation.annotate.annotators.faces import FacesConfig
from headrace.curation.annotate.config import AnnotateConfig, annotate_config, annotate_config_type, annotators
from headrace.curation.build.config import BuildConfig
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.report.config import ReportConfig
from headrace.curation.select.database import Limits
from headrace.curation.select.place import PlacementConfig
from headrace.curation.select.step import Step
from headrace.curation.select.steps import SelectStep, check_steps
from headrace.curation.select.steps.blocked import Blocked
from headrace.shards.units import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """From a URL list to a dataset."""

    job: str
    """Folder of the job, at any fsspec URL; everything is written under it."""
    seed: int = 0
    """Seed of the order of the rows and of the shuffle of the dataset."""
    unsafe_images: Literal["remove", "off"] = "remove"
    """`remove` promises that a step removes unsafe images (`unsafe` does); `off` makes no promise."""
    input: InputConfig
    """The URL list, or raw shards that exist already."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How the list is downloaded."""
    annotate: Annotated[AnnotateConfig, Extended(annotate_config_type)] = field(default_factory=annotate_config)
    """Which columns are computed."""
    select: tuple[SelectStep, ...] = ()
    """The steps that decide what is kept, in order."""
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    """Where kept rows go."""
    build: BuildConfig = field(default_factory=BuildConfig)
    """How the dataset is written."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """What the report shows."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Where the work runs. Never changes the result."""
    limits: Limits = field(default_factory=Limits)
    """What the database of select may use. Never changes the result."""

    moved_keys: ClassVar[Mapping[str, str]] = {
        "build.samples_per_shard": "placement.samples_per_shard",
        "build.shuffle_window": "placement.shuffle_window",
    }

    def __post_init__(self) -> None:
        if not self.job.strip(" /"):
            raise ValueError(f"job must name a folder, got {self.job!r}")
        if self.engine.executor != "inline":
            urlpath.check_shared(self.job, self.input.raw or "", *self.input.reuse)
        made = [name for name in self.input.columns if name in self.fetch.made_columns]
        if made:
            raise ValueError(
                f"input.columns: fetch makes a column {made[0]!r} itself (fetch.hashes, fetch.exif); leave one out"
            )
        check_steps(self.steps)
        if self.unsafe_images == "remove":
            self._check_unsafe_promise()
        if self.placement.bytes_per_shard and "quality" not in annotators(self.annotate):
            raise ValueError("placement.bytes_per_shard needs annotate.quality, which measures the images")
        if self.build.blur_faces and "faces" not in annotators(self.annotate):
            raise ValueError(
                "build.blur_faces is on, but no faces would be found: add annotate.faces or build.blur_faces: false"
            )
        if self.build.blur_faces:
            self._check_blurring_promise()

    def _check_blurring_promise(self) -> None:
        faces: object = getattr(self.annotate, "faces", None)
        if isinstance(faces, FacesConfig) and faces.is_weak and not faces.accept_weak:
            raise ValueError(
                "the recipe promises blurred faces (build.blur_faces), and detector haar misses most of them: say "
                "annotate.faces: {detector: centerface} (its file: headrace models get centerface), or add "
                "accept_weak: true to it, or build.blur_faces: false"
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of select: a blocklist comes before those that are written."""
        return (Blocked(files=self.fetch.blocklist), *self.select) if self.fetch.blocklist else self.select

    def _check_unsafe_promise(self) -> None:
        hints = column_hints()
        made = {column for annotator in annotators(self.annotate).values() for column in annotator.columns.names}
        keeping = [step for step in self.select if step.unsafe_image_columns()]
        missing = "" if keeping else "select has no step that removes them (`unsafe` with an image_threshold); add it"
        for step in keeping:
            for column in step.unsafe_image_columns():
                if column in hints and column not in made:
                    missing = f"step {step.name!r} needs {column}: {hints[column]}"
        if missing:
            raise ValueError(f"the recipe promises to remove unsafe images, but {missing}, or say unsafe_images: off")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file. Raises ValueError naming the file, the key and what to do."""
    return load_config(Recipe, path, overrides)


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as it was understood, defaults included, as YAML that `load_recipe` reads."""
    return yaml.safe_dump(config_to_dict(recipe), sort_keys=False, allow_unicode=True, width=120)

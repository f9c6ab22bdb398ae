"""What an annotator is: columns, settings, and a function from a batch of images to values of those columns.

An annotator is a pure function of a batch: it sees no file names, no other row and no clock. Constructing one loads
nothing, so select and build can ask for its digest on a machine without torch or a GPU; models are loaded by the first
`annotate` in a process.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.config import canonical_json
from headrace.shards.images.header import ImageHeader
from headrace.shards.resources import ONE_CPU, Resources
from headrace.text import without_secrets

Pixels = NDArray[np.uint8]
Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationBatch:
    """Consecutive rows of one raw shard; every list has one item a row."""

    keys: list[str]
    captions: list[str | None]
    data: list[bytes | None]
    """The stored bytes; None where they were not read, and everywhere if no annotator needs pixels."""
    sha256: list[str | None]
    """Of the bytes as fetched (a fetch that resized stored others)."""
    headers: list[ImageHeader | None]
    images: list[Pixels | None]
    """uint8 [H, W, 3], upright; None where `errors` says why, and everywhere if no annotator needs pixels."""
    errors: list[str | None]
    """`class: message` of the images that do not decode."""
    shared: dict[Any, Any] = field(default_factory=dict)
    """What annotators of this batch computed for one another, by a key that says of what."""


class Annotator:
    """One row in, one row of columns out, and what the rest of curation asks of it.

    An annotator is one file with one subclass, and one line in the table `ANNOTATORS`, or in the extension of another
    package. Its docstring's first line is what `headrace annotators` says.
    """

    name: ClassVar[str]
    """Its key in the recipe, and the beginning of its folder's name."""
    version: ClassVar[int]
    """Raised whenever the same input and settings would give other values."""
    columns: ClassVar[pa.Schema]
    """The columns after `key`."""
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {}
    """Version -> its columns, of the versions that it can still make: a job that has tables of one goes on with it."""
    needs_pixels: ClassVar[bool]
    config_type: ClassVar[type[Any]]
    """The frozen dataclass of its settings in a recipe."""
    by_default: ClassVar[bool] = False
    """True if it runs, with its defaults, where a recipe does not name it."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Python packages that it imports and that headrace alone does not bring."""
    hint: ClassVar[str] = ""
    """What to do where a column is missing; empty: add its key to the recipe."""
    not_carried: ClassVar[frozenset[str]] = frozenset()
    """Columns that build leaves out: facts of the fetched image; the index measures them again on the published one."""
    of_caption: ClassVar[frozenset[str]] = frozenset()
    """Columns that follow from the caption: where a row takes the caption of another, it takes these with it."""
    hides: ClassVar[str] = ""
    """Column of boxes (x0, y0, x1, y1 as fractions of the upright image) that build blurs; empty: none."""
    no_amounts: ClassVar[frozenset[str]] = frozenset()
    """Columns of numbers that are no amounts, so that a histogram says nothing."""

    def __init__(self, config: Any, made_as: int | None = None) -> None:
        self.config = config
        self._made_as = made_as

    @property
    def made_as(self) -> int:
        """The version whose columns and values it makes: `version`, or one of `earlier`."""
        return self.version if self._made_as is None else self._made_as

    def schema(self) -> pa.Schema:
        """Return the columns after `key` of the version that it makes."""
        if self.made_as == self.version:
            return self.columns
        return pa.schema([self.columns.field(name) for name in self.earlier[self.made_as]])

    def needed_packages(self) -> tuple[str, ...]:
        """Return the packages that this one, with its settings, imports."""
        return self.packages

    def resources(self) -> Resources:
        """Return what one process takes that runs it: a scheduler goes by that, no result does."""
        return ONE_CPU

    @classmethod
    def remark(cls, settings: Mapping[str, Any]) -> str:  # noqa: ARG003 - most have nothing to say
        """Return what a reader of the report must know of values made with these settings; empty: nothing."""
        return ""

    def settings(self) -> dict[str, Any]:
        """Return everything but files that changes the values, as plain data."""
        return {}

    def files(self) -> dict[str, str]:
        """Return role -> URL of each model file. Their content counts, not their place."""
        return {}

    def check_models(self) -> None:
        """Open the models and ask them once, so that a wrong file stops a job before its fetch. Raises ValueError."""

    def annotate(self, batch: AnnotationBatch) -> Columns:
        """Return a list for each column of `schema` (others are left out), null where there are no pixels it needs.

        Raises ValueError if a model cannot be loaded, naming its file.
        """
        raise NotImplementedError(f"annotator {self.name!r} has no annotate()")


def identity(annotator: Annotator) -> dict[str, Any]:
    """Return what the digest is taken of: name, version, settings, sha256 of each model file."""
    return {
        "name": annotator.name,
        "version": annotator.made_as,
        "settings": annotator.settings(),
        "files": {role: file_sha256(url) for role, url in sorted(annotator.files().items())},
    }


def digest(annotator: Annotator) -> str:
    """Return the hex digest of version, settings and model files: rows of one digest are comparable."""
    return hashlib.sha256(canonical_json(identity(annotator)).encode()).hexdigest()


def file_sha256(url: str) -> str:
    """Return the hex sha256 of a file; computed again only when its size or time changed. Raises ValueError."""
    try:
        return _file_sha256(url, *files.stamp_of(url))
    except IsADirectoryError as error:
        raise ValueError(f"model file {without_secrets(url)} is a folder; give the file") from error
    except (FileNotFoundError, PermissionError) as error:
        shown = without_secrets(url)
        raise ValueError(f"model file {shown} cannot be read ({type(error).__name__}); check the path") from error


@cache
def _file_sha256(url: str, _size: int, _stamp: str) -> str:
    return files.sha256_of(url)

"""What `headrace import` reads: a folder, tars or parquet files as one numbered list of inputs.

A source counts its inputs without reading images and hands out any of them as a small picklable unit, whose `read()`
gives the same inputs in the same order in any process. Everything found is an input, even what is no image, or is
named in `leftovers`, or counted in `not_read`: nothing is lost without a line in rejects.parquet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.shards.columns import TYPES, as_type, join_types, type_of
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.members import MAX_IMAGE_BYTES

SOURCE_COLUMN = "source"
"""Column that names the input of each sample."""


@dataclass(frozen=True, slots=True)
class Input:
    """One candidate sample.

    Without an image, `missing` is the reason it is rejected under. `note` says why, or what of the text beside a good
    image could not be read.
    """

    name: str
    image: bytes | None
    label: int | None = None
    caption: str | None = None
    url: str | None = None
    orientation: int | None = None
    """What a decoder must apply, where the image itself no longer says it."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """More columns, of the source's `columns`."""
    note: str | None = None
    missing: str = "no-image"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in a source that is no input, by name and reason."""

    name: str
    reason: str
    message: str = ""


def too_large(name: str, size: int) -> Input | None:
    """Return the reject for an image that would not be read, or None."""
    if size <= MAX_IMAGE_BYTES:
        return None
    return Input(name, None, note=f"{size} bytes, over {MAX_IMAGE_BYTES}", missing="too-large")


def free_name(name: str) -> bool:
    """True if a column may have this name: those of every index and `source` are taken in any case, "" is none."""
    return bool(name) and name.lower() not in (SOURCE_COLUMN, *INDEX_SCHEMA.names)


def fit(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return what of a record fits its columns, and a complaint about each value that does not."""
    fitting: dict[str, Any] = {}
    complaints = []
    for name, value in record.items():
        kind = columns.get(name)
        if kind is None or value is None:
            continue
        if join_types(type_of(value), kind) == kind:
            fitting[name] = as_type(value, kind)
        else:
            complaints.append(f"column {name} holds {TYPES[kind]}, got {str(value)[:40]!r}")
    return fitting, complaints


class SourceUnit(Protocol):
    """Some inputs, small enough to send to another process."""

    def read(self) -> Iterator[Input]:
        """Yield the inputs in order."""


class Source(Protocol):
    """A numbered list of inputs."""

    @property
    def kind(self) -> str:
        """`folder`, `tar` or `parquet`."""

    @property
    def url(self) -> str:
        """Where it lies; of several files, the first."""

    @property
    def num_inputs(self) -> int:
        """Images and what else is there."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ...; empty if there are none."""

    @property
    def columns(self) -> Mapping[str, str]:
        """More columns that inputs may have, and the type of each (`columns.TYPES`, or `texts`)."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of columns that are not taken."""

    @property
    def leftovers(self) -> tuple[Leftover, ...]:
        """What is no input."""

    @property
    def not_read(self) -> Mapping[str, int]:
        """Members by extensions that are not read."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else the one who imports should know, a line each."""

    @property
    def num_lost(self) -> int:
        """How many of the leftovers others may have meant as a sample or an image."""

    @property
    def random_access(self) -> bool:
        """True if inputs far apart cost no more than neighbours."""

    def identity(self) -> Iterator[Any]:
        """Yield JSON-able data that changes when the list of inputs does; no folder of this machine in it."""

    def unit(self, positions: Sequence[int]) -> SourceUnit:
        """Return the inputs at `positions`, in that order."""

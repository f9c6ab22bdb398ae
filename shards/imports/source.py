"""What `headrace import` reads: a folder, tars or parquet files as one numbered list of inputs.

A source counts its inputs without reading images and hands out any run of them as a small picklable unit, whose
`read()` gives the same inputs in the same order in any process. The one thing a reader would get wrong: everything
found is an input, even what is no image, so that nothing is lost without a line in rejects.parquet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.shards.group import MAX_IMAGE_BYTES


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
    note: str | None = None
    missing: str = "no-image"


def too_large(name: str, size: int) -> Input | None:
    """Return the reject for an image that would not be read, or None."""
    if size <= MAX_IMAGE_BYTES:
        return None
    return Input(name, None, note=f"{size} bytes, over {MAX_IMAGE_BYTES}", missing="too-large")


class SourceUnit(Protocol):
    """A run of inputs, small enough to send to another process."""

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

    def identity(self) -> Iterator[Any]:
        """Yield JSON-able data that changes when the list of inputs does; no folder of this machine in it."""

    def unit(self, start: int, stop: int) -> SourceUnit:
        """Return inputs start..stop-1."""

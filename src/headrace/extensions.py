"""Annotators, select steps, objectives and decoders of other packages: one entry-point group.

A package names an `Extension` in its own pyproject.toml:

    [project.entry-points."headrace.extensions"]
    mine = "my_package.headrace:EXTENSION"

Nothing is looked for until a table is asked for, so `import headrace` runs no code of other packages. A spawned worker
asks again for itself. A name that headrace or another extension has already is an error, never a replacement.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from typing import Any, TypeVar

from headrace.text import one_line

GROUP = "headrace.extensions"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """What one package adds: name -> class, in the form that the table of that kind asks for."""

    annotators: Mapping[str, Any] = field(default_factory=dict)
    """For `headrace.curation.annotate`."""
    steps: Mapping[str, Any] = field(default_factory=dict)
    """For `headrace.curation.select`."""
    objectives: Mapping[str, Any] = field(default_factory=dict)
    """For `headrace.train.objectives`."""
    decoders: Mapping[str, Any] = field(default_factory=dict)
    """For `headrace.pipeline.decode`."""


KINDS = tuple(item.name for item in fields(Extension))


@cache
def installed() -> Mapping[str, Extension]:
    """Return entry point -> its extension, sorted. Raises ValueError naming the one that cannot be loaded."""
    found = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            extension = point.load()
        except Exception as error:  # it runs code of another package
            why = f"{type(error).__name__}: {one_line(str(error))}"
            raise ValueError(f"extension {point.name!r} ({point.value}) cannot be loaded: {why}") from error
        if not isinstance(extension, Extension):
            raise ValueError(
                f"extension {point.name!r} ({point.value}) is a {type(extension).__name__}; "
                "it must be a headrace.extensions.Extension"
            )
        found[point.name] = extension
    return found


def with_extensions(kind: str, own: Mapping[str, T]) -> dict[str, T]:
    """Return the table `own` with what extensions add to it; `kind` is a field of `Extension`. Raises ValueError."""
    assert kind in KINDS
    table = dict(own)
    for point, extension in installed().items():
        for name, choice in getattr(extension, kind).items():
            if name in table:
                raise ValueError(f"extension {point!r} adds {name!r} to {kind}, which exists already; rename it")
            table[name] = choice
    return table

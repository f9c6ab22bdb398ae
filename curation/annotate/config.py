"""What a recipe says about annotate: one key an annotator, made from the table of annotators.

An annotator left out (null) is not run, but what it wrote before stays.
"""

import inspect
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any

from headrace.curation.annotate.annotator import Annotator
from headrace.curation.annotate.annotators import known_annotators


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateConfig:
    """Which columns are computed; null leaves an annotator out.

    This class is the base: `annotate_config_type` adds a field for each annotator, those of extensions too.
    """

    batch_size: int = 64
    """Images decoded at a time in one worker (fewer where they are large). Never changes the result."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 4096:
            raise ValueError(f"batch_size must be 1..4096, got {self.batch_size}")
        if not annotators(self):
            raise ValueError("annotate runs no annotator at all; leave image, hashes, quality, caption and faces on")

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made anew in a spawned worker, from the extensions that are installed there.
        return _rebuilt, ({item.name: getattr(self, item.name) for item in fields(self)},)


def annotate_config_type() -> type[AnnotateConfig]:
    """Return `AnnotateConfig` with a field for each annotator that is known. Raises ValueError for a bad extension."""
    return _config_type(tuple(known_annotators().items()))


def annotate_config(**settings: Any) -> AnnotateConfig:
    """Return the config with these settings: annotator -> its config or None, and `batch_size`."""
    return annotate_config_type()(**settings)


def annotators(config: AnnotateConfig) -> dict[str, Annotator]:
    """Return the annotators that `config` asks for, by name. Nothing is loaded."""
    asked = {name: (kind, getattr(config, name, None)) for name, kind in known_annotators().items()}
    return {name: kind(settings) for name, (kind, settings) in asked.items() if settings is not None}


def versions(annotator: Annotator) -> list[Annotator]:
    """Return the annotator as each version that it can make had it, the newest first."""
    return [annotator, *(type(annotator)(annotator.config, made_as) for made_as in sorted(annotator.earlier)[::-1])]


def _rebuilt(settings: Mapping[str, Any]) -> AnnotateConfig:
    kind = annotate_config_type()
    missing = sorted(set(settings) - {item.name for item in fields(kind)})
    if missing:
        raise ValueError(f"annotator {', '.join(missing)} is of an extension that is not installed in this worker")
    return kind(**settings)


@cache
def _config_type(table: tuple[tuple[str, type[Annotator]], ...]) -> type[AnnotateConfig]:
    made = make_dataclass(
        "AnnotateConfig",
        [(name, kind.config_type | None, _field(kind)) for name, kind in table],
        bases=(AnnotateConfig,),
        namespace={"__doc__": (AnnotateConfig.__doc__ or "").partition("\n")[0]},
        frozen=True,
        kw_only=True,
        slots=True,
    )
    assert issubclass(made, AnnotateConfig)
    return made


def _field(kind: type[Annotator]) -> "Field[Any]":
    default: Any = {"default_factory": kind.config_type} if kind.by_default else {"default": None}
    made: Field[Any] = field(**default, metadata={"text": (inspect.getdoc(kind) or "").partition("\n")[0]})
    return made

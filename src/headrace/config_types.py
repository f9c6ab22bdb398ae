"""Types of config fields: marks for one of several dataclasses, and what lies inside an annotation."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True, slots=True)
class OneOf:
    """Marks a field that holds one of several config dataclasses, told apart by the value of its key `tag`.

    The table is read when a config is first loaded, so that extensions may add to it:
    `objective: Annotated[ObjectiveConfig, OneOf("kind", objective_configs)]`.
    """

    tag: str
    """The key that names the choice: a `Literal` field with one value in each dataclass."""
    table: Callable[[], Mapping[str, type]]
    """Returns value of `tag` -> dataclass."""
    default: str | None = None
    """The choice where a user leaves `tag` out; None = it must be given."""

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(choice) for name, choice in self.table().items()}
        if self.default is None:
            return core_schema.tagged_union_schema(choices, discriminator=self.tag)

        def choose(data: Any) -> Any:
            return data.get(self.tag, self.default) if isinstance(data, dict) else getattr(data, self.tag, None)

        # Pydantic shows the function's name where it would show the key: `headrace.config` reads it there.
        choose.__name__ = self.tag
        return core_schema.tagged_union_schema(choices, discriminator=choose)


@dataclass(frozen=True, slots=True)
class Extended:
    """Marks a field whose dataclass is made when a config is first loaded, as extensions add keys to it:
    `annotate: Annotated[AnnotateConfig, Extended(annotate_config_type)]`.
    """

    make: Callable[[], type]
    """Returns the dataclass. A field's `metadata["text"]` is its text in the reference."""

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.make())


def bare(annotation: Any) -> Any:
    """Return `annotation` without what `Annotated` adds."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def mark_of(annotation: Any) -> OneOf | None:
    """Return the `OneOf` of a field; None if it has none."""
    return next((mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, OneOf)), None)


def item_type(annotation: Any) -> Any:
    """Return the type of the items of a list or tuple; None of anything else."""
    plain = bare(annotation)
    if typing.get_origin(plain) not in (tuple, list):
        return None
    return next(arg for arg in typing.get_args(plain) if arg is not Ellipsis)


def dataclasses_in(annotation: Any) -> list[Any]:
    """Return the dataclasses that a field may hold; none of a list, whose items may."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, OneOf):
            return list(mark.table().values())
        if isinstance(mark, Extended):
            return [mark.make()]
    annotation = bare(annotation)
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (tuple, list, dict):
        return []
    return [found for arg in typing.get_args(annotation) for found in dataclasses_in(arg)]


def tags_of(choice: Any) -> set[Any]:
    """Return the values of all `Literal` fields of a dataclass: by one of them it is chosen."""
    hints = typing.get_type_hints(choice)
    return {
        value for hint in hints.values() if typing.get_origin(hint) is typing.Literal for value in typing.get_args(hint)
    }

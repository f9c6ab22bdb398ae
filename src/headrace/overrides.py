"""Dotted overrides of a config: `optimizer.lr=1e-3` changes one value of what was read from a file."""

import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.config_types import dataclasses_in, item_type, mark_of
from headrace.strict_yaml import parse_yaml
from headrace.text import printable

# Letters of a name in a list of them.
MAX_WORD = 40


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str], cls: type[Any] | None = None) -> dict[str, Any]:
    """Return a copy of `data` with each `a.b.0.c=value` set; the value is a YAML scalar or flow collection.

    In a list, a number is a place; a word is the one item of that `name`, or else of that tag (as `cls` says which key
    is the tag). Raises ValueError for a word that fits no item, or several.
    """
    result = json.loads(json.dumps(data))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ValueError(f"override {override!r} is not of the form key.path=value")
        parts = name.split(".")
        target: Any = result
        annotation: Any = cls
        for depth, part in enumerate(parts[:-1]):
            target = _descend(target, part, ".".join(parts[: depth + 1]), annotation)
            annotation = _type_under(annotation, part)
        value = parse_yaml(text) if text else ""
        if isinstance(target, list):
            target[_list_index(target, parts[-1], name, annotation)] = value
        else:
            target[parts[-1]] = value
    return typing.cast(dict[str, Any], result)


def _descend(target: Any, part: str, where: str, annotation: Any) -> Any:
    if isinstance(target, list):
        found = target[_list_index(target, part, where, annotation)]
    else:
        if target.get(part) is None:
            target[part] = {}
        found = target[part]
    if not isinstance(found, dict | list):
        raise ValueError(f"override: {where} is a single value, it has no keys")
    return found


def _list_index(target: list[Any], part: str, where: str, annotation: Any) -> int:
    if part.isdecimal() and int(part) < len(target):
        return int(part)
    mark = mark_of(item_type(annotation))
    keys = ("name", mark.tag) if mark is not None else ("name",)
    named = {number: item for number, item in enumerate(target) if isinstance(item, dict)}
    for key in keys:
        found = [number for number, item in named.items() if item.get(key) == part]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"override: {where}: {part!r} may be {_listed(target, found, keys)}; write its number or its name"
            )
    if not named:
        raise ValueError(
            f"override: {where}: the list has {len(target)} items, {part!r} is not one of 0..{len(target) - 1}; "
            f"to make it longer give all of it: {'.'.join(where.split('.')[:-1])}=[...]"
        )
    raise ValueError(f"override: {where}: no item is {part!r}; there are {_listed(target, list(named), keys)}")


def _listed(items: list[Any], numbers: Sequence[int], keys: Sequence[str]) -> str:
    """Return `0 (its name), 1 (its tag), ...`."""
    words = [next((str(items[number][key]) for key in keys if key in items[number]), "no name") for number in numbers]
    return printable(", ".join(f"{number} ({word[:MAX_WORD]})" for number, word in zip(numbers, words, strict=True)))


def _type_under(annotation: Any, part: str) -> Any:
    """Return the type of what lies under a key of a config, or under a place of a list; None where it is not known."""
    item = item_type(annotation)
    if item is not None:
        return item
    for choice in dataclasses_in(annotation):
        hints = typing.get_type_hints(choice, include_extras=True)
        if part in hints:
            return hints[part]
    return None

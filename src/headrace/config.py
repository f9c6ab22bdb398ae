"""Strict YAML -> frozen dataclasses, with dotted overrides.

A user writes one YAML file; it becomes typed, frozen dataclasses once, here. Unknown keys and wrong types are refused
with the path of the offending key; `headrace.strict_yaml` refuses what is no plain YAML.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from headrace.config_types import bare, dataclasses_in, mark_of, tags_of
from headrace.overrides import apply_overrides
from headrace.strict_yaml import read_mapping
from headrace.text import did_you_mean, known_words
from headrace.text import shown as quoted

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read the YAML file at `path` as a `cls`, with `key.path=value` overrides applied first.

    Raises ValueError naming file, key path, what was expected and the known keys.
    """
    path = Path(path)
    data = read_mapping(path)
    try:
        return build_config(cls, apply_overrides(data, overrides, cls))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def build_config(cls: type[T], data: Mapping[str, Any]) -> T:
    """Turn plain data into a `cls`, a frozen dataclass. No coercion but int -> float and list -> tuple.

    `cls.moved_keys`, where there is one, maps the path of a key of older files to its path today. The `written_out` of
    a config within it, where there is one, turns what is short for other keys into those.
    """
    data = _written_out(cls, _with_keys_moved(data, getattr(cls, "moved_keys", {})))
    try:
        text = json.dumps({"root": data}, allow_nan=True)
        return typing.cast(T, _model(typing.cast(Hashable, cls)).model_validate_json(text).root)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(cls, error.errors()))) from None


def _with_keys_moved(data: Mapping[str, Any], moved: Mapping[str, str]) -> Mapping[str, Any]:
    """Return `data` with each key at its place of today. Raises ValueError if it stands at both."""
    for old, new in moved.items():
        (old_part, old_key), (new_part, new_key) = old.split("."), new.split(".")
        source, target = data.get(old_part), data.get(new_part) or {}
        if not isinstance(source, dict) or old_key not in source or not isinstance(target, dict):
            continue
        if new_key in target:
            raise ValueError(f"{old} is {new} now, and both are given; remove {old}")
        rest = {name: value for name, value in source.items() if name != old_key}
        data = {**data, old_part: rest, new_part: {**target, new_key: source[old_key]}}
    return data


def _written_out(annotation: Any, data: Any) -> Any:
    """Return `data` with what is short for other keys as those keys, in every config of it."""
    choices = dataclasses_in(annotation)
    if not isinstance(data, dict) or len(choices) != 1:
        return data
    hints = typing.get_type_hints(choices[0], include_extras=True)
    full = {}
    for key, value in data.items():
        try:
            full[key] = _written_out(hints.get(key), value) if isinstance(value, dict) else value
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None
    return choices[0].written_out(full) if hasattr(choices[0], "written_out") else full


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return `config` as plain JSON-able data; `build_config` reads it back."""
    return typing.cast(dict[str, Any], TypeAdapter(type(config)).dump_python(config, mode="json"))


def canonical_json(data: Any) -> str:
    """Return `data` as JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@cache
def _model(cls: Hashable) -> Any:
    # No setting here has a meaning at infinity, and a NaN passes every `not x < limit`.
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("Config", __config__=rules, root=(typing.cast(Any, cls), ...))


def _explain(cls: type[Any], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a text for each error; the keys that one dataclass does not know share one, as the known ones are many."""
    texts, unknown = [], dict[Any, list[str]]()
    for item in items:
        owner, shown = _walk(cls, [part for part in item["loc"] if part != "root"])
        where = ".".join(shown) or "top level"
        if item["type"] == "unexpected_keyword_argument" and owner is not None:
            unknown.setdefault(owner, []).append(where)
        else:
            texts.append(_explain_one(item, where))
    for owner, keys in unknown.items():
        known = [field.name for field in dataclasses.fields(owner)]
        hints = {key: did_you_mean(key.rpartition(".")[2], known) for key in keys}
        if len(keys) == 1:
            (key,) = keys
            named, hint = f" {key!r}", f"{hints[key]} " if hints[key] else ""
        else:
            named = "s " + ", ".join(f"{key!r}" + (f" ({hints[key]})" if hints[key] else "") for key in keys)
            hint = ""
        texts.append(f"unknown key{named}; {hint}known keys here: {', '.join(known)}")
    return texts


def _explain_one(item: Mapping[str, Any], where: str) -> str:
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"missing key {where!r}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    if item["type"] == "union_tag_invalid":
        tag = item["ctx"]["discriminator"].strip("'()")
        known = [name.strip("'") for name in item["ctx"]["expected_tags"].split(", ")]
        return f"{where}.{tag}: unknown {quoted(item['ctx']['tag'])}; {known_words(item['ctx']['tag'], known)}"
    if item["type"] == "union_tag_not_found" and isinstance(item["input"], dict):
        return f"missing key {where + '.' + item['ctx']['discriminator'].strip(chr(39))!r}"
    if item["type"] == "union_tag_not_found":
        return f"{where}: expected a mapping, got {quoted(item['input'])}"
    got = "" if isinstance(item["input"], dict | list) else f", got {quoted(item['input'])}"
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        hint = did_you_mean(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        got += f"; {hint}" if hint else ""
    return f"{where}: {item['msg'][:1].lower() + item['msg'][1:]}{got}"


def _walk(cls: Any, location: Sequence[Any]) -> tuple[Any, list[str]]:
    """Follow an error's location through the types: (the innermost dataclass, the keys a user wrote).

    Pydantic puts a union's tag into the location; a user never wrote it, so it is not shown.
    """
    owner, shown, annotation = (cls if dataclasses.is_dataclass(cls) else None), [], cls
    for part in location:
        choices = dataclasses_in(annotation)
        tagged = [choice for choice in choices if part in tags_of(choice)]
        if isinstance(part, str) and tagged and (len(choices) > 1 or mark_of(annotation)):
            owner = annotation = tagged[0]
            continue
        shown.append(str(part))
        if isinstance(part, int):
            annotation = next((arg for arg in typing.get_args(bare(annotation)) if arg is not Ellipsis), None)
            continue
        owner = choices[0] if len(choices) == 1 else owner
        hints = typing.get_type_hints(owner, include_extras=True) if owner is not None else {}
        annotation = hints.get(part)
    return owner, shown

"""Strict YAML -> frozen dataclasses, with dotted overrides.

A user writes one YAML file; it becomes typed, frozen dataclasses once, here. Unknown keys, wrong types, duplicate
keys and YAML aliases are refused with the path of the offending key. `1e-3` is a number and `off` is a string (YAML
1.2 core schema), unlike PyYAML's default.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError, create_model
from pydantic_core import CoreSchema, core_schema

from headrace.text import did_you_mean, known_words, printable
from headrace.text import shown as quoted

MAX_CONFIG_BYTES = 1 << 20
# Letters of a name in a list of them.
MAX_WORD = 40

T = TypeVar("T")


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

        # Pydantic shows the function's name where it would show the key: `_explain_one` reads it there.
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


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, no aliases (they can expand without bound) and no duplicate keys."""

    # PyYAML keeps this table on the class; types-PyYAML says instance.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, regexp)
            for tag, regexp in pairs
            if tag.rsplit(":", 1)[-1] not in ("bool", "float", "int", "timestamp")
        ]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # What JSON has; !!set, !!binary, !!timestamp and the like are refused as any unknown tag.
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.current_event.start_mark if self.current_event else parent.start_mark
            raise ValueError(f"line {mark.line + 1}: YAML aliases are not accepted; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            key = str(key) if type(key) is int else key
            if not isinstance(key, str):
                raise ValueError(f"line {key_node.start_mark.line + 1}: keys must be strings, got {key!r}")
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        mapping = super().construct_mapping(node, deep=deep)
        # JSON has no other keys; what is no name of a key is refused where the config is built.
        return {str(key) if type(key) is int else key: value for key, value in mapping.items()}


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$", re.IGNORECASE),
    list("-+.0123456789"),
)
# PyYAML reads 010 as octal 8; YAML 1.2 and every reader of a config mean ten.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document. Raises ValueError with the line of the fault."""
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise ValueError(f"config is over {MAX_CONFIG_BYTES} bytes")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the YAML mapping in a file. Raises ValueError naming the file."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping at the top, got {type(data).__name__}")
    return data


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
    mark = _mark(_item_type(annotation))
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
    item = _item_type(annotation)
    if item is not None:
        return item
    for choice in _dataclasses_in(annotation):
        hints = typing.get_type_hints(choice, include_extras=True)
        if part in hints:
            return hints[part]
    return None


def _item_type(annotation: Any) -> Any:
    bare = _bare(annotation)
    if typing.get_origin(bare) not in (tuple, list):
        return None
    return next(arg for arg in typing.get_args(bare) if arg is not Ellipsis)


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
    choices = _dataclasses_in(annotation)
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
        choices = _dataclasses_in(annotation)
        tagged = [choice for choice in choices if part in _tags(choice)]
        if isinstance(part, str) and tagged and (len(choices) > 1 or _mark(annotation)):
            owner = annotation = tagged[0]
            continue
        shown.append(str(part))
        if isinstance(part, int):
            annotation = next((arg for arg in typing.get_args(_bare(annotation)) if arg is not Ellipsis), None)
            continue
        owner = choices[0] if len(choices) == 1 else owner
        hints = typing.get_type_hints(owner, include_extras=True) if owner is not None else {}
        annotation = hints.get(part)
    return owner, shown


def _bare(annotation: Any) -> Any:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _mark(annotation: Any) -> OneOf | None:
    return next((mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, OneOf)), None)


def _dataclasses_in(annotation: Any) -> list[Any]:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, OneOf):
            return list(mark.table().values())
        if isinstance(mark, Extended):
            return [mark.make()]
    annotation = _bare(annotation)
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (tuple, list, dict):
        return []
    return [found for arg in typing.get_args(annotation) for found in _dataclasses_in(arg)]


def _tags(choice: Any) -> set[Any]:
    hints = typing.get_type_hints(choice)
    return {
        value for hint in hints.values() if typing.get_origin(hint) is typing.Literal for value in typing.get_args(hint)
    }

"""Strict YAML: no duplicate keys, no aliases, no tags, and the scalars of YAML 1.2.

`1e-3` is a number and `off` is a string (YAML 1.2 core schema), unlike PyYAML's default.
"""

import re
from pathlib import Path
from typing import Any

import yaml

MAX_CONFIG_BYTES = 1 << 20


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

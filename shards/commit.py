"""Commit records: a unit of work is done when `FOLDER/commits/NAME.json` exists.

The record is put if absent, after everything it speaks of is in place, so a killed unit leaves nothing that counts.
A second commit of the same name changes nothing and is told so by False.
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.text import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".json"
_SPELLED = {int: "a whole number", str: "text", list: "a list", bool: "true or false", dict: "a mapping"}

NO_FIELDS: Mapping[str, type] = MappingProxyType({})
RECORD_FIELDS: Mapping[str, type] = MappingProxyType({"num_samples": int, "num_bytes": int, "index_sha256": str})
"""What the record of every shard holds."""
SHARD_FIELDS: Mapping[str, type] = MappingProxyType({**RECORD_FIELDS, "sha256": str})
"""What the record of a shard that was written here holds."""


def check_name(name: str) -> str:
    """Return `name` if it may name a file of ours. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be made of A-Z a-z 0-9 . _ - and start with a letter or digit")
    return name


def commit(folder: str, name: str, record: Mapping[str, Any]) -> bool:
    """Record that the unit `name` is done; False if it was already."""
    return atomic.put_if_absent(_record_url(folder, name), (canonical_json(dict(record)) + "\n").encode())


def replace_commit(folder: str, name: str, record: Mapping[str, Any]) -> None:
    """Replace the record of a unit whose files were rewritten; nothing else ever changes a record."""
    atomic.write_atomic(_record_url(folder, name), (canonical_json(dict(record)) + "\n").encode())


def remove_commit(folder: str, name: str) -> None:
    """Remove the record of a unit that is no more."""
    atomic.remove(_record_url(folder, name))


def committed(folder: str) -> list[str]:
    """Return the sorted names of finished units."""
    names = files.list_names(urlpath.join(folder, "commits"), suffix=_SUFFIX)
    return sorted(name.removesuffix(_SUFFIX) for name in names)


def is_committed(folder: str, name: str) -> bool:
    """True if the unit `name` is done."""
    return files.exists(_record_url(folder, name))


def read_commit(folder: str, name: str, *, fields: Mapping[str, type] = NO_FIELDS) -> dict[str, Any]:
    """Return the record of one finished unit. Raises FileNotFoundError, or ValueError if it is damaged.

    `fields` are the entries that the caller needs, and the type of each.
    """
    url = _record_url(folder, name)
    try:
        record = json.loads(files.read_bytes(url))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url}: not a commit record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{url}: not a commit record: expected a mapping, got {type(record).__name__}")
    for field, kind in fields.items():
        value = record.get(field)
        if type(value) is not kind:
            got = "no such field" if field not in record else shown(value)
            raise ValueError(f"{url}: damaged commit record: {field} must be {_SPELLED[kind]}, got {got}")
    return cast(dict[str, Any], record)


def _record_url(folder: str, name: str) -> str:
    return urlpath.join(folder, "commits", check_name(name) + _SUFFIX)

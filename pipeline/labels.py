"""Labels of a source in the numbers of the mixture: two datasets with classes of their own become one.

The map is part of the stream's identity, by its content: the file that it came from may move.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace import files
from headrace.config import canonical_json
from headrace.pipeline.errors import SampleError
from headrace.strict_yaml import parse_yaml
from headrace.text import shown, without_secrets

LABEL = "label"
"""The column that labels are delivered in."""
MAX_MAP_BYTES = 16 << 20
SHOWN_LABELS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """How a source's own labels become the column `label` of the mixture."""

    column: str = LABEL
    """Column of the source's index that is read: whole numbers, or texts such as `label_text`."""
    map: dict[str, int] = field(default_factory=dict)
    """New label by the old one: `{"7": 0, "cat": 1}`. Of `label` the names in the dataset's `classes` may stand too.
    Without `map` and `file` the column's whole numbers are delivered as they are."""
    file: str = ""
    """A file with the map: `.json` or `.yaml` with a mapping, `.csv` or `.tsv` with lines of an old and a new label."""
    unmapped: Literal["error", "missing", "damaged"] = "error"
    """A label that the map does not hold: stops the run, is missing (-1), or makes the sample a damaged one."""

    def __post_init__(self) -> None:
        if not self.column:
            raise ValueError("labels.column must not be empty")
        if self.map and self.file:
            raise ValueError("labels: map and file are both given; give one")
        if not self.map and not self.file and self.column == LABEL:
            raise ValueError("labels changes nothing: give map, file or another column")
        for old, new in self.map.items():
            _check_new(f"labels.map.{old}", new)


class LabelMap:
    """The map of one source, read and checked."""

    def __init__(
        self,
        labels: Labels,
        source: str,
        *,
        classes: Sequence[str] = (),
        read: Callable[[str], bytes] = files.read_bytes,
    ) -> None:
        """Raises ValueError naming the source, and the file and the line of what is wrong in it."""
        self.column = labels.column
        self._source = source
        self._unmapped = labels.unmapped
        try:
            given = read_map(labels.file, read) if labels.file else labels.map
            self._map = _by_number(given, classes) if labels.column == LABEL else dict(given)
        except ValueError as error:
            where = f"file {without_secrets(labels.file)}" if labels.file else "map"
            raise ValueError(f"source {source!r}: labels.{where}: {error}") from error
        self._is_map = bool(labels.map or labels.file)
        content = canonical_json([labels.column, self._map, labels.unmapped if self._is_map else ""])
        self.digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        """Equal for maps that mean the same."""

    def new(self, value: Any, *, key: str, shard: str) -> int | None:
        """Return the label of a sample in the mixture; None where it has none.

        Raises ValueError or, as the source has it (`unmapped: damaged`), SampleError for one that the map lacks.
        """
        if value is None:
            return None
        if not self._is_map:
            return int(value)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        found = self._map.get(text)
        if found is not None or self._unmapped == "missing":
            return found
        what = f"{self.column} {shown(text)} is not in the map of labels of source {self._source!r}"
        if self._unmapped == "damaged":
            raise SampleError("label", what)
        raise ValueError(
            f"{what} (sample {shown(key)}, {without_secrets(shard)}); it has {_some(self._map)}: add the label, or set "
            "labels.unmapped to missing or damaged"
        )

    def check_type(self, name: str) -> None:
        """Raise ValueError if a column of the type that `collate` calls `name` cannot be labels."""
        fits = ("int64",) if not self._is_map else ("int64", "text", "bool", "uint64")
        if name not in fits:
            cure = "give a map" if name in ("text", "bool") else "name a column of whole numbers or texts"
            raise ValueError(f"source {self._source!r}: labels.column {self.column} is {name}; {cure}")


def read_map(url: str, read: Callable[[str], bytes] = files.read_bytes) -> dict[str, int]:
    """Return the map in a file. Raises ValueError saying what is wrong in it, without its name."""
    readers: dict[str, Callable[[str], Mapping[str, Any]]] = {
        ".json": _from_json,
        ".yaml": _from_yaml,
        ".yml": _from_yaml,
        ".csv": lambda text: _from_lines(text, ","),
        ".tsv": lambda text: _from_lines(text, "\t"),
    }
    suffix = next((suffix for suffix in readers if url.lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"is none of {', '.join(readers)}")
    try:
        size = files.size_of(url)
        if size > MAX_MAP_BYTES:
            raise ValueError(f"has {size} bytes; a map of labels has at most {MAX_MAP_BYTES}")
        text = read(url).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error}") from error
    found = readers[suffix](text)
    if not found:
        raise ValueError("holds no label")
    for old, new in found.items():
        _check_new(shown(old), new)
    return dict(found)


def _from_json(text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict[str, Any]()
        for key, value in pairs:
            if key in seen:
                raise ValueError(f"label {shown(key)} is given twice")
            seen[key] = value
        return seen

    try:
        found = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return _mapping(found)


def _from_yaml(text: str) -> dict[str, Any]:
    return _mapping(parse_yaml(text))


def _mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping of old labels to new ones, got {type(found).__name__}")
    return found


def _from_lines(text: str, delimiter: str) -> dict[str, Any]:
    found = dict[str, Any]()
    for number, (old, new) in _pairs(text, delimiter):
        if not _is_whole(new):
            if number == 1:
                continue  # the names of the columns
            raise ValueError(f"line {number}: the new label must be a whole number, got {shown(new)}")
        if old in found:
            raise ValueError(f"line {number}: label {shown(old)} is given twice")
        found[old] = int(new)
    return found


def _pairs(text: str, delimiter: str) -> Iterator[tuple[int, tuple[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != 2:
                raise ValueError(
                    f"line {reader.line_num}: expected 2 columns, the old and the new label, got {len(row)}"
                )
            yield reader.line_num, (row[0], row[1].strip())
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _is_whole(text: str) -> bool:
    return len(text) < 32 and text.isascii() and text.removeprefix("-").removeprefix("+").isdigit()


def _check_new(where: str, new: Any) -> None:
    if isinstance(new, bool) or not isinstance(new, int) or not -(1 << 63) <= new < 1 << 63:
        raise ValueError(f"{where}: the new label must be a whole number of 64 bits, got {shown(new)}")


def _by_number(given: Mapping[str, int], classes: Sequence[str]) -> dict[str, int]:
    """Return a map of numbers, whose old labels may also stand as the names of the dataset's classes.

    A whole number is always the number: the folders 0 to 10 are the classes 0, 1, 10, 2, ... of a dataset. Raises
    ValueError for a label that is given twice, by number and by name.
    """
    numbers = {name: str(number) for number, name in enumerate(classes) if not _is_whole(name)}
    result = dict[str, int]()
    for old, new in given.items():
        number = numbers.get(old, old)
        if result.setdefault(number, new) != new:
            raise ValueError(f"label {number} is given twice, by number and by name: {result[number]} and {new}")
    return result


def _some(known: Mapping[str, int]) -> str:
    more = f" and {len(known) - SHOWN_LABELS} more" if len(known) > SHOWN_LABELS else ""
    return ", ".join(shown(old) for old in list(known)[:SHOWN_LABELS]) + more

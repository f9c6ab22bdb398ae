"""What a column says of a sample's class: one number (`label`, `.cls`), or several (`labels`, in `.json`).

Names become numbers by their place in the classes: those of the recipe, or all that kept rows have, sorted. A name that
is none of them fails its row; an empty one, and a null, is no label.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.build.config import LabelsConfig
from headrace.curation.build.inputs import open_table
from headrace.curation.ledger import Decision, digest_of, ledger_by_shard
from headrace.curation.raw.read import read_raw
from headrace.shards.manifest import SUMMARY_NAME
from headrace.text import shown

LABELS = pa.field("labels", pa.list_(pa.int64()))
"""Column of the index where samples have several labels."""
MAX_CLASSES = 100_000
CLASSES = "classes"
"""Entry of a shard's commit record: the digest of the classes that its labels count."""


@dataclass(frozen=True)
class Labels:
    """How the values of a column become labels."""

    config: LabelsConfig
    classes: tuple[str, ...]
    """Names by number; empty where the column holds numbers."""
    several: bool
    """True if a sample may have several."""

    @property
    def digest(self) -> str:
        """What changes with the classes."""
        return classes_digest(self.classes)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def columns(self, value: Any) -> dict[str, Any]:
        """Return the columns of the index for one value. Raises ValueError for a name that is no class."""
        found = [self._number(one) for one in parts_of(value, self.config)]
        if self.several:
            return {"label": None, LABELS.name: sorted(set(found)) if value is not None else None}
        return {"label": found[0] if found else None}

    def _number(self, value: Any) -> int:
        if not isinstance(value, str):
            return int(value)
        if value not in self._numbers:
            names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
            raise ValueError(
                f"build.labels: {self.config.column} is {shown(value)}, which is none of {names or 'none'}"
            )
        return self._numbers[value]


def classes_digest(classes: Sequence[str]) -> str:
    """Return what the record of a shard says of the classes that its labels count."""
    return digest_of({"classes": list(classes)})


def parts_of(value: Any, config: LabelsConfig) -> list[Any]:
    """Return the numbers or names that a value holds."""
    if value is None:
        return []
    if isinstance(value, str):
        texts = value.split(config.separator) if config.separator else [value]
        return [text.strip() for text in texts if text.strip()]
    if not isinstance(value, list):
        return [value]
    return [part for one in value for part in parts_of(one, config)]


def find_labels(decision: Decision, config: LabelsConfig, *, published: tuple[str, ...] = ()) -> Labels | None:
    """Return how the rows of a ledger get their labels; None where the column `label` has them, if any.

    Where the recipe names no classes of a column of names, they are the `published` ones of the dataset that is there,
    as a take-down may have left a class without a row; or else the column is read for every kept row. Raises
    ValueError for a column that is not there, or can be no label.
    """
    if not config.column:
        return None
    kind: pa.DataType | None = None
    names: set[str] = set()
    for shard, rows in ledger_by_shard(decision.ledger, ["raw_shard", "key", "kept"]):
        kept = rows.filter(rows["kept"])["key"]
        if not len(kept):
            continue
        column = _column(decision, shard, config.column, kept)
        kind = column.type
        if config.classes or published or not _holds_texts(kind):
            break
        names |= {part for value in column.unique().to_pylist() for part in parts_of(value, config)}
        if len(names) > MAX_CLASSES:
            raise ValueError(
                f"build.labels.column: {config.column} has over {MAX_CLASSES} names, so it is no class; name another"
            )
    if kind is not None:
        check_type(kind, config)
    several = bool(config.separator) or (kind is not None and _is_list(kind))
    return Labels(config, config.classes or published or tuple(sorted(names)), several)


def _column(decision: Decision, shard: str, name: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of some rows of a raw shard: an annotation's, or else the raw table's."""
    for annotator, folder in reversed(decision.annotation_folders().items()):
        file = open_table(annotator, folder, shard)
        if name in file.schema.names:
            table = file.read(["key", name])
            break
    else:
        table = read_raw(decision.job, shard)
        if name not in table.schema.names:
            known = ", ".join(sorted(table.schema.names))
            raise ValueError(f"build.labels.column: no column {name!r}; columns of raw shard {shard}: {known}")
    found = table.filter(pc.is_in(table["key"], value_set=keys.combine_chunks().cast(table["key"].type)))[name]
    return found.cast(found.type.value_type) if pa.types.is_dictionary(found.type) else found


def _holds_texts(kind: pa.DataType) -> bool:
    inner = kind.value_type if _is_list(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def check_type(kind: pa.DataType, config: LabelsConfig) -> None:
    """Raise ValueError if a column of this type can be no label."""
    inner = kind.value_type if _is_list(kind) else kind
    if not (_holds_texts(kind) or pa.types.is_integer(inner) or pa.types.is_null(inner)):
        raise ValueError(
            f"build.labels.column: {config.column} is of type {kind}; labels are whole numbers, names, or lists of them"
        )


def published_classes(dataset_url: str) -> tuple[str, ...]:
    """Return the classes of a finished dataset; none if it is not finished, or has none."""
    try:
        return tuple(json.loads(files.read_bytes(urlpath.join(dataset_url, SUMMARY_NAME))).get("classes") or ())
    except FileNotFoundError:
        return ()


def class_facts(labels: Labels | None) -> Mapping[str, Any]:
    """Return what dataset.json says of the classes."""
    return {"classes": list(labels.classes)} if labels is not None and labels.classes else {}

"""What one tar cannot know: the columns that all of them have together, and the numbers of the classes.

Tars are indexed one by one, in any process and any order. Afterwards a column of one tar is null in the others, its
type holds every value, and classes that `.cls` members spell as text are numbered in sorted order; only indexes that
differ from that are written again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace import urlpath
from headrace.config import canonical_json
from headrace.shards.columns import TYPES, agree, cast_column
from headrace.shards.errors import ShardError
from headrace.shards.foreign.unit import TarUnit, index_tar, replace_index
from headrace.shards.index import INDEX_SCHEMA, read_index
from headrace.shards.members import LABEL_TEXT

MAX_CLASSES = 100_000
"""More distinct labels are texts, not classes."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all indexes of a dataset have in common."""

    columns: dict[str, str]
    """Columns after those of INDEX_SCHEMA, by the names of `columns.TYPES`."""
    classes: tuple[str, ...]
    unnumbered: int
    """Distinct names of classes that got no number, because other labels are numbers or there are too many."""

    @property
    def classes_sha256(self) -> str | None:
        """Of the list of classes; None where there is none."""
        return hashlib.sha256(canonical_json(self.classes).encode()).hexdigest() if self.classes else None

    def fits(self, record: Mapping[str, Any]) -> bool:
        """True if the index of `record` is as agreed."""
        same_classes = not record["classes"] or record["classes_sha256"] == self.classes_sha256
        return bool(record["columns"] == self.columns and same_classes)


@dataclass(frozen=True, slots=True)
class SettleUnit:
    """One index that must change."""

    tar: TarUnit
    record: dict[str, Any]
    agreement: Agreement

    @property
    def name(self) -> str:
        """The tar, for messages."""
        return self.tar.name


def agree_on(records: Sequence[Mapping[str, Any]]) -> Agreement:
    """Find what the indexes of `records` agree on."""
    names = {name for record in records for name in record["classes"]}
    numbered = any(record["numbered"] for record in records)
    classes = tuple(sorted(names)) if len(names) <= MAX_CLASSES and not numbered else ()
    return Agreement(agree(record["own_columns"] for record in records), classes, len(names) - len(classes))


def settle_index(unit: SettleUnit) -> dict[str, Any]:
    """Write one index as agreed; return its new record. Raises ShardError if its tar must be read again and cannot."""
    record, agreement = dict(unit.record), unit.agreement
    own = record["own_columns"]
    if any(record["columns"].get(name) not in (kind, agreement.columns[name]) for name, kind in own.items()):
        # It agreed with other tars before: 1 that became 1.0 would become "1.0", where "1" is meant.
        record = index_tar(replace(unit.tar, rebuild=True))
        if "damage" in record:
            raise ShardError(record["damage"])
    folder = unit.tar.folder
    table = read_index(urlpath.join(folder, f"{record['name']}.parquet"))
    settled = table.select(INDEX_SCHEMA.names)
    if LABEL_TEXT in table.column_names and record["classes"]:
        settled = _number(settled, table[LABEL_TEXT], agreement.classes)
    for name, kind in agreement.columns.items():
        held = name in table.column_names
        column = cast_column(table[name], kind) if held else pa.nulls(table.num_rows, TYPES[kind])
        settled = settled.append_column(name, column)
    record.update(columns=agreement.columns, classes_sha256=agreement.classes_sha256)
    replace_index(folder, record, settled)
    return record


def _number(table: pa.Table, names: pa.ChunkedArray, classes: Sequence[str]) -> pa.Table:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [
        label if name is None else numbers.get(name)
        for label, name in zip(table["label"].to_pylist(), names.to_pylist(), strict=True)
    ]
    place = table.column_names.index("label")
    return table.set_column(place, INDEX_SCHEMA.field("label"), pa.array(labels, pa.int64()))

"""What one output shard is made from: the ledger's kept rows, raw shards and the annotations of each.

Everything read here is cached by process and raw shard, as neighbouring output shards share a window of raw shards.
A tar whose sums are recorded must be the one that fetch finished. Any other tar may be damaged: what can still be
addressed is used, and a row without its image fails alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from headrace.curation.annotate.annotators import hidden_columns, known_annotators
from headrace.curation.annotate.tables import open_annotation
from headrace.curation.job import Job
from headrace.curation.ledger import Ledger
from headrace.curation.raw.read import check_raw_tar, read_raw, tar_of
from headrace.curation.raw.record import Recorded
from headrace.curation.raw.schema import STORED_COLUMNS, stored_sha256
from headrace.curation.raw.spans import image_spans
from headrace.shards.errors import ShardError
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.parquet import ParquetReader, open_parquet, read_equal
from headrace.shards.payloads import read_payloads

FACE_BOXES = "face_boxes"
# Two shuffle windows of the default size.
CACHED_SHARDS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptRow:
    """One kept row of the ledger."""

    uid: str
    input_file: str | None
    input_row: int | None
    url: str | None
    raw_shard: str
    key: str
    out_index: int
    caption_of: str | None = None
    """The uid of the row whose caption it takes; null: its own."""
    caption_facts: str | None = None
    """That caption, and the columns that follow from it, as JSON."""
    captions_of: list[str] | None = None
    """The uids of the rows whose captions it holds, where they are several."""
    captions_facts: list[str] | None = None
    """What `caption_facts` says, of each of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInputs:
    """A raw shard's payload places and tables."""

    name: str
    tar_url: str
    spans: Mapping[str, tuple[int, int]]
    """Where each key's image is."""
    own: bool
    """We stored the payloads, so the raw table knows their sums; img2dataset's sums are of the bytes as fetched."""
    recorded: Recorded
    """What the files were when fetch finished them."""
    damage: str
    """What is wrong with the tar; empty if nothing."""
    schemas: tuple[pa.Schema, ...]
    """Of the files that `tables` are of; those hold more columns, large ones among them."""
    tables: tuple[pa.Table, ...]
    """Raw table first, then one an annotator, aligned with `rows`."""
    rows: tuple[Mapping[str, int], ...]
    """For each table: key -> row number."""

    def size_of(self, key: str) -> int:
        """Return the payload's size; 0 if there is none."""
        return self.spans.get(key, (0, 0))[1]

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the payloads; None for a key without one."""
        found = [key for key in keys if key in self.spans]
        payloads = dict(zip(found, read_payloads(self.tar_url, [self.spans[key] for key in found]), strict=True))
        return [payloads.get(key) for key in keys]

    def stored_sha256(self, key: str, facts: Mapping[str, Any]) -> str | None:
        """Return the sum that the payload of a key must have; None if nobody knows it."""
        row = self.tables[0].select(STORED_COLUMNS).slice(self.rows[0][key], 1).to_pylist()[0]
        if self.own:
            return stored_sha256(row)
        # Of a foreign image without a sum, annotate took the one of the bytes in the tar.
        return facts.get("sha256") if row["sha256"] is None else None

    def facts(self, key: str) -> dict[str, Any] | None:
        """Return every column of a key, annotations over raw ones; None if a table lacks the key."""
        result: dict[str, Any] = {}
        for table, rows in zip(self.tables, self.rows, strict=True):
            if key not in rows:
                return None
            values = table.slice(rows[key], 1).to_pylist()[0]
            # A null of an annotation is its answer; only what every dataset has falls back on the raw table.
            result.update(
                {
                    name: value
                    for name, value in values.items()
                    if value is not None or name not in result or name not in INDEX_SCHEMA.names
                }
            )
        return result

    def hidden(self) -> list[str]:
        """Return the columns of boxes to blur that its tables have, besides the faces."""
        named = {field.name for schema in self.schemas for field in schema}
        return [name for name in hidden_columns() if name != FACE_BOXES and name in named]

    def fields(self) -> dict[str, tuple[pa.Field, bool]]:
        """Return the columns that may be carried, and whether they are carried without being asked for."""
        result: dict[str, tuple[pa.Field, bool]] = {}
        not_carried = frozenset[str]().union(*(kind.not_carried for kind in known_annotators().values()))
        for number, schema in enumerate(self.schemas):
            for field in schema:
                if field.name not in INDEX_SCHEMA.names:  # of two with one name the annotation's, as in select
                    standard = number > 0 and not pa.types.is_nested(field.type) and field.name not in not_carried
                    result[field.name] = (field, standard)
        return result


def read_kept(ledger: Ledger, out_shard: str) -> list[KeptRow]:
    """Return the ledger's rows for one output shard, in the order of their places."""
    with open_parquet(ledger.table) as file:
        names = [field.name for field in fields(KeptRow) if field.name in file.schema.names]
    table = read_equal(ledger.table, {"kept": True, "out_shard": out_shard}, names)
    rows = sorted((KeptRow(**row) for row in table.to_pylist()), key=lambda row: row.out_index)
    for before, after in pairwise(rows):
        if before.out_index == after.out_index:
            raise ValueError(f"{ledger.table}: place {after.out_index} of output shard {out_shard} is given twice")
    if not rows:
        raise ValueError(f"{ledger.table}: no kept row for output shard {out_shard}")
    return rows


@lru_cache(maxsize=CACHED_SHARDS)
def load_raw_shard(
    job: Job, name: str, annotations: tuple[tuple[str, str], ...], columns: tuple[str, ...] = ()
) -> ShardInputs:
    """Read where a raw shard's images are, and its tables: scalar columns, face boxes and `columns`.

    Raises FileNotFoundError; ShardError if the files are not those that fetch finished. Clear the cache when a run
    begins, as the files may have changed.
    """
    recorded = check_raw_tar(job, name)
    tar_url = tar_of(recorded, name)
    spans, damage = image_spans(tar_url)
    if damage and recorded.fixes_images:
        raise ShardError(f"{damage}; {recorded.advice}")
    raw = read_raw(job, name)
    schemas, tables = [raw.schema], [raw]
    for annotator, folder in annotations:
        schema, table = _read_annotation(annotator, folder, name, columns)
        schemas.append(schema)
        tables.append(table)
    return ShardInputs(
        name=name,
        tar_url=tar_url,
        spans=spans,
        own=recorded.own,
        recorded=recorded,
        damage=damage,
        schemas=tuple(schemas),
        tables=tuple(tables),
        rows=tuple({key: number for number, key in enumerate(table["key"].to_pylist())} for table in tables),
    )


def _read_annotation(annotator: str, folder: str, shard: str, columns: tuple[str, ...]) -> tuple[pa.Schema, pa.Table]:
    file = open_table(annotator, folder, shard)
    wanted = {*hidden_columns(), *columns}
    names = [item.name for item in file.schema if not pa.types.is_nested(item.type) or item.name in wanted]
    return file.schema, file.read(names)


def open_table(annotator: str, folder: str, shard: str) -> ParquetReader:
    """Open one annotator's table of one raw shard. Raises FileNotFoundError, ShardError if it is damaged."""
    try:
        return open_annotation(folder, shard)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"raw shard {shard} is not annotated by {annotator}, or no longer; run `headrace annotate` first"
        ) from error

"""Raw shards and their annotations -> one table `rows` in the database, one row an input row.

Rows are numbered (`__row`) by raw shard, then key: the order of the ledger. After a retry one input row has several raw
rows; the first successful one counts, and the others are in no ledger.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.curation.annotate.annotators import known_annotators
from headrace.curation.annotate.tables import annotation_sha256, open_annotation
from headrace.curation.job import Job
from headrace.curation.raw.read import check_list_is_fetched, raw_shards, raw_tar_url, read_raw, recorded_of
from headrace.curation.select.database import insert
from headrace.curation.select.expression import quoted
from headrace.shards.parquet import ParquetReader

IDENTITY = ("uid", "input_file", "input_row")
LEDGER_COLUMNS = (*IDENTITY, "url", "key", "status", "error_class")
HASH_COLUMNS = ("pdq", "pdq_trimmed")
HASH_BYTES = 32
# Letters of a caption without the white space around it; null where there is no caption, or none but white space. Made
# while rows are loaded, so that steps can tell rows with a caption without holding the texts.
CAPTION_CHARS = "__caption_chars"


class NotReadyError(ValueError):
    """A stage before this one has not finished."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The folder of one annotator with one set of settings."""

    name: str
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The tables of one job."""

    job: Job
    shards: tuple[str, ...]
    annotations: tuple[Annotation, ...]

    def digests(self) -> dict[str, str]:
        """Return the sha256 of every table, by its place in the job."""
        found = {f"raw/{shard}": _raw_sha256(self.job, shard) for shard in self.shards}
        for annotation in self.annotations:
            folder = files.basename(annotation.url)
            with _naming_the_stage("annotate"):
                found |= {f"{folder}/{shard}": annotation_sha256(annotation.url, shard) for shard in self.shards}
        return found


def find_inputs(job: Job, annotations: Mapping[str, str]) -> Inputs:
    """List the raw shards; `annotations`: annotator -> folder of its tables. Raises NotReadyError if there are none."""
    shards = tuple(sorted(raw_shards(job)))
    if not shards:
        raise NotReadyError(f"{job.raw}: no raw shards; run `headrace fetch` first")
    check_list_is_fetched(job)
    return Inputs(job=job, shards=shards, annotations=tuple(Annotation(*item) for item in annotations.items()))


def _raw_sha256(job: Job, shard: str) -> str:
    recorded = recorded_of(job, shard).table_sha256
    if recorded is not None:
        return recorded
    with _naming_the_stage("fetch"):
        return hashlib.sha256(files.read_bytes(raw_tar_url(job, shard).removesuffix(".tar") + ".parquet")).hexdigest()


@contextlib.contextmanager
def _naming_the_stage(command: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotReadyError(f"{error.filename or error} is missing; run `headrace {command}` first") from error


def known_columns(inputs: Inputs) -> pa.Schema:
    """Return the columns that a recipe may name: raw, then annotations; of two with one name the annotation's.

    Names differ by more than case, as SQL sees none; carried columns that collide are left out.
    """
    annotated = [_annotation_schema(inputs, item) for item in inputs.annotations]
    return visible_columns([*annotated, _raw_schema(inputs)])


def _raw_schema(inputs: Inputs) -> pa.Schema:
    """Return the raw columns with the types of the first shard in which each holds more than nulls."""
    fields = list(read_raw(inputs.job, inputs.shards[0]).schema)
    for shard in inputs.shards[1:]:
        empty = [number for number, field in enumerate(fields) if pa.types.is_null(field.type)]
        if not empty:
            break
        later = read_raw(inputs.job, shard).schema
        for number in empty:
            if later.get_field_index(fields[number].name) >= 0:
                fields[number] = later.field(fields[number].name)
    return pa.schema(fields)


def visible_columns(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return the columns of several tables under the names of a recipe; of two with one name, the first."""
    fields: dict[str, pa.Field] = {}
    for table in schemas:
        for field in table:
            lowered = field.name.lower()
            if lowered not in fields and not lowered.startswith("__"):
                fields[lowered] = pa.field(field.name, _plain_type(field.type))
    return pa.schema(list(fields.values()))


def _annotation_schema(inputs: Inputs, annotation: Annotation) -> pa.Schema:
    file = _open(annotation, inputs.shards[0])
    return pa.schema([field for field in file.schema if field.name != "key"])


def _open(annotation: Annotation, shard: str) -> ParquetReader:
    with _naming_the_stage("annotate"):
        return open_annotation(annotation.url, shard)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type as the database can hold it: it knows no half floats."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return pa.string() if pa.types.is_null(kind) else kind


def sql_types(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> dict[str, str]:
    """Return the database's name of each column's type."""
    connection.register("arrow_types", schema.empty_table())
    try:
        return {row[0]: row[1] for row in connection.execute("DESCRIBE SELECT * FROM arrow_types").fetchall()}
    finally:
        connection.unregister("arrow_types")


def load_rows(connection: duckdb.DuckDBPyConnection, inputs: Inputs, columns: Sequence[str]) -> Iterator[int]:
    """Fill `rows` with the ledger's columns and `columns`, shard by shard; yields the number of shards done.

    Each hash column among `columns` also comes as four integers, `__pdq_0` to `__pdq_3`; `__caption_chars` is made.
    """
    schema = known_columns(inputs)
    wanted = list(dict.fromkeys([*LEDGER_COLUMNS, *columns]))
    with_chars = CAPTION_CHARS in wanted
    wanted = [name for name in wanted if name != CAPTION_CHARS]
    missing = [name for name in wanted if name not in schema.names]
    assert not missing, missing
    wanted_schema = pa.schema([schema.field(name) for name in wanted])
    next_row = 0
    for number, shard in enumerate(inputs.shards):
        table = _shard_rows(inputs, shard, wanted_schema)
        if with_chars:
            table = table.append_column(CAPTION_CHARS, _caption_chars(inputs, shard))
        rows = np.arange(next_row, next_row + table.num_rows, dtype=np.int64)
        table = table.append_column("__row", pa.array(rows))
        table = table.append_column("__shard", pa.array(np.full(table.num_rows, number, np.int32)))
        insert(connection, "rows", table)
        next_row += table.num_rows
        yield number + 1
    _remove_superseded(connection)


def _caption_chars(inputs: Inputs, shard: str) -> pa.ChunkedArray:
    captions = read_raw(inputs.job, shard).select(["key", "caption"]).sort_by("key")["caption"].cast(pa.string())
    chars = pc.utf8_length(pc.utf8_trim_whitespace(captions))
    return pc.if_else(pc.greater(chars, 0), chars, pa.scalar(None, chars.type))


def caption_columns() -> frozenset[str]:
    """Return the columns that go with a caption where a row takes that of another."""
    made = frozenset[str]().union(*(kind.of_caption for kind in known_annotators().values()))
    return made | {"caption", CAPTION_CHARS}


def caption_facts(inputs: Inputs, shard: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for some rows of a raw shard the caption, and every column that follows from it, by key."""
    wanted = pa.schema([field for field in known_columns(inputs) if field.name in (*caption_columns(), "key")])
    table = _joined(inputs, shard, wanted)
    table = table.filter(pc.is_in(table["key"], value_set=pa.array(keys, table["key"].type)))
    return {row.pop("key"): row for row in table.to_pylist()}


def with_facts_taken(columns: pa.Table, facts: Sequence[str | None]) -> pa.Table:
    """Return columns of rows with what each took along with the caption of another: `caption_facts` of the ledger."""
    taken = [{} if text is None else json.loads(text) for text in facts]
    for place, field in enumerate(columns.schema):
        if any(field.name in row for row in taken):
            own = columns[field.name].to_pylist()
            values = [row.get(field.name, value) for row, value in zip(taken, own, strict=True)]
            columns = columns.set_column(place, field, pa.array(values, field.type))
    return columns


def row_columns(inputs: Inputs, shard: str, row: int) -> pa.Table:
    """Return every column but embeddings of one row of a raw shard, as a recipe sees them."""
    schema = known_columns(inputs)
    wanted = pa.schema([field for field in schema if not field.name.endswith("_embedding")])
    return _joined(inputs, shard, wanted).slice(row, 1)


def _shard_rows(inputs: Inputs, shard: str, wanted: pa.Schema) -> pa.Table:
    table = _joined(inputs, shard, wanted).sort_by("key")
    for name in HASH_COLUMNS:
        if name in table.column_names:
            table = _with_words(table, name, shard)
    return table


def _joined(inputs: Inputs, shard: str, wanted: pa.Schema) -> pa.Table:
    """Return columns of a raw shard, in raw order; null in annotations where the fetch failed."""
    raw = read_raw(inputs.job, shard)
    columns = {name: raw[name] for name in raw.column_names if name in wanted.names}
    succeeded = pc.fill_null(pc.equal(raw["status"], "success"), False).combine_chunks().to_numpy(zero_copy_only=False)
    place = pa.array(np.cumsum(succeeded) - 1, mask=~succeeded)
    for annotation in inputs.annotations:
        file = _open(annotation, shard)
        names = [name for name in file.schema.names if name in wanted.names and name != "key"]
        annotated = file.read(["key", *names])
        keys = raw["key"].filter(pa.array(succeeded)).combine_chunks()
        if not annotated["key"].combine_chunks().cast(keys.type).equals(keys):
            raise ValueError(
                f"{files.join(annotation.url, shard)}.parquet does not hold the rows of raw shard {shard}; "
                "remove that file and run `headrace annotate` again"
            )
        columns |= {name: annotated[name].combine_chunks().take(place) for name in names}
    absent = [name for name in wanted.names if name not in columns]
    if absent:
        raise ValueError(f"raw shard {shard} lacks the column {absent[0]!r}, which shard {inputs.shards[0]} has")
    arrays = [_cast(columns[field.name], field, shard) for field in wanted]
    return pa.table(arrays, schema=wanted)


def _cast(column: pa.Array, field: pa.Field, shard: str) -> pa.Array:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"raw shard {shard}: column {field.name!r} is not {field.type} as in the first shard: {error}"
        ) from None


def _with_words(table: pa.Table, name: str, shard: str) -> pa.Table:
    """Replace a hash by its four words."""
    try:
        column = table[name].combine_chunks().cast(pa.binary(HASH_BYTES))
    except pa.ArrowInvalid as error:
        raise ValueError(f"annotations of shard {shard}: column {name} must hold {HASH_BYTES} bytes a row") from error
    empty = column.is_null().to_numpy(zero_copy_only=False)
    start = column.offset * HASH_BYTES
    data = column.buffers()[1].to_pybytes()[start : start + len(column) * HASH_BYTES] if len(column) else b""
    words = np.frombuffer(data, "<u8").reshape(-1, 4)
    for word in range(4):
        values = pa.array(np.ascontiguousarray(words[:, word]), pa.uint64(), mask=empty)
        table = table.append_column(word_column(name, word), values)
    return table


def word_column(name: str, word: int) -> str:
    """Return the column that holds one word of a hash."""
    return f"__{name}_{word}"


def _remove_superseded(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete the raw rows of an input row other than its first successful one (or its first, if none succeeded)."""
    key = ", ".join(quoted(name) for name in IDENTITY)
    # Hashes of the key find the few repeated ones without holding every key in memory; the window then compares keys.
    connection.execute(
        f"""
        CREATE TABLE superseded AS
        SELECT __row FROM (
            SELECT __row, row_number() OVER (
                PARTITION BY {key} ORDER BY coalesce(status = 'success', false) DESC, __row) AS place
            FROM rows SEMI JOIN (
                SELECT hash({key}) AS code FROM rows GROUP BY code HAVING count(*) > 1
            ) AS repeated ON hash({key}) = repeated.code)
        WHERE place > 1
        """
    )
    connection.execute("DELETE FROM rows WHERE __row IN (SELECT __row FROM superseded)")
    connection.execute("DROP TABLE superseded")

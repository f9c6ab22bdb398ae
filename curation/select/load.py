"""Raw shards and their annotations as rows, one an input row.

Rows are numbered (`__row`) by raw shard, then key: the order of the ledger. After a retry one input row has several raw
rows; the first successful one counts, and the others are in no ledger.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.annotate.annotators import known_annotators
from headrace.curation.annotate.annotators.hash_variants import CUT_COLUMNS, MIRRORED_COLUMNS
from headrace.curation.annotate.tables import begun_sha256, open_annotation
from headrace.curation.captions import caption_code
from headrace.curation.forgotten import read_tombstones, without_names
from headrace.curation.job import Job
from headrace.curation.raw.read import check_list_is_fetched, raw_shards, read_raw, recorded_of
from headrace.shards.parquet import ParquetReader

IDENTITY = ("uid", "input_file", "input_row")
HASH_COLUMNS = ("pdq", "pdq_trimmed")
"""What every version of the hashes has."""
CENTRE_COLUMN = "pdq_centre"
"""What tables of older versions lack."""
ALL_HASH_COLUMNS = (*HASH_COLUMNS, CENTRE_COLUMN)
WORD_COLUMNS = frozenset((*ALL_HASH_COLUMNS, *MIRRORED_COLUMNS, *CUT_COLUMNS))
"""Columns of hashes, which come as words."""
HASH_BYTES = 32
# Letters of a caption without the white space around it; null where there is no caption, or none but white space. Made
# while rows are loaded, so that steps can tell rows with a caption without holding the texts.
CAPTION_CHARS = "__caption_chars"
# What a caption is told apart by where captions are merged: a sum of its letters in one case, NFKC, with single spaces.
CAPTION_CODE = "__caption_code"
MADE_COLUMNS = {CAPTION_CHARS: pa.int32(), CAPTION_CODE: pa.binary()}
"""Columns that no table has."""


_PLACE = ("key", "input_file", "input_row")
"""What stays of a row that was taken down."""


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
        """Return the sha256 of every table, by its place in the job, as it was before take-downs rewrote it.

        So the ledgers that follow from the tables keep their names; `forget` revises them too.
        """
        found = {f"raw/{shard}": _raw_sha256(self.job, shard) for shard in self.shards}
        for annotation in self.annotations:
            folder = urlpath.basename(annotation.url)
            with _naming_the_stage("annotate"):
                found |= {f"{folder}/{shard}": begun_sha256(annotation.url, shard) for shard in self.shards}
        return found

    def narrowed(self, columns: Collection[str]) -> "Inputs":
        """Return the inputs without the annotations that have none of these columns."""
        needed = [
            item for item in self.annotations if not set(columns).isdisjoint(_annotation_schema(self, item).names)
        ]
        return replace(self, annotations=tuple(needed))

    def sizes(self) -> list[int]:
        """Return the number of rows of each raw shard."""
        return [_raw_rows(self.job, shard) for shard in self.shards]


def find_inputs(job: Job, annotations: Mapping[str, str]) -> Inputs:
    """List the raw shards; `annotations`: annotator -> folder of its tables. Raises NotReadyError if there are none."""
    shards = tuple(sorted(raw_shards(job)))
    if not shards:
        raise NotReadyError(f"{job.raw}: no raw shards; run `headrace fetch` first")
    check_list_is_fetched(job)
    return Inputs(job=job, shards=shards, annotations=tuple(Annotation(*item) for item in annotations.items()))


def _raw_sha256(job: Job, shard: str) -> str:
    recorded = recorded_of(job, shard)
    known = recorded.begun_sha256 or recorded.table_sha256
    if known is not None:
        return known
    with _naming_the_stage("fetch"):
        return hashlib.sha256(files.read_bytes(urlpath.join(recorded.folder, f"{shard}.parquet"))).hexdigest()


def _raw_rows(job: Job, shard: str) -> int:
    recorded = recorded_of(job, shard).rows
    return len(read_raw(job, shard)) if recorded is None else recorded


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


def part_rows(inputs: Inputs, shards: Sequence[str], sizes: Sequence[int], first: int, wanted: pa.Schema) -> pa.Table:
    """Return columns of some raw shards in the order of their rows, with `__row` from `first` on.

    Each hash column among `wanted` also comes as four integers, `__pdq_0` to `__pdq_3`; `MADE_COLUMNS` are made.
    """
    made = [name for name in MADE_COLUMNS if name in wanted.names]
    plain = pa.schema([field for field in wanted if field.name not in made])
    tables = []
    for shard, size in zip(shards, sizes, strict=True):
        table = _shard_rows(inputs, shard, plain)
        assert table.num_rows == size, f"raw shard {shard} changed while it was read"
        for name, column in (_made_of_captions(inputs, shard, made) if made else {}).items():
            table = table.append_column(name, column)
        tables.append(table)
    rows = pa.concat_tables(tables).combine_chunks()
    return rows.add_column(0, "__row", pa.array(np.arange(first, first + rows.num_rows, dtype=np.int64)))


def _made_of_captions(inputs: Inputs, shard: str, made: Collection[str]) -> dict[str, pa.ChunkedArray]:
    raw = read_raw(inputs.job, shard, ("key", "caption"))
    captions = _by_key(raw)["caption"].cast(pa.string())
    chars = pc.utf8_length(pc.utf8_trim_whitespace(captions))
    chars = pc.if_else(pc.greater(chars, 0), chars, pa.scalar(None, chars.type))
    columns = {CAPTION_CHARS: chars}
    if CAPTION_CODE in made:
        texts = zip(captions.to_pylist(), chars.is_valid().to_pylist(), strict=True)
        codes = [caption_code(text) if there else None for text, there in texts]
        columns[CAPTION_CODE] = pa.chunked_array([pa.array(codes, MADE_COLUMNS[CAPTION_CODE])])
    return {name: columns[name] for name in made}


def caption_columns() -> frozenset[str]:
    """Return the columns that go with a caption where a row takes that of another."""
    made = frozenset[str]().union(*(kind.of_caption for kind in known_annotators().values()))
    return made | {"caption", *MADE_COLUMNS}


def caption_facts(inputs: Inputs, shard: str, places: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
    """Return of some rows of a raw shard the uid and all that follows from the caption.

    `places` are those in the order of the keys. Columns of bytes (a MinHash) are left out: the ledger holds facts as
    JSON, and a dataset does not carry them.
    """
    names = (*caption_columns(), "key", "uid")
    wanted = [field for field in known_columns(inputs) if field.name in names and not _holds_bytes(field.type)]
    table = _by_key(_joined(inputs, shard, pa.schema(wanted))).take(pa.array(places, pa.int64())).drop_columns("key")
    return [(row.pop("uid"), row) for row in table.to_pylist()]


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind))


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
    """Return columns of a raw shard in the order of the keys, with the words of hashes."""
    keyed = wanted if "key" in wanted.names else wanted.append(pa.field("key", pa.string()))
    table = _by_key(_joined(inputs, shard, keyed)).select(wanted.names)
    for name in table.column_names:
        if name in WORD_COLUMNS:
            table = _with_words(table, name, shard)
    return table


def _by_key(table: pa.Table) -> pa.Table:
    keys = table["key"].combine_chunks()
    # They nearly always are in order.
    if len(keys) < 2 or pc.all(pc.less_equal(keys[:-1], keys[1:])).as_py():
        return table
    return table.sort_by("key")


def _joined(inputs: Inputs, shard: str, wanted: pa.Schema) -> pa.Table:
    """Return columns of a raw shard, in raw order; null in annotations where the fetch failed."""
    forgotten = read_tombstones(inputs.job.url)
    raw = read_raw(inputs.job, shard, None if forgotten else ("key", "status", *wanted.names))
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
                f"{urlpath.join(annotation.url, shard)}.parquet does not hold the rows of raw shard {shard}; "
                "remove that file and run `headrace annotate` again"
            )
        columns |= {name: annotated[name].combine_chunks().take(place) for name in names}
    absent = [name for name in wanted.names if name not in columns]
    if absent:
        raise ValueError(f"raw shard {shard} lacks the column {absent[0]!r}, which shard {inputs.shards[0]} has")
    arrays = [_cast(columns[field.name], field, shard) for field in wanted]
    table = pa.table(arrays, schema=wanted)
    # Where a take-down left raw shards as they are, or they are those of others.
    return without_names(table, forgotten.hits(raw), of=raw, kept=_PLACE) if forgotten else table


def _cast(column: pa.Array, field: pa.Field, shard: str) -> pa.Array:
    """Return a column of the type, without NaN: the database holds it for larger than any number, so it would pass."""
    try:
        column = column.cast(field.type)
        return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(field.type) else column
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


def present_hashes(names: Collection[str]) -> tuple[str, ...]:
    """Return the hash columns of a job with columns of these names."""
    return tuple(name for name in ALL_HASH_COLUMNS if name in HASH_COLUMNS or name in names)

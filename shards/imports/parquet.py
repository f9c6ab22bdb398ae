"""Parquet files of image bytes as inputs: an image column (bytes, or a struct with `bytes`), a label, a caption.

The one thing a reader would get wrong: rows are read by row group, so a file of one huge row group is decoded again
for each unit of work that touches it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.shards.imports.source import Input
from headrace.shards.parquet import BUFFER_BYTES, open_parquet

IMAGE_COLUMNS = ("jpg", "image", "jpeg", "png", "webp", "img", "bytes", "image_bytes")
CAPTION_COLUMNS = ("caption", "text")
CLASS_NAME_COLUMN = "class_name"
_ROWS_PER_BATCH = 256
_UNREADABLE = ""
"""In a record: names of its columns that are null because their bytes are no UTF-8; no column has this name."""


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """Which columns are read; None = there is none."""

    image: str
    label: str | None
    caption: str | None
    url: str | None

    def names(self) -> list[str]:
        """Return the names to read."""
        return [name for name in (self.image, self.label, self.caption, self.url) if name is not None]


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """A run of rows, by file: (URL, first row, row after the last)."""

    parts: tuple[tuple[str, int, int], ...]
    columns: ParquetColumns
    classes: tuple[str, ...]

    def read(self) -> Iterator[Input]:
        """Yield the rows in order."""
        for url, start, stop in self.parts:
            row = start
            for batch in _rows(url, start, stop, self.columns.names()):
                for record in _records(batch):
                    yield self._input(f"{files.basename(url)}:{row}", record)
                    row += 1

    def _input(self, name: str, record: dict[str, Any]) -> Input:
        image = record[self.columns.image]
        label = record[self.columns.label] if self.columns.label else None
        if isinstance(label, str):
            label = self.classes.index(label)
        unreadable = record.get(_UNREADABLE)
        return Input(
            name=name,
            image=image.get("bytes") if isinstance(image, dict) else image,
            label=label,
            caption=record[self.columns.caption] if self.columns.caption else None,
            url=record[self.columns.url] if self.columns.url else None,
            note=f"no UTF-8: {', '.join(unreadable)}" if unreadable else None,
        )


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Rows of several files, one after the other; `files` are (URL, rows, bytes)."""

    files: tuple[tuple[str, int, int], ...]
    columns: ParquetColumns
    left_out: tuple[str, ...]
    classes: tuple[str, ...]
    kind: str = "parquet"

    @property
    def url(self) -> str:
        """The first file."""
        return self.files[0][0]

    @property
    def num_inputs(self) -> int:
        """Rows of all files."""
        return sum(num_rows for _, num_rows, _ in self.files)

    def identity(self) -> Iterator[Any]:
        """Yield name, rows and bytes of each file, and the columns that are read."""
        yield from ([files.basename(url), num_rows, num_bytes] for url, num_rows, num_bytes in self.files)
        yield self.columns.names()

    def unit(self, start: int, stop: int) -> ParquetUnit:
        """Return rows start..stop-1."""
        parts, base = [], 0
        for url, num_rows, _ in self.files:
            first, last = max(0, start - base), min(num_rows, stop - base)
            if first < last:
                parts.append((url, first, last))
            base += num_rows
        return ParquetUnit(tuple(parts), self.columns, self.classes)


def open_parquet_files(urls: Sequence[str], *, image_column: str | None, label_column: str) -> ParquetSource:
    """Read the footers. Raises ValueError if a file is no parquet or lacks the image column."""
    parts, schema = [], None
    for url in urls:
        with open_parquet(url) as file:
            if schema is not None and not file.schema.equals(schema):
                raise ValueError(f"{url}: its columns differ from those of {urls[0]}")
            schema = file.schema
            parts.append((url, file.num_rows, files.size_of(url)))
    assert schema is not None, "callers pass at least one file"
    columns = _choose(schema, urls[0], image_column, label_column)
    left_out = tuple(name for name in schema.names if name not in (*columns.names(), CLASS_NAME_COLUMN))
    return ParquetSource(tuple(parts), columns, left_out, _class_names(urls, schema, columns))


def _choose(schema: pa.Schema, url: str, image_column: str | None, label_column: str) -> ParquetColumns:
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    image = image_column or next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if image is None or image not in schema.names:
        raise ValueError(f"{url}: no column {image or 'of images'}; name one by --image-column; it has {known}")
    used = (image, label_column, *CAPTION_COLUMNS, "url")
    twice = next((name for name in used if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{url}: {schema.names.count(twice)} columns are named {twice}; rename all but one")
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"{url}: column {image} is {kind}, expected bytes")
    label = label_column if label_column in schema.names else None
    if label is not None and not _is_string(schema, label) and not pa.types.is_integer(schema.field(label).type):
        raise ValueError(f"{url}: column {label} is {schema.field(label).type}, expected integers or class names")
    caption = next((name for name in CAPTION_COLUMNS if name in schema.names and _is_string(schema, name)), None)
    return ParquetColumns(image, label, caption, "url" if "url" in schema.names and _is_string(schema, "url") else None)


def _is_string(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a categorical of pandas
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(urls: Sequence[str], schema: pa.Schema, columns: ParquetColumns) -> tuple[str, ...]:
    """Return the class names: the label's own strings sorted, or `class_name` by label if each label has one."""
    if columns.label is None:
        return ()
    named = CLASS_NAME_COLUMN in schema.names and _is_string(schema, CLASS_NAME_COLUMN)
    wanted = [columns.label, *([CLASS_NAME_COLUMN] if named else [])]
    if _is_string(schema, columns.label):
        found = {value for url in urls for value in _distinct(url, [columns.label])}
        return tuple(sorted(name for (name,) in found if name is not None))
    if not named:
        return ()
    pairs = {value for url in urls for value in _distinct(url, wanted) if None not in value}
    names = dict(sorted(pairs))
    consecutive = sorted(names) == list(range(len(names))) and len(names) == len(pairs)
    return tuple(names[label] for label in sorted(names)) if consecutive else ()


def _distinct(url: str, names: Sequence[str]) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    with open_parquet(url, buffer_bytes=BUFFER_BYTES) as file:
        for batch in file.batches(1 << 16, names):
            table = pa.Table.from_batches([batch]).group_by(list(names)).aggregate([])
            found.update(zip(*(table[name].to_pylist() for name in names), strict=True))
    return found


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # before the first record is out: the list is made whole
    texts = [name for name in batch.schema.names if _is_string(batch.schema, name)]
    for number in range(batch.num_rows):
        row, unreadable = batch.slice(number, 1), []
        record = row.drop_columns(texts).to_pylist()[0]
        for name in texts:
            try:
                record[name] = row[name].to_pylist()[0]
            except UnicodeDecodeError:
                record[name] = None
                unreadable.append(name)
        yield {**record, _UNREADABLE: unreadable}


def _rows(url: str, start: int, stop: int, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield rows start..stop-1, decoding only the row groups that hold them."""
    with open_parquet(url, buffer_bytes=BUFFER_BYTES) as file:
        groups, first, base = [], None, 0
        for number, num_rows in enumerate(file.group_rows):
            if base < stop and base + num_rows > start:
                groups.append(number)
                first = base if first is None else first
            base += num_rows
        position = first or 0
        for batch in file.batches(_ROWS_PER_BATCH, names, groups=groups):
            low, high = max(0, start - position), min(batch.num_rows, stop - position)
            position += batch.num_rows
            if low < high:
                yield batch.slice(low, high - low)
            if position >= stop:
                return

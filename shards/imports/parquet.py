"""Parquet files of image bytes as inputs: an image column (bytes, or a struct with `bytes`), a label, a caption, more.

Columns of text, numbers and truth values are carried; others are named in `left_out`. Rows are read by row group, so a
file of one huge row group is decoded again for each unit of work that touches it.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa

from headrace import files, urlpath
from headrace.shards.columns import is_text, kind_of, value_type
from headrace.shards.imports.huggingface import class_names
from headrace.shards.imports.source import Input, Leftover, fit, free_name
from headrace.shards.members import caption_of
from headrace.shards.parquet import BUFFER_BYTES, open_parquet

IMAGE_COLUMNS = ("jpg", "image", "jpeg", "png", "webp", "img", "bytes", "image_bytes")
CAPTION_COLUMNS = ("caption", "text", "txt")
CAPTIONS_COLUMN = "captions"
DEFAULT_LABEL = "label"
# As the viewer of Hugging Face spells webdatasets.
_OTHER_LABEL = "cls"
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
    extras: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the names to read."""
        return [name for name in (self.image, self.label, self.caption, self.url, *self.extras) if name is not None]


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """Runs of rows, by file: (URL, first row, row after the last)."""

    parts: tuple[tuple[str, int, int], ...]
    columns: ParquetColumns
    kinds: Mapping[str, str]
    classes: tuple[str, ...]
    numbered: bool
    """Labels are numbers of `classes`, as Hugging Face has them; else their names, or plain numbers."""

    def read(self) -> Iterator[Input]:
        """Yield the rows in order."""
        labels = {name: label for label, name in enumerate(self.classes)}
        for url, start, stop in self.parts:
            row = start
            for batch in _rows(url, start, stop, self.columns.names()):
                for record in _records(batch):
                    yield self._input(f"{urlpath.basename(url)}:{row}", record, labels)
                    row += 1

    def _input(self, name: str, record: dict[str, Any], labels: Mapping[str, int]) -> Input:
        columns = self.columns
        image, why_not = _image(record[columns.image])
        unreadable = record.get(_UNREADABLE)
        complaints = [f"no UTF-8: {', '.join(unreadable)}"] if unreadable else []
        label, complaint = self._label(record[columns.label] if columns.label else None, labels)
        caption, captions = _captions(record[columns.caption] if columns.caption else None)
        more = {name: _none(record[name]) for name in columns.extras}
        extras, unfit = fit({**more, CAPTIONS_COLUMN: captions} if captions else more, self.kinds)
        complaints += [*([complaint] if complaint else []), *unfit]
        return Input(
            name=name,
            image=image,
            label=label,
            caption=caption,
            url=record[columns.url] if columns.url else None,
            extras=extras,
            note=why_not if image is None else "; ".join(complaints) or None,
        )

    def _label(self, value: Any, labels: Mapping[str, int]) -> tuple[int | None, str | None]:
        """Return (label, complaint)."""
        if value is None:
            return None, None
        if isinstance(value, str):
            return labels[value], None
        if self.numbered and value == -1:  # how `datasets` spells no label
            return None, None
        if self.numbered and not 0 <= value < len(self.classes):
            return None, f"label {value} is none of the {len(self.classes)} classes"
        if value >= 1 << 63:
            return None, f"label {value} is over 64 bits"
        return int(value), None


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """Rows of several files, one after the other; `files` are (URL, rows, bytes)."""

    files: tuple[tuple[str, int, int], ...]
    chosen: ParquetColumns
    columns: Mapping[str, str]
    left_out: tuple[str, ...]
    classes: tuple[str, ...]
    numbered: bool
    kind: str = "parquet"
    leftovers: tuple[Leftover, ...] = ()
    remarks: tuple[str, ...] = ()
    not_read: Mapping[str, int] = field(default_factory=dict)
    num_lost: int = 0
    random_access: bool = False

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
        yield from ([urlpath.basename(url), num_rows, num_bytes] for url, num_rows, num_bytes in self.files)
        yield [self.chosen.names(), dict(self.columns), list(self.classes)]

    def unit(self, positions: Sequence[int]) -> ParquetUnit:
        """Return the rows at `positions`; neighbours are read together."""
        starts = list(accumulate((num_rows for _, num_rows, _ in self.files), initial=0))
        parts: list[tuple[str, int, int]] = []
        for position in positions:
            number = bisect_right(starts, position) - 1
            url, row = self.files[number][0], position - starts[number]
            if parts and parts[-1][0] == url and parts[-1][2] == row:
                parts[-1] = (url, parts[-1][1], row + 1)
            else:
                parts.append((url, row, row + 1))
        return ParquetUnit(tuple(parts), self.chosen, self.columns, self.classes, self.numbered)


def open_parquet_files(urls: Sequence[str], *, image_column: str | None, label_column: str) -> ParquetSource:
    """Read the footers. Raises ValueError if a file is no parquet or lacks the image column."""
    parts, schema = [], None
    for url in urls:
        with open_parquet(url) as file:
            if schema is not None and not file.schema.equals(schema):
                raise ValueError(
                    f"{url}: its columns differ from those of {urls[0]}: {_difference(file.schema, schema)}"
                )
            schema = file.schema if schema is None else schema
            parts.append((url, file.num_rows, files.size_of(url)))
    assert schema is not None, "callers pass at least one file"
    chosen = _choose(schema, urls[0], image_column, label_column)
    numbered = (
        class_names(schema, chosen.label) if chosen.label and not is_text(schema.field(chosen.label).type) else ()
    )
    classes = numbered or _class_names(urls, schema, chosen)
    kinds = {name: kind_of(schema.field(name).type) for name in chosen.extras}
    if chosen.caption is not None and _is_texts(schema.field(chosen.caption).type):
        kinds[CAPTIONS_COLUMN] = "texts"
    used = (*chosen.names(), *([CLASS_NAME_COLUMN] if classes else []))
    left_out = tuple(name for name in schema.names if name not in used)
    return ParquetSource(
        tuple(parts),
        chosen,
        {name: kind for name, kind in sorted(kinds.items()) if kind is not None},
        left_out,
        classes,
        bool(numbered),
    )


def _difference(one: pa.Schema, other: pa.Schema) -> str:
    """Return the first column in which two schemas differ."""
    for name in dict.fromkeys((*other.names, *one.names)):
        kinds = [schema.field(name).type if schema.names.count(name) == 1 else None for schema in (one, other)]
        if kinds[0] != kinds[1]:
            return f"{name} is {kinds[0] or 'not there'}, there {kinds[1] or 'not there'}"
    return "their order, or which may be null"


def _choose(schema: pa.Schema, url: str, image_column: str | None, label_column: str) -> ParquetColumns:
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    image = image_column or _first(schema, IMAGE_COLUMNS, lambda kind: _bytes_in(kind) is not None)
    image = image or _first(schema, IMAGE_COLUMNS, lambda _kind: True)
    if image is None or image not in schema.names:
        raise ValueError(f"{url}: no column {image or 'of images'}; name one by --image-column; it has {known}")
    wanted = (label_column, _OTHER_LABEL) if label_column == DEFAULT_LABEL else (label_column,)
    used = (image, *wanted, *CAPTION_COLUMNS, "url")
    twice = next((name for name in used if schema.names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{url}: {schema.names.count(twice)} columns are named {twice}; rename all but one")
    kind = schema.field(image).type
    if _bytes_in(kind) is None:
        raise ValueError(f"{url}: column {image} is {kind}, expected bytes")
    label = _first(schema, wanted, lambda _kind: True)
    if label is not None and not _is_label(schema.field(label).type):
        raise ValueError(f"{url}: column {label} is {schema.field(label).type}, expected integers or class names")
    caption = _first(schema, CAPTION_COLUMNS, lambda kind: is_text(kind) or _is_texts(kind))
    taken = (image, label, caption, (page := _first(schema, ("url",), is_text)))
    more = [name for name in schema.names if name not in taken and schema.names.count(name) == 1]
    extras = tuple(name for name in more if free_name(name) and kind_of(schema.field(name).type) is not None)
    return ParquetColumns(image, label, caption, page, extras)


def _first(schema: pa.Schema, names: Sequence[str], test: Callable[[pa.DataType], bool]) -> str | None:
    """Return the first of `names` that is a column of a fitting type, spelled exactly, or else in any case."""
    columns: list[str] = list(schema.names)
    for spelled in (str, str.lower):
        for name in names:
            found = [column for column in columns if spelled(column) == spelled(name)]
            if found and test(schema.field(columns.index(found[0])).type):
                return found[0]
    return None


def _bytes_in(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the bytes in an image column, or None if it holds none."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = value_type(kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return kind if any(test(kind) for test in tests) else None


def _is_texts(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and is_text(kind.value_type)


def _is_label(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return is_text(kind) or bool(pa.types.is_integer(kind)) or bool(pa.types.is_null(kind))


def _image(value: Any) -> tuple[bytes | None, str | None]:
    """Return (bytes, why there are none)."""
    if not isinstance(value, dict):
        return value, None
    if value.get("bytes") is not None or not value.get("path"):
        return value.get("bytes"), None
    return None, f"bytes are null; the file {str(value['path'])[:100]!r} that it names is not read"


def _captions(value: Any) -> tuple[str | None, list[str] | None]:
    """Return (caption, all captions where there are several): of a list, the first."""
    if not isinstance(value, list):
        return (None if value is None else caption_of(value)), None
    texts = [text for text in value if text is not None and caption_of(text) is not None]
    return (texts[0] if texts else None), texts if len(texts) > 1 else None


def _none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _class_names(urls: Sequence[str], schema: pa.Schema, columns: ParquetColumns) -> tuple[str, ...]:
    """Return the class names: the label's own strings sorted, or `class_name` by label if each label has one."""
    if columns.label is None:
        return ()
    named = schema.names.count(CLASS_NAME_COLUMN) == 1 and is_text(schema.field(CLASS_NAME_COLUMN).type)
    wanted = [columns.label, *([CLASS_NAME_COLUMN] if named else [])]
    if is_text(schema.field(columns.label).type):
        found = {value for url in urls for value in _distinct(url, [columns.label])}
        return tuple(sorted(name for (name,) in found if name is not None))
    if not named or pa.types.is_null(schema.field(columns.label).type):
        return ()
    pairs = {value for url in urls for value in _distinct(url, wanted) if None not in value}
    names = dict(sorted(pairs))
    consecutive = sorted(names) == list(range(len(names))) and len(names) == len(pairs)
    return tuple(names[label] for label in sorted(names)) if consecutive else ()


def _distinct(url: str, names: Sequence[str]) -> set[tuple[Any, ...]]:
    """Return the distinct values of columns; text that is no UTF-8 counts as none."""
    found: set[tuple[Any, ...]] = set()
    with open_parquet(url, buffer_bytes=BUFFER_BYTES) as file:
        for batch in file.batches(1 << 16, names):
            table = pa.table({name: _plain(batch[name]) for name in names}).group_by(list(names)).aggregate([])
            found.update(zip(*(_values(table[name]) for name in names), strict=True))
    return found


def _plain(column: pa.Array) -> pa.Array:
    """Return a column in a type that can be grouped by: views cannot."""
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(item) for item in column]


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return None


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # before the first record is out: the list is made whole
    for number in range(batch.num_rows):
        record: dict[str, Any] = {}
        unreadable = []
        for name in batch.schema.names:
            item = batch[name][number]
            try:
                record[name] = item.as_py()
            except UnicodeDecodeError:
                # Of an image in a struct, it is the name of its file that cannot be read.
                is_struct = pa.types.is_struct(item.type)
                record[name] = {"bytes": item["bytes"].as_py()} if is_struct else None
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

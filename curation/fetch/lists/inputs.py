"""URL lists as blocks of rows: txt, csv, tsv, json, jsonl (also .gz) and parquet, at any fsspec URL.

Every line or record is a row, also one that cannot be read: it becomes a row with a `problem`, so that numbers of
rows in and out agree. Only a json array is read whole. The one thing a reader would get wrong: `input_file` is the
name below the folder that all lists share, so that outputs do not depend on where that folder stands.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from headrace import files
from headrace.config import canonical_json
from headrace.curation.fetch.config import InputConfig
from headrace.shards.parquet import BUFFER_BYTES, ParquetReader, open_ranges

FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
BLOCK_ROWS = 8192
MAX_LINE_BYTES = 1 << 20
MAX_KNOWN_COLUMNS = 1000
HASHED_BYTES = 1 << 26

_SUFFIXES = {**{f".{name}": name for name in FORMATS}, ".ndjson": "jsonl"}
_UNREADABLE = (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid, pa.ArrowNotImplementedError, csv.Error)


@dataclass(frozen=True, slots=True)
class ListFile:
    """One file of URLs."""

    url: str
    name: str
    format: str
    compressed: bool


@dataclass(slots=True)
class Row:
    """One record of a text list; `values` holds the carried columns."""

    url: str | None
    caption: str | None = None
    expected_sha256: str | None = None
    problem: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    """Names that the record has."""


def list_files(config: InputConfig) -> tuple[ListFile, ...]:
    """Return the files that `config.urls` names, in order. Raises ValueError for what is missing or unknown."""
    urls = [url for entry in config.urls for url in _expand(entry, config.format)]
    twice = sorted({url for url in urls if urls.count(url) > 1}) if len(set(urls)) < len(urls) else []
    if twice:
        raise ValueError(f"input.urls names {twice[0]} twice")
    return tuple(
        ListFile(url, name, *_format_of(url, config.format)) for url, name in zip(urls, _names(urls), strict=True)
    )


def _expand(entry: str, list_format: str) -> list[str]:
    if entry.startswith(("http://", "https://")):
        return [entry]  # `?` and `*` may stand in a query
    fs, path = files.open_fs(entry)
    if any(char in path for char in "*?["):
        found = [found for found in fs.glob(path) if not fs.isdir(found)]
    elif fs.isdir(path):
        found = [str(found) for found in fs.ls(path, detail=False) if not fs.isdir(found)]
        found = [found for found in found if list_format != "auto" or _suffix_format(found)]
    else:
        found = [path] if fs.exists(path) else []
    found = [str(name) for name in found if not files.basename(str(name)).startswith(".")]
    if not found:
        raise ValueError(f"input.urls: {entry}: no such list, or no file of a known format ({', '.join(FORMATS)})")
    return sorted(found if files.is_local(entry) else [fs.unstrip_protocol(name) for name in found])


def lists_are_text(config: InputConfig) -> bool:
    """True if every list is csv or tsv, by its name alone: all columns that it carries are text."""
    formats = {_suffix_format(entry) if config.format == "auto" else config.format for entry in config.urls}
    return formats <= {"csv", "tsv"}


def _plain_name(url: str) -> str:
    return files.basename(url.partition("?")[0] if "://" in url else url).lower()


def _suffix_format(url: str) -> str | None:
    name = _plain_name(url).removesuffix(".gz")
    return next((known for suffix, known in _SUFFIXES.items() if name.endswith(suffix)), None)


def _format_of(url: str, list_format: str) -> tuple[str, bool]:
    found = _suffix_format(url) if list_format == "auto" else list_format
    if found is None:
        raise ValueError(f"input.urls: {url}: format not known by its suffix; set input.format to one of {FORMATS}")
    compressed = _plain_name(url).endswith(".gz")
    if compressed and found == "parquet":
        raise ValueError(f"input.urls: {url}: a parquet file is compressed inside; unpack the .gz")
    return found, compressed


def _names(urls: list[str]) -> list[str]:
    """Return the paths below the folder that all share."""
    parts = [url.split("/") for url in urls]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def fingerprint(file: ListFile) -> dict[str, Any]:
    """Return what tells a changed list: name, bytes, and sha256 of the whole (of its two ends beyond 64 MiB)."""
    size, half = files.size_of(file.url), HASHED_BYTES // 2
    digest = hashlib.sha256()
    if size <= HASHED_BYTES:
        digest.update(files.read_bytes(file.url))
    else:
        digest.update(files.read_range(file.url, 0, half))
        digest.update(files.read_range(file.url, size - half, half))
    return {"name": file.name, "bytes": size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def opened(file: ListFile) -> Iterator[BinaryIO]:
    """Open a list for reading; what makes it unreadable becomes a ValueError that names it."""
    try:
        if file.format == "parquet" and not files.is_local(file.url):
            with open_ranges(file.url) as stream:
                yield stream
            return
        with fsspec.open(file.url, "rb", compression="gzip" if file.compressed else None) as stream:
            yield stream
    except _UNREADABLE as error:
        raise ValueError(f"{file.url}: cannot be read as {file.format}: {' '.join(str(error).split())}") from error


def text_rows(file: ListFile, config: InputConfig) -> Generator[Row, None, None]:
    """Yield the rows of a list that is not parquet."""
    with opened(file) as stream:
        if file.format == "txt":
            yield from (Row(None, problem=_TOO_LONG) if line is None else Row(_text(line)) for line in _lines(stream))
        elif file.format in ("csv", "tsv"):
            yield from _csv_rows(stream, file, config)
        else:
            yield from (_json_row(record, config) for record in _json_records(stream, file))


_TOO_LONG = f"the line is over {MAX_LINE_BYTES} bytes"


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines without their ends; None for one that is too long to hold."""
    rest, skipping, first = b"", False, True
    while chunk := stream.read(MAX_LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if first and (lines or len(rest) > 3):
            lines, rest = (
                ([lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]], rest)
                if lines
                else (lines, rest.removeprefix(b"\xef\xbb\xbf"))
            )
            first = False
        for line in lines:
            yield None if skipping or len(line) > MAX_LINE_BYTES else line.removesuffix(b"\r")
            skipping = False
        if len(rest) > MAX_LINE_BYTES:
            rest, skipping = b"", True
    if rest or skipping:
        yield None if skipping else rest.removesuffix(b"\r")


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _csv_rows(stream: BinaryIO, file: ListFile, config: InputConfig) -> Iterator[Row]:
    with io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as text:
        reader = csv.reader(text, delimiter="\t" if file.format == "tsv" else ",")
        header = next(reader, None)
        if header is None:
            raise ValueError(f"{file.url}: empty, expected a line with the names of the columns")
        check_columns(file, header, config)
        place = {name: header.index(name) for name in dict.fromkeys(header)}
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(None, problem=f"not a row of {file.format}: {error}")
                continue
            if cells:
                yield _row(config, {name: cells[at] for name, at in place.items() if at < len(cells)})


def _json_records(stream: BinaryIO, file: ListFile) -> Iterator[Any]:
    if file.format == "json":
        try:
            records = json.load(stream)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.url}: not JSON: {error} (one record a line is format jsonl)") from error
        if not isinstance(records, list):
            raise ValueError(f"{file.url}: expected an array of records, got {type(records).__name__}")
        yield from records
        return
    for line in _lines(stream):
        if line is None:
            yield ValueError(_TOO_LONG)
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield ValueError("the line is not JSON")


def _json_row(record: Any, config: InputConfig) -> Row:
    if isinstance(record, ValueError):
        return Row(None, problem=str(record))
    if not isinstance(record, dict):
        return Row(None, problem="the record is not an object")
    return _row(config, record)


def _row(config: InputConfig, record: dict[str, Any]) -> Row:
    url = record.get(config.url_column)
    if url is not None and not isinstance(url, str):
        return Row(None, problem="the URL is not a string", known=tuple(record))
    return Row(
        clean(url),
        clean(record.get(config.caption_column)) if config.caption_column else None,
        clean(record.get(config.sha256_column)) if config.sha256_column else None,
        values={name: record.get(name) for name in config.columns},
        known=tuple(record),
    )


def clean(value: Any) -> str | None:
    """Return a value as text that parquet can hold (JSON may spell half a surrogate pair)."""
    if value is None:
        return None
    text = value if isinstance(value, str) else canonical_json(value)
    return text.encode("utf-8", "replace").decode()


def wanted_columns(config: InputConfig) -> dict[str, str]:
    """Return the columns that the config names, by setting."""
    own = {
        "url_column": config.url_column,
        "caption_column": config.caption_column,
        "sha256_column": config.sha256_column,
    }
    wanted = {setting: name for setting, name in own.items() if name is not None}
    return wanted | {f"columns ({name})": name for name in config.columns}


def check_columns(file: ListFile, known: Iterable[str], config: InputConfig) -> None:
    """Raise ValueError if a column the config names is not among those the list has."""
    names = list(known)
    for setting, name in wanted_columns(config).items():
        if name not in names:
            hint = ", or to null if the list has none" if setting == "caption_column" else ""
            raise ValueError(
                f"{file.url}: no column {name!r}; its columns: {', '.join(names[:50])}; set input.{setting}{hint}"
            )
        if names.count(name) > 1:
            raise ValueError(f"{file.url}: {names.count(name)} columns are named {name!r}; rename all but one")


def open_parquet_list(stream: BinaryIO, file: ListFile, config: InputConfig) -> ParquetReader:
    """Open a parquet list and check its columns."""
    # Buffered: a list is often one row group, whose columns would be read whole.
    parquet = ParquetReader(stream, file.url, buffer_bytes=BUFFER_BYTES)
    check_columns(file, parquet.schema.names, config)
    for name in (config.url_column, config.caption_column, config.sha256_column):
        kind = parquet.schema.field(name).type if name is not None else pa.string()
        if pa.types.is_nested(kind):
            raise ValueError(f"{file.url}: column {name!r} is {kind}, expected text")
    return parquet

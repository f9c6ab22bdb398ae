"""The files of a list: which there are, in which format, and reading one as blocks of rows.

Formats are txt, csv, tsv, json, jsonl (also compressed) and parquet, at any fsspec URL. `input_file` is the name below
the folder that all lists share, so outputs do not depend on where that folder stands.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from headrace import files, stores, urlpath
from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.carried import is_plain_text
from headrace.curation.fetch.lists.columns import check_columns
from headrace.curation.fetch.lists.compression import (
    UNREADABLE,
    OnBytes,
    compression_of,
    counted,
    decompressed,
    is_damage,
    limited,
    no_bytes,
)
from headrace.curation.fetch.lists.delimited import read_delimited
from headrace.curation.fetch.lists.lines import TOO_LONG, NotTextError, read_lines
from headrace.curation.fetch.lists.records import read_json_array, read_json_lines
from headrace.curation.fetch.lists.rows import BLOCK_ROWS, Block, Tally
from headrace.globs import matching
from headrace.shards.parquet import BUFFER_BYTES, ParquetReader
from headrace.text import one_line, shown, without_secrets

FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
HASHED_BYTES = 1 << 26
MAX_NAMES_SHOWN = 5

log = logging.getLogger(__name__)

_ADVICE = "a glob such as FOLDER/**/*.parquet names what lies deeper, input.format the format of odd names"

_SUFFIXES = {**{f".{name}": name for name in FORMATS}, ".ndjson": "jsonl"}


@dataclass(frozen=True, slots=True)
class ListFile:
    """One file of URLs."""

    url: str
    name: str
    format: str
    compression: str
    """One of COMPRESSIONS, or ""."""
    num_bytes: int | None = None
    """No more than so many bytes of a text list are read; None: all."""
    start_row: int = 0
    """Rows before this one are left out: another segment holds them."""


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
    found, left_out = list[str](), list[str]()
    for url in matching(entry):
        fs, path = stores.open_fs(url)
        if not fs.isdir(path):
            found.append(path if urlpath.is_local(url) else url)
        elif url == entry:
            known, left_out = _lists_of(fs, path, list_format)
            found += known if urlpath.is_local(entry) else [str(fs.unstrip_protocol(name)) for name in known]
    found = sorted(name for name in found if not urlpath.basename(name).startswith("."))
    told = f"{_listed(left_out)} in it ({_ADVICE})" if left_out else ""
    if not found:
        known_formats = f"no file of a known format ({', '.join(FORMATS)})"
        raise ValueError(f"input.urls: {entry}: no such list, or {known_formats}{'; there is ' if told else ''}{told}")
    if told:
        log.warning("input.urls: %s: not read: %s", without_secrets(entry), told)
    return found


def _lists_of(fs: Any, folder: str, list_format: str) -> tuple[list[str], list[str]]:
    """Return the lists of a folder, and what else lies there; the notes of writers (`_SUCCESS`, `.x.crc`) are none."""
    known, left_out = list[str](), list[str]()
    for name in sorted(map(str, fs.ls(folder, detail=False))):
        is_folder = fs.isdir(name)
        if not is_folder and (list_format != "auto" or _suffix_format(name)):
            known.append(name)
        elif not urlpath.basename(name).startswith((".", "_")):
            left_out.append(f"{urlpath.basename(name.rstrip('/'))}{'/' if is_folder else ''}")
    return known, left_out


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(map(shown, names[:MAX_NAMES_SHOWN])) + more


def lists_are_text(config: InputConfig) -> bool:
    """True if every list is csv or tsv, by its name alone: all columns that it carries are text."""
    formats = {_suffix_format(entry) if config.format == "auto" else config.format for entry in config.urls}
    return formats <= {"csv", "tsv"}


def _plain_name(url: str) -> str:
    return urlpath.basename(url.partition("?")[0] if "://" in url else url).lower()


def _suffix_format(url: str) -> str | None:
    name, _ = compression_of(_plain_name(url))
    return next((known for suffix, known in _SUFFIXES.items() if name.endswith(suffix)), None)


def _format_of(url: str, list_format: str) -> tuple[str, str]:
    found = _suffix_format(url) if list_format == "auto" else list_format
    if found is None:
        raise ValueError(f"input.urls: {url}: format not known by its suffix; set input.format to one of {FORMATS}")
    _, compression = compression_of(_plain_name(url))
    if compression and found == "parquet":
        raise ValueError(f"input.urls: {url}: a parquet file is compressed inside; unpack it")
    return found, compression


def _names(urls: list[str]) -> list[str]:
    """Return the paths below the folder that all share."""
    parts = [without_secrets(url).split("/") for url in urls]  # a name stands in every table
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def fingerprint(file: ListFile, num_bytes: int | None = None) -> dict[str, Any]:
    """Return what tells a changed list: name, bytes, and sha256 of the whole (of its two ends beyond 64 MiB).

    With `num_bytes`, that of its first bytes.
    """
    digest, half = hashlib.sha256(), HASHED_BYTES // 2
    with files.opened(file.url, in_blocks=False) as stream:
        size = stream.seek(0, io.SEEK_END) if num_bytes is None else num_bytes
        starts = (0,) if size <= HASHED_BYTES else (0, size - half)
        for start in starts:
            stream.seek(start)
            digest.update(stream.read(size if size <= HASHED_BYTES else half))
    return {"name": file.name, "bytes": size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def opened(file: ListFile, on_bytes: OnBytes = no_bytes) -> Iterator[BinaryIO]:
    """Open the bytes of a list, decompressed; what makes it unreadable becomes a ValueError that names it.

    `on_bytes` hears of the bytes read of a text list, before they are decompressed.
    """
    try:
        with files.opened(file.url) as stream:
            if file.format == "parquet":
                yield stream
            else:
                yield decompressed(counted(limited(stream, file.num_bytes), on_bytes), file.compression)
    except (*UNREADABLE, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, NotTextError) as error:
        raise _cannot_be_read(file, error) from error
    except OSError as error:
        if not is_damage(error):
            raise
        raise _cannot_be_read(file, error) from error


def _cannot_be_read(file: ListFile, error: Exception) -> ValueError:
    kind = f"{file.format}, compressed with {file.compression}" if file.compression else file.format
    return ValueError(f"{file.url}: cannot be read as {kind}: {one_line(str(error))}")


def text_blocks(
    file: ListFile, config: InputConfig, tally: Tally, on_bytes: OnBytes = no_bytes
) -> Generator[Block, None, None]:
    """Yield the rows of a list that is not parquet; `on_bytes` is that of `opened`."""
    left_out = file.start_row
    read = Tally()
    with opened(file, on_bytes) as stream:
        for block in _blocks(stream, file, config, read):
            part = block.after(min(left_out, len(block.numbers)))
            left_out -= len(block.numbers) - len(part.numbers)
            if part.numbers or not file.start_row:  # what was odd in other rows was counted with those
                tally.add(read)
            read.clear()
            yield part
        tally.add(read)


def _blocks(stream: BinaryIO, file: ListFile, config: InputConfig, tally: Tally) -> Iterator[Block]:
    if file.format == "txt":
        yield from _txt_blocks(stream, file, tally)
    elif file.format in ("csv", "tsv"):
        yield from read_delimited(stream, file.url, file.format, config, name=file.name, tally=tally)
    elif file.format == "json":
        yield from read_json_array(stream, file.url, config)
    else:
        yield from read_json_lines(stream, config, name=file.name, tally=tally)


def _txt_blocks(stream: BinaryIO, file: ListFile, tally: Tally) -> Iterator[Block]:
    lines = _txt_lines(stream, file, tally)
    number = 0
    while held := list(islice(lines, BLOCK_ROWS)):
        yield Block(
            place="line",
            first=1,
            numbers=list(range(number, number + len(held))),
            urls=held,
            captions=[None] * len(held),
            problems={row: TOO_LONG for row, line in enumerate(held) if line is None},
        )
        number += len(held)


def _txt_lines(stream: BinaryIO, file: ListFile, tally: Tally) -> Iterator[str | None]:
    for line in read_lines(stream, lambda reason, number: tally.repair(reason, f"{file.name} line {number}")):
        text = line and line.rstrip("\r\n")
        if text and "\r" in text:  # a lone CR ends a line here and there
            yield from text.split("\r")
        else:
            yield text


def open_parquet_list(stream: BinaryIO, file: ListFile, config: InputConfig) -> ParquetReader:
    """Open a parquet list and check its columns."""
    # Buffered: a list is often one row group, whose columns would be read whole.
    parquet = ParquetReader(stream, file.url, buffer_bytes=BUFFER_BYTES)
    check_columns(file.url, parquet.schema.names, config)
    for name in (config.url_column, config.caption_column, *config.listed_columns.values()):
        kind = parquet.schema.field(name).type if name is not None else pa.string()
        if not is_plain_text(kind) and not (name == config.bbox_column and pa.types.is_nested(kind)):
            raise ValueError(f"{file.url}: column {name!r} is {kind}, expected text")
    return parquet

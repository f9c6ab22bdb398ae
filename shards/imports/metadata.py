"""`metadata.csv`, `.jsonl` or `.parquet` beside the images of a folder: one row a file, found by `file_name`.

The habit is Hugging Face's imagefolder: the table may lie in any folder, and `file_name` is a path below it. Cells that
are empty, and NaN in JSON, are none. A table that cannot be read row by row is refused with its line: a row too many
would shift every caption.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from headrace import files
from headrace.shards.parquet import read_table

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAMES = ("file_name", "file")


def read_metadata(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file name, the row without it). Raises ValueError that names the line which is no row."""
    rows = _READERS[url.rpartition(".")[2]](url)
    for where, row in rows:
        name = next((row.pop(column) for column in _NAMES if column in row), None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: no text in the column file_name; it has {', '.join(map(str, row))}")
        kept = {column: value for column, value in row.items() if not _is_none(value)}
        yield name.replace("\\", "/").removeprefix("./"), kept


def _csv(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _text(url, files.read_bytes(url))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{url}: line 1: two columns have one name: {', '.join(header)}")
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{url}: line {lines.line_num}: {len(cells)} cells, the header has {len(header)}")
            yield f"{url}: line {lines.line_num}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{url}: line {lines.line_num}: {error}") from error


def _jsonl(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(url, files.read_bytes(url)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{url}: line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{url}: line {number}: expected a mapping, got {type(row).__name__}")
        yield f"{url}: line {number}", row


def _parquet(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    table = read_table(url)
    for number, row in enumerate(table.to_pylist()):
        yield f"{url}: row {number}", row


def _text(url: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{url}: no UTF-8 at byte {error.start}") from error


def _is_none(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


_READERS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}

"""Read lists as fetch does, and count what was odd."""

from pathlib import Path
from typing import Any

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import list_files
from headrace.curation.fetch.lists.rows import Tally
from headrace.curation.fetch.lists.table import scan, tables


def read(path: Any, **settings: Any) -> list[dict[str, Any]]:
    """Return the rows of a list, or of several."""
    return read_and_count(path, **settings)[0]


def read_and_count(path: Any, **settings: Any) -> tuple[list[dict[str, Any]], Tally]:
    """Return the rows, and the counts of what was odd."""
    urls = path if isinstance(path, tuple) else (str(path),)
    config, tally = InputConfig(urls=urls, **settings), Tally()
    files = list_files(config)
    found = scan(files, config)
    rows = [row for table in tables(files, config, found.schema, tally) for row in table.to_pylist()]
    assert len(rows) == sum(found.rows)
    assert sum(odd.rows for odd in tally.rejected.values()) == sum(row["problem"] is not None for row in rows)
    return rows, tally


def read_text(folder: Path, name: str, text: str | bytes, **settings: Any) -> tuple[list[dict[str, Any]], Tally]:
    """Write a list and read it."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_and_count(path, **settings)


def counts(tally: Tally) -> dict[str, int]:
    """Return the rows of each reason."""
    return {reason: odd.rows for reason, odd in tally.all().items()}


def pairs(rows: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Return URL and caption of the rows that may be fetched."""
    return [(row["url"], row["caption"]) for row in rows if row["problem"] is None]

"""What two datasets share, exactly: counted by DuckDB, which spills to disk beyond its memory."""

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from headrace.curation.report.compare.side import Side
from headrace.curation.select.database import Limits, insert, open_database

IDENTITIES = {
    "uid": "caption and URL (uid)",
    "sha256": "bytes as fetched (sha256)",
    "url": "URL",
    "stored": "bytes as stored (size and crc32)",
}
"""What a sample is the same by; a dataset lacks some of them."""
_SCHEMA = pa.schema([*((name, pa.string()) for name in IDENTITIES), ("caption", pa.string())])
MEMORY_BYTES = 1 << 30


def overlaps(sides: tuple[Side, Side], num_only: int) -> dict[str, Any]:
    """Return how many different samples each side has and both share, by each identity, and some that one has alone."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-compare-") as folder,
        open_database(folder, Limits(memory_bytes=MEMORY_BYTES)) as connection,
    ):
        for name, side in zip("ab", sides, strict=True):
            insert(connection, name, _SCHEMA.empty_table())
            for table in _identities(side):
                insert(connection, name, table)
        shared = {name: _shared(connection, name) for name in IDENTITIES}
        best = next((name for name in IDENTITIES if shared[name]["a"] and shared[name]["b"]), None)
        if best is None:
            return {"by": shared, "alone_by": None, "only": {"a": [], "b": []}}
        only = {one: _only(connection, best, one, other, num_only) for one, other in ("ab", "ba")}
    return {"by": shared, "alone_by": best, "only": only}


def _identities(side: Side) -> Iterator[pa.Table]:
    for table in side.tables():
        names = table.column_names
        found: dict[str, Any] = {
            name: table[name].cast(pa.string()) if name in names else pa.nulls(table.num_rows, pa.string())
            for name in ("uid", "sha256", "url", "caption")
        }
        found["stored"] = pa.nulls(table.num_rows, pa.string())
        if "crc32" in names and not table["crc32"].null_count:
            pairs = zip(table["size"].to_pylist(), table["crc32"].to_pylist(), strict=True)
            found["stored"] = pa.array([f"{size} {crc:08x}" for size, crc in pairs], pa.string())
        yield pa.table(found).select(_SCHEMA.names).cast(_SCHEMA)


def _shared(connection: duckdb.DuckDBPyConnection, name: str) -> Mapping[str, int]:
    """Return the different values of each side, those of both, and the samples of each without one."""
    row = connection.execute(
        f"""
        WITH a1 AS (SELECT DISTINCT {name} AS x FROM a WHERE {name} IS NOT NULL),
             b1 AS (SELECT DISTINCT {name} AS x FROM b WHERE {name} IS NOT NULL)
        SELECT (SELECT count(*) FROM a1), (SELECT count(*) FROM b1), (SELECT count(*) FROM a1 JOIN b1 USING (x)),
            (SELECT count(*) FROM a WHERE {name} IS NULL), (SELECT count(*) FROM b WHERE {name} IS NULL)
        """
    ).fetchall()[0]
    return dict(zip(("a", "b", "both", "unknown_a", "unknown_b"), map(int, row), strict=True))


def _only(
    connection: duckdb.DuckDBPyConnection, name: str, one: str, other: str, count: int
) -> list[dict[str, str | None]]:
    rows = connection.execute(
        f"""
        SELECT uid, caption, url FROM {one} WHERE {name} IS NOT NULL
        AND {name} NOT IN (SELECT {name} FROM {other} WHERE {name} IS NOT NULL)
        ORDER BY md5({name}), uid, url, caption LIMIT {int(count)}
        """
    ).fetchall()
    return [dict(zip(("uid", "caption", "url"), row, strict=True)) for row in rows]

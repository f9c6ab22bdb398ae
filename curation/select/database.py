"""The database of one run: a DuckDB file in a work folder, locked down before any text of a recipe reaches it.

Tables enter as Arrow or as parquet of the work folder and leave as Arrow; the engine can open nothing else. DuckDB
returns rows in any order, so whatever is written must come from a query that ends in a total ORDER BY.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import atomic, urlpath
from headrace.curation.select.expression import first_line, text_literal

log = logging.getLogger(__name__)

WORK_FOLDER = ".work"
READ_ROWS = 100_000

_PATTERN = re.compile(r"[?*\[\]{}]")

# What DuckDB raises where memory, disk or a file fails; every other error of it is ours.
_MACHINE_ERRORS = (
    duckdb.OutOfMemoryException,
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.FatalException,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the database may use. Memory and threads never change the result."""

    memory_bytes: int = 4 << 30
    """Memory of the database; beyond it, it spills to a folder beside the ledger."""
    threads: int = 0
    """Threads of the database; 0: one for each CPU this process may use."""
    max_bucket: int = 2000
    """Comparisons that one member of a near-duplicate bucket may cost. Larger buckets are linked as stars, which may
    miss a pair: the summary's `largest_bucket` says whether there was one."""

    def __post_init__(self) -> None:
        if self.memory_bytes < 64 << 20:
            raise ValueError(f"memory_bytes must be at least {64 << 20} (64 MiB), got {self.memory_bytes}")
        if self.threads < 0 or self.max_bucket < 2:
            raise ValueError(
                f"threads must be 0 or more and max_bucket 2 or more, got {self.threads}, {self.max_bucket}"
            )


@contextlib.contextmanager
def open_database(ledger_url: str, limits: Limits) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to an empty database in a work folder, which is removed at the end.

    The folder lies beside the ledger (in the system's temporary folder if the job is remote, or if its path is one
    that DuckDB cannot open). Raises ValueError if the memory is too small, OSError if the disk is.
    """
    beside = urlpath.local_path(urlpath.join(ledger_url, WORK_FOLDER)) if urlpath.is_local(ledger_url) else None
    if beside is not None and not _PATTERN.search(str(beside)):
        folder = beside
        folder.mkdir(parents=True)
    else:
        # DuckDB takes what follows a `?` for the query of a URL, in local paths and behind links too, and other
        # letters for a pattern of names.
        folder = Path(tempfile.mkdtemp(prefix="headrace-select-"))
        log.info("%s: the work folder of select is %s", ledger_url, folder)
    try:
        connection = _connect(folder, limits)
        try:
            yield connection
        finally:
            connection.close()
    except _MACHINE_ERRORS as error:
        raise _explained(error, folder, limits) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _explained(error: duckdb.Error, folder: Path, limits: Limits) -> Exception:
    line = first_line(error)
    # A full disk has many names: of a write, of a commit, of the memory that could not be spilled.
    if os.strerror(errno.ENOSPC) in str(error):
        return OSError(errno.ENOSPC, f"no space left for the work of select ({line})", str(folder))
    if isinstance(error, duckdb.OutOfMemoryException):
        needs = f"select needs more than limits.memory_bytes, {limits.memory_bytes}, or more room to spill in {folder}"
        return ValueError(f"{needs}: {line}")
    return OSError(f"select cannot use its work folder {folder}: {line}")


def remove_leftovers(ledger_url: str) -> None:
    """Remove what a killed run left beside the ledger."""
    atomic.remove_leftovers(ledger_url)
    if urlpath.is_local(ledger_url):
        shutil.rmtree(urlpath.local_path(urlpath.join(ledger_url, WORK_FOLDER)), ignore_errors=True)


def _connect(folder: Path, limits: Limits) -> duckdb.DuckDBPyConnection:
    config = {
        "threads": str(limits.threads or len(os.sched_getaffinity(0))),
        "memory_limit": f"{limits.memory_bytes // 1024}KiB",
        "temp_directory": str(folder / "spill"),
    }
    connection = duckdb.connect(str(folder / "select.duckdb"), config=_CLOSED | config)
    # The parts of the rows, and what it spills: nothing else can be opened.
    connection.execute(f"SET allowed_directories = [{text_literal(f'{folder}/')}]")
    if _knows(connection, _CHANGEABLE):
        connection.execute(f"SET {_CHANGEABLE} = ['memory_limit']")  # no expression of a recipe can, see Checker
    _lock_down(connection)
    return connection


@contextlib.contextmanager
def held_down(connection: duckdb.DuckDBPyConnection, limits: Limits, memory_bytes: int) -> Iterator[None]:
    """Let the database hold no more than `memory_bytes` inside: others are at work, and it is not.

    DuckDB before 2.0 has no setting that a locked configuration lets change: there it keeps what it holds.
    """
    if not _knows(connection, _CHANGEABLE):
        yield
        return
    connection.execute(f"SET memory_limit = '{memory_bytes // 1024}KiB'")
    try:
        yield
    finally:
        connection.execute(f"SET memory_limit = '{limits.memory_bytes // 1024}KiB'")


_CHANGEABLE = "allowed_configs"
"""The setting that names what may be changed even so."""


def _knows(connection: duckdb.DuckDBPyConnection, setting: str) -> bool:
    return bool(connection.execute("SELECT 1 FROM duckdb_settings() WHERE name = ?", [setting]).fetchall())


_CLOSED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    # Order comes from ORDER BY alone; keeping the order of insertion would cost memory.
    "preserve_insertion_order": "false",
}


def _lock_down(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


@contextlib.contextmanager
def open_memory(limits: Limits, spill: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to an empty database in memory, of one thread: for one part of the rows.

    What does not fit goes to the folder `spill`, which is removed at the end. What the database cannot do is told by
    the driver's, whose limits the user knows.
    """
    config = {"threads": "1", "memory_limit": f"{limits.memory_bytes // 1024}KiB"}
    try:
        with duckdb.connect(config=_CLOSED | config | {"temp_directory": str(spill or "")}) as connection:
            _lock_down(connection)
            yield connection
    finally:
        if spill is not None:
            shutil.rmtree(spill, ignore_errors=True)


def work_folder(connection: duckdb.DuckDBPyConnection) -> Path:
    """Return the work folder that a connection's database lies in."""
    query = "SELECT path FROM duckdb_databases() WHERE database_name = current_database()"
    return Path(connection.execute(query).fetchall()[0][0]).parent


def shares_folder(connection: duckdb.DuckDBPyConnection, ledger_url: str) -> bool:
    """Return whether the work folder lies beside the ledger, where all that share the job can read it."""
    return urlpath.is_local(ledger_url) and work_folder(connection).is_relative_to(urlpath.local_path(ledger_url))


def insert(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Append an Arrow table to a table of the database, which is created if it is not there."""
    connection.register("arrow_rows", table)
    try:
        exists = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [name]).fetchall()
        if exists:
            connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM arrow_rows")
        else:
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow_rows")
    finally:
        connection.unregister("arrow_rows")


def read_batches(connection: duckdb.DuckDBPyConnection, query: str, rows: int = READ_ROWS) -> Iterator[pa.Table]:
    """Yield the result as tables of exactly `rows` rows, the last one shorter, whatever batches the engine makes."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    # A cursor of its own, so that the caller may run other queries between two tables.
    with connection.cursor() as cursor:
        reader = cursor.sql(query).to_arrow_reader(rows)
        for batch in reader:
            waiting.append(batch)
            num_waiting += batch.num_rows
            while num_waiting >= rows:
                table = pa.Table.from_batches(waiting, reader.schema)
                yield table.slice(0, rows).combine_chunks()
                waiting = table.slice(rows).to_batches()
                num_waiting -= rows
        if num_waiting:
            yield pa.Table.from_batches(waiting, reader.schema).combine_chunks()


def show_parquet(connection: duckdb.DuckDBPyConnection, name: str, paths: Sequence[Path]) -> None:
    """Create a view of the rows of parquet files in the work folder, which have the same columns."""
    listed = ", ".join(text_literal(str(path)) for path in paths)
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{listed}])")


def take_parquet(connection: duckdb.DuckDBPyConnection, name: str, paths: Sequence[Path]) -> None:
    """Create a table of the rows of parquet files in the work folder, which have the same columns, and remove them."""
    show_parquet(connection, "taken", paths)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM taken")
    connection.execute("DROP VIEW taken")
    for path in paths:
        path.unlink()


def column_of(connection: duckdb.DuckDBPyConnection, query: str, kind: type[np.generic]) -> NDArray[Any]:
    """Return the one column that a query gives; it may hold no null."""
    with connection.cursor() as cursor:
        batches = cursor.sql(query).to_arrow_reader(READ_ROWS)
        pieces = [batch.column(0).to_numpy(zero_copy_only=False).astype(kind, copy=False) for batch in batches]
    return np.concatenate([np.zeros(0, kind), *pieces])


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Return the one integer that a query gives."""
    return int(connection.execute(query).fetchall()[0][0])

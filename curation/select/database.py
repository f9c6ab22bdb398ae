"""The database of one run: a DuckDB file in a work folder, locked down before any text of a recipe reaches it.

Tables enter as Arrow and leave as Arrow; the engine itself can open no file and no network. DuckDB returns rows in any
order, so whatever is written must come from a query that ends in a total ORDER BY.
"""

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from headrace import files
from headrace.curation.select.expression import first_line

log = logging.getLogger(__name__)

WORK_FOLDER = ".work"
READ_ROWS = 100_000

# What DuckDB raises where memory, disk or a file fails; every other error of it is ours.
_MACHINE_ERRORS = (
    duckdb.OutOfMemoryException,
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.FatalException,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the database may use. Never changes the result."""

    memory_bytes: int = 4 << 30
    """Memory of the database; beyond it, it spills to a folder beside the ledger."""
    threads: int = 0
    """Threads of the database; 0: one for each CPU this process may use."""
    max_bucket: int = 2000
    """Comparisons that one member of a near-duplicate bucket may cost; larger buckets are linked as stars."""

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
    beside = files.local_path(files.join(ledger_url, WORK_FOLDER)) if files.is_local(ledger_url) else None
    if beside is not None and "?" not in str(beside):
        folder = beside
        folder.mkdir(parents=True)
    else:
        # DuckDB takes what follows a `?` for the query of a URL, in local paths and behind links too.
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
    files.remove_leftovers(ledger_url)
    if files.is_local(ledger_url):
        shutil.rmtree(files.local_path(files.join(ledger_url, WORK_FOLDER)), ignore_errors=True)


def _connect(folder: Path, limits: Limits) -> duckdb.DuckDBPyConnection:
    config = {
        "threads": str(limits.threads or len(os.sched_getaffinity(0))),
        "memory_limit": f"{limits.memory_bytes // 1024}KiB",
        "temp_directory": str(folder / "spill"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",
        # Order comes from ORDER BY alone; keeping the order of insertion would cost memory.
        "preserve_insertion_order": "false",
    }
    connection = duckdb.connect(str(folder / "select.duckdb"), config=config)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


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


def count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    """Return the one integer that a query gives."""
    return int(connection.execute(query).fetchall()[0][0])

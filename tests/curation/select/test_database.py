"""Promises of the database of select: whatever of the machine fails is one line with the folder, and leaves nothing."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from headrace.atomic import is_full_disk
from headrace.curation.select.database import WORK_FOLDER, Limits, open_database

# A disk that takes no more: a limit on the size of a file is the same to DuckDB.
PROGRAM = """
import resource, sys
import numpy as np, pyarrow as pa
from headrace.curation.select.database import Limits, insert, open_database
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
rows = np.random.default_rng(0).integers(0, 256, (20000, 40), np.uint8)
table = pa.table({"text": [bytes(row).hex() for row in rows]})
try:
    with open_database(sys.argv[1], Limits(threads=1)) as connection:
        for _ in range(5):
            insert(connection, "rows", table)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("num_bytes", [0, 5_000, 300_000, 3_000_000])
def test_a_database_that_cannot_be_written_is_an_error_of_the_machine(tmp_path: Path, num_bytes: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "ledger"), str(num_bytes)]
    (line,) = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert line.startswith(f"OSError: select cannot use its work folder {tmp_path / 'ledger' / WORK_FOLDER}: ")
    assert list((tmp_path / "ledger").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        duckdb.TransactionException("TransactionContext Error: Failed to commit: x.wal: No space left on device"),
        duckdb.IOException("IO Error: Could not write file x: No space left on device"),
        duckdb.OutOfMemoryException("Out of Memory Error: failed to offload data block: No space left on device"),
        duckdb.FatalException("FATAL Error: Failed to write WAL: No space left on device"),
    ],
)
def test_a_full_disk_is_one_error_whatever_the_database_calls_it(tmp_path: Path, error: duckdb.Error) -> None:
    folder = tmp_path / "ledger" / WORK_FOLDER
    with pytest.raises(OSError, match=f"no space left for the work of select .*: '{folder}'") as caught:  # noqa: SIM117
        with open_database(str(tmp_path / "ledger"), Limits(threads=1)):
            raise error
    assert is_full_disk(caught.value)
    assert not folder.exists()

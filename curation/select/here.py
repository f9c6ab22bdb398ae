"""What a step sees, part by part: for units of work that read the rows left of a part in a process of their own.

The driver's database shows the same rows whole, as `here`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.select.database import count, insert, read_batches, work_folder
from headrace.curation.select.expression import quoted
from headrace.curation.select.load import caption_columns
from headrace.shards.parquet import read_table, write_parquet


@dataclass(frozen=True, slots=True)
class HerePart:
    """The rows of one part that a step sees."""

    number: int
    file: Path
    """What is stored of the part: `__row`, in order, and columns."""
    first: int
    """`__row` of its first row."""
    size: int
    """Rows that are numbered there, of which some are not stored."""
    left: bytes
    """Packed bits: which of them are left."""
    columns: tuple[str, ...]
    patches: Path | None
    """Columns of rows that took the caption of another, in the order of `__row`; None: no row has other ones."""

    def show(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Create `here` in a database of its own."""
        stored = read_table(str(self.file), ["__row", *self.columns])
        left = np.unpackbits(np.frombuffer(self.left, np.uint8), count=self.size).astype(bool)
        stored = stored.filter(pa.array(left[stored["__row"].to_numpy() - self.first]))
        insert(connection, "stored", stored)
        shown = "SELECT * FROM stored"
        if self.patches is not None:
            patches = read_table(str(self.patches))
            start, stop = np.searchsorted(patches["__row"].to_numpy(), [self.first, self.first + self.size])
            insert(connection, "patches", patches.slice(start, stop - start))
            shown = patched([name for name in self.columns if name in patches.column_names])
        connection.execute(f"CREATE VIEW here AS {shown}")


@dataclass(frozen=True, slots=True)
class PartedHere:
    """What a step sees, cut into parts."""

    firsts: Sequence[int]
    """`__row` of the first row of each part, and the number of all rows."""
    files: Sequence[Path]
    """What is stored of each part."""
    left: NDArray[np.bool_]
    """Of each row, whether it is left."""
    columns: tuple[str, ...]

    def parts(self, connection: duckdb.DuckDBPyConnection) -> list[HerePart]:
        """Return the parts; `connection`: the driver's, which knows who took whose caption."""
        patches = self._write_patches(connection)
        return [
            HerePart(
                number=number,
                file=file,
                first=first,
                size=stop - first,
                left=np.packbits(self.left[first:stop]).tobytes(),
                columns=self.columns,
                patches=patches,
            )
            for number, (file, first, stop) in enumerate(zip(self.files, self.firsts, self.firsts[1:], strict=False))
        ]

    def _write_patches(self, connection: duckdb.DuckDBPyConnection) -> Path | None:
        changed = [name for name in self.columns if name in caption_columns()]
        if not changed or not count(connection, "SELECT count(*) FROM captions"):
            return None
        query = f"SELECT __row, {', '.join(map(quoted, changed))} FROM patches ORDER BY __row"
        path = work_folder(connection) / "patches.parquet"
        write_parquet(str(path), pa.concat_tables(read_batches(connection, query)))
        return path


def patched(changed: Sequence[str]) -> str:
    """Return the query for `stored` with the columns of `patches` where a row has some."""
    shown = ", ".join(
        f"CASE WHEN patches.__row IS NULL THEN stored.{name} ELSE patches.{name} END AS {name}"
        for name in map(quoted, changed)
    )
    return f"SELECT stored.* REPLACE ({shown}) FROM stored LEFT JOIN patches ON patches.__row = stored.__row"

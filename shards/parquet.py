"""Parquet of all floors: one writer with fixed options, and readers that leave no Python object to Arrow's threads.

Written: equal tables give equal bytes, for one version of pyarrow.

Read: a thread of Arrow lets go of the file it read from a little after the caller has the result. If that is a Python
object and the interpreter is ending by then, the process aborts with "terminate called without an active exception"
(apache/arrow#34314): one `headrace stream` in six, on a busy machine, after all its work was done. So bytes are copied
into Arrow's own memory, local files are opened by Arrow itself, and any other file is read by the calling thread alone.
Nothing else in headrace opens or writes a parquet file; ruff's TID251 keeps it so.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace import atomic, files, urlpath

WHOLE_BYTES = 16 << 20
"""A remote file up to this size is one request instead of one a column."""
BUFFER_BYTES = 1 << 20
"""For `buffer_bytes` where a file may be one row group whose columns must not be held whole."""
GROUP_ROWS = 1 << 16
"""Rows of a row group, where the caller does not cut."""


class ParquetReader:
    """One parquet file; `url` is only for messages. Damage raises ValueError, from any method."""

    def __init__(self, source: bytes | BinaryIO | pa.NativeFile, url: str, *, buffer_bytes: int = 0) -> None:
        """`buffer_bytes` bounds what is read of a column chunk at once; 0 = whole chunks."""
        self._url = url
        self._threads = isinstance(source, bytes | pa.NativeFile)
        native = pa.BufferReader(_own_memory(source)) if isinstance(source, bytes) else source
        with self._naming_damage():
            # Without pre_buffer, which reads in Arrow's I/O threads and keeps what it read as long as the file is open.
            self._file = pq.ParquetFile(native, buffer_size=buffer_bytes, pre_buffer=False)  # noqa: TID251

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._file.schema_arrow

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return int(self._file.metadata.num_rows)

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def bounds(self, group: int, column: str) -> tuple[Any, Any] | None:
        """Return (least, greatest) value of a flat column in a row group; None where the file does not tell."""
        row_group = self._file.metadata.row_group(group)
        leaves = [row_group.column(number) for number in range(row_group.num_columns)]
        statistics = next((leaf.statistics for leaf in leaves if leaf.path_in_schema == column), None)
        if statistics is None or not statistics.has_min_max:
            return None
        return statistics.min, statistics.max

    def read(self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None) -> pa.Table:
        """Return the table, or some columns or row groups of it."""
        wanted = None if columns is None else list(columns)
        with self._naming_damage():
            if groups is None:
                return self._file.read(columns=wanted, use_threads=self._threads)
            return self._file.read_row_groups(list(groups), columns=wanted, use_threads=self._threads)

    def batches(
        self, num_rows: int, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of up to `num_rows` rows, without ever holding the whole file."""
        names = None if columns is None else list(columns)
        chosen = None if groups is None else list(groups)
        with self._naming_damage():
            batches = iter(self._file.iter_batches(num_rows, chosen, names, use_threads=self._threads))
        while True:
            with self._naming_damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowException as error:
            raise ValueError(f"{self._url}: not a parquet file: {error}") from error
        except ValueError as error:  # of the file that is read; fsspec does not name it
            raise ValueError(f"{self._url}: {error}") from error
        except OSError as error:
            # What Arrow says of a broken page has no errno; a fault of the disk or the network has, or a class.
            if type(error) is not OSError or error.errno is not None:
                raise
            raise ValueError(f"{self._url}: damaged parquet: {error}") from error


@contextlib.contextmanager
def open_parquet(url: str, *, buffer_bytes: int = 0) -> Iterator[ParquetReader]:
    """Open a parquet file at any fsspec URL. Raises FileNotFoundError, and ValueError if it is not one.

    `buffer_bytes` is ParquetReader's.
    """
    if urlpath.is_local(url):
        with pa.OSFile(str(urlpath.local_path(url)), "rb") as file:
            yield ParquetReader(file, url, buffer_bytes=buffer_bytes)
        return
    with files.opened(url) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        # Blocks are kept, as reads jump between the columns of a row group: one stretch alone read 130 MB of 59.
        whole = stream.read() if size <= WHOLE_BYTES else None
        yield ParquetReader(stream if whole is None else whole, url, buffer_bytes=0 if whole else buffer_bytes)


def read_table(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a whole parquet file. Raises as `open_parquet` does."""
    with open_parquet(url) as file:
        return file.read(columns)


def read_equal(url: str, equal: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows whose columns have the values of `equal`; row groups that cannot hold one are not read."""
    with open_parquet(url) as file:
        groups = [
            group
            for group in range(len(file.group_rows))
            if all(_may_hold(file.bounds(group, name), value) for name, value in equal.items())
        ]
        wanted = list(file.schema.names if columns is None else columns)
        table = file.read([*wanted, *(name for name in equal if name not in wanted)], groups=groups)
    for name, value in equal.items():
        table = table.filter(pc.equal(table[name], value))
    return table.select(wanted)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return `table` as a parquet file."""
    sink = io.BytesIO()
    _write(sink, table.schema, [table], GROUP_ROWS)
    return sink.getvalue()


def write_parquet(url: str, table: pa.Table, *, group_rows: int = GROUP_ROWS) -> None:
    """Write `table` to any fsspec URL, at once."""
    with atomic.atomic_file(url) as path:
        _write(path, table.schema, [table], group_rows)


def write_groups(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write `tables` to a local file as they come, each cast to `schema` and one row group: one is held at a time."""
    _write(path, schema, (table.cast(schema) for table in tables), None)


def _write(target: Path | BinaryIO, schema: pa.Schema, tables: Iterable[pa.Table], group_rows: int | None) -> None:
    # The bounds of floats leave out NaN, but DuckDB takes them to hold it: there, no NaN would be found in the file.
    bounded = [field.name for field in schema if not pa.types.is_floating(field.type)]
    options = {"compression": "zstd", "version": "2.6", "write_statistics": bounded}
    with pq.ParquetWriter(target, schema, **options) as writer:  # noqa: TID251
        for table in tables:
            # How a table is cut into chunks would show in its pages.
            writer.write_table(table.combine_chunks(), row_group_size=group_rows or max(1, table.num_rows))


def _may_hold(bounds: tuple[Any, Any] | None, value: Any) -> bool:
    return bounds is None or bounds[0] <= value <= bounds[1]


def _own_memory(data: bytes) -> pa.Buffer:
    """Return a copy that belongs to Arrow: `pa.py_buffer` would keep the Python object, and threads with it."""
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    return buffer

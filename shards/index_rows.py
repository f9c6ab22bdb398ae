"""The rows of an index as a stream wants them: a few rows of one shard, without parsing the rest.

A parquet index is one compressed piece: for 64 samples all 10,000 rows are read, decompressed and hashed. Here rows lie
in blocks of 256, each an Arrow record batch with a crc32 of its own, so that a chunk costs two small reads. Nothing is
memory-mapped: of a mapped file that another host removes or cuts, the next touch ends the process with SIGBUS.

    magic, header bytes and crc32 (uint32 each), header (JSON), blocks
"""

import base64
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.shards.columns import with_own_values

MAGIC = b"headrace index\x01\n"
BLOCK_ROWS = 256
ROW_COLUMNS = ("key", "offset", "size", "crc32", "width", "height", "orientation")
"""What every file has; more columns as they were asked for."""

_HEAD = struct.Struct(f"<{len(MAGIC)}sII")
_FIRST_BYTES = 8192
"""The header of a shard of 10,000 samples fits."""
_MAX_HEADER_BYTES = 64 << 20

IntArray = NDArray[np.int64]
ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> bytes, fewer where the file ends."""


class DamagedRowsError(ValueError):
    """Bytes that are no rows of this index: it is read again, and the rows are made anew."""


@dataclass(frozen=True, slots=True)
class IndexRows:
    """The opened rows of one index."""

    digest: str
    """sha256 of the parquet index that they are of."""
    num_rows: int
    index_columns: tuple[str, ...]
    """All columns that the parquet index has."""
    schema: pa.Schema
    """The columns that are here."""
    offsets: IntArray
    """[blocks + 1] where each block begins and the last one ends."""
    crcs: NDArray[np.uint32]
    read_at: ReadAt
    held_bytes: int
    """Memory that this object keeps."""

    def lacks(self, columns: Sequence[str]) -> list[str]:
        """Return which of `columns` the parquet index has and these rows have not."""
        return [name for name in columns if name not in self.schema.names and name in self.index_columns]

    def take(self, numbers: IntArray) -> pa.Table:
        """Return rows by number, in that order, as a copy. Raises DamagedRowsError, OSError."""
        blocks, inside = np.divmod(numbers, BLOCK_ROWS)
        wanted, place = np.unique(blocks, return_inverse=True)
        batches = [self._block(block) for block in wanted.tolist()]
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        if numbers.size and int((inside - [batches[at].num_rows for at in place.tolist()]).max()) >= 0:
            raise DamagedRowsError(f"a block has fewer rows than {BLOCK_ROWS}")
        places = np.ascontiguousarray(starts[place] + inside, np.int64)
        # `pa.array` imports pandas.
        chosen = pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places)])
        return pa.Table.from_batches(batches, self.schema).take(chosen)

    def _block(self, number: int) -> pa.RecordBatch:
        start, size = int(self.offsets[number]), int(self.offsets[number + 1] - self.offsets[number])
        data = self.read_at(start, size)
        if len(data) != size or zlib.crc32(data) != self.crcs[number]:
            raise DamagedRowsError(f"block {number} at byte {start} does not fit its checksum")
        try:
            return pa.ipc.read_record_batch(pa.py_buffer(data), self.schema)
        except (pa.ArrowException, OSError) as error:
            raise DamagedRowsError(f"block {number} at byte {start}: {error}") from error


def encode_rows(table: pa.Table, digest: str, index_columns: Sequence[str]) -> bytes:
    """Return the file of `table`, some columns of the index whose sha256 is `digest`."""
    # The words of a categorical are no part of a record batch: a block could not be read by itself. Views have no take.
    plain = pa.schema([field.with_type(with_own_values(field.type)) for field in table.schema])
    flat = (table if plain.equals(table.schema) else table.cast(plain)).replace_schema_metadata(None).combine_chunks()
    blocks = []
    for start in range(0, flat.num_rows, BLOCK_ROWS):
        (batch,) = flat.slice(start, BLOCK_ROWS).to_batches()
        blocks.append(batch.serialize().to_pybytes())
    header = json.dumps(
        {
            "index": digest,
            "num_rows": flat.num_rows,
            "index_columns": list(index_columns),
            "schema": base64.b64encode(flat.schema.serialize()).decode(),
            "blocks": [[len(block), zlib.crc32(block)] for block in blocks],
        }
    ).encode()
    return b"".join([_HEAD.pack(MAGIC, len(header), zlib.crc32(header)), header, *blocks])


def open_rows(read_at: ReadAt, digest: str, *, held_bytes: int = 0) -> IndexRows:
    """Open what `encode_rows` made. Raises DamagedRowsError if it is not that, or of another index; OSError."""
    first = read_at(0, _FIRST_BYTES)
    if len(first) < _HEAD.size:
        raise DamagedRowsError(f"{len(first)} bytes")
    magic, size, crc = _HEAD.unpack_from(first)
    if magic != MAGIC or size > _MAX_HEADER_BYTES:
        raise DamagedRowsError("not written by this version of headrace")
    header = first[_HEAD.size : _HEAD.size + size]
    if len(header) < size:
        header += read_at(len(first), size - len(header))
    if len(header) != size or zlib.crc32(header) != crc:
        raise DamagedRowsError("its header does not fit its checksum")
    try:
        rows = _parse(json.loads(header), _HEAD.size + size, read_at, held_bytes)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise DamagedRowsError(f"its header is not understood: {error!r}") from error
    if rows.digest != digest:
        raise DamagedRowsError(f"it is of the index {rows.digest}")
    return rows


def rows_in_memory(data: bytes, digest: str) -> IndexRows:
    """Open a file that is held in memory."""
    view = memoryview(data)
    return open_rows(lambda offset, size: bytes(view[offset : offset + size]), digest, held_bytes=len(data))


def rows_of_file(path: Path, digest: str) -> IndexRows:
    """Open a file on disk, which is opened anew for each read and never kept open. Raises also FileNotFoundError."""

    def read_at(offset: int, size: int) -> bytes:
        handle = os.open(path, os.O_RDONLY)
        try:
            return os.pread(handle, size, offset)
        finally:
            os.close(handle)

    return open_rows(read_at, digest)


def _parse(header: dict[str, Any], start: int, read_at: ReadAt, held_bytes: int) -> IndexRows:
    sizes, crcs = zip(*header["blocks"], strict=True) if header["blocks"] else ((), ())
    if len(sizes) != -(-header["num_rows"] // BLOCK_ROWS):
        raise ValueError(f"{len(sizes)} blocks for {header['num_rows']} rows")
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(header["schema"])))
    return IndexRows(
        digest=header["index"],
        num_rows=header["num_rows"],
        index_columns=tuple(header["index_columns"]),
        schema=schema,
        offsets=start + np.cumsum([0, *sizes], dtype=np.int64),
        crcs=np.array(crcs, np.uint32),
        read_at=read_at,
        held_bytes=held_bytes + start + 16 * len(crcs),
    )

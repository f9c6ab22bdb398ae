"""One safetensors file, written in one pass with a digest of every block.

Digests are of blocks of 1 MiB, so that a process which needs a part of a file reads and checks that part alone. A file
may hold rows of a tensor that has more: its metadata says which. Source: the safetensors format,
https://huggingface.co/docs/safetensors.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headrace.train.runs.tensors import numbered

BLOCK_BYTES = 1 << 20
# Of each block's sha256: 16 bytes tell damage as well as 32, in half of the room.
DIGEST_BYTES = 16
ROWS_KEY = "headrace_rows"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Rows(NamedTuple):
    """What a file holds of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the rows that are here."""
    first: int = 0
    """Number of the first of them."""
    total: int | None = None
    """Rows of the whole tensor; None = all of them are here."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are here."""
        return math.prod(self.shape) * self.dtype.itemsize


class Facts(NamedTuple):
    """What a file must be when it is read again."""

    num_bytes: int
    digests: bytes | None
    """Of all blocks, one after the other; None = the file was checked as a whole."""


def ordered(rows: Mapping[str, Rows]) -> list[str]:
    """Return the names in the order of their bytes: wide numbers first, so that each stands at a multiple of itself."""
    return sorted(rows, key=lambda name: (-rows[name].dtype.itemsize, name))


def write_tensor_file(path: Path, rows: Mapping[str, Rows], body: Iterable[memoryview]) -> Facts:
    """Write the header and then `body`, the bytes of all tensors as `ordered`; return what the file must be.

    All of it is on the disk when this returns. Raises OSError naming the file.
    """
    try:
        with path.open("wb", buffering=0) as file:
            digester = _BlockDigester()
            for view in chain([memoryview(_header(rows))], body):
                for taken in digester.blocks(view):
                    rest = taken
                    while len(rest):
                        rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except OSError as error:
        raise numbered(OSError(f"{path}: cannot be written: {error.strerror or error}"), error.errno) from error
    return digester.facts()


class _BlockDigester:
    """Digests a stream of bytes, block by block, on its way to the disk."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._running, self._room, self._size = hashlib.sha256(), BLOCK_BYTES, 0

    def blocks(self, view: memoryview) -> Iterable[memoryview]:
        """Yield `view` in parts that lie in one block each."""
        while len(view):
            taken, view = view[: self._room], view[self._room :]
            self._running.update(taken)
            self._room -= len(taken)
            self._size += len(taken)
            if not self._room:
                self._end_block()
            yield taken

    def facts(self) -> Facts:
        if self._room < BLOCK_BYTES:
            self._end_block()
        return Facts(self._size, bytes(self._digests))

    def _end_block(self) -> None:
        self._digests += self._running.digest()[:DIGEST_BYTES]
        self._running, self._room = hashlib.sha256(), BLOCK_BYTES


def _header(rows: Mapping[str, Rows]) -> bytes:
    header: dict[str, Any] = {}
    partial = {name: [rows[name].first, rows[name].total] for name in ordered(rows) if rows[name].total is not None}
    if partial:
        header["__metadata__"] = {ROWS_KEY: json.dumps(partial, separators=(",", ":"))}
    begin = 0
    for name in ordered(rows):
        one = rows[name]
        end = begin + one.num_bytes
        header[name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    return struct.pack("<Q", len(text)) + text

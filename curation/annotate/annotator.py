"""What an annotator is: columns, settings, and a function from a batch of images to values of those columns.

An annotator is a pure function of a batch: it sees no file names, no other row and no clock. The one thing a reader
would get wrong: constructing one loads nothing, so select and build can ask for its digest on a machine without
torch or a GPU; models are loaded by the first `annotate` in a process.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace import files
from headrace.config import canonical_json
from headrace.shards.images.header import ImageHeader

Pixels = NDArray[np.uint8]
Columns = dict[str, list[Any]]

READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive rows of one raw shard; every list has one item a row."""

    keys: list[str]
    captions: list[str | None]
    sha256: list[str | None]
    """Of the bytes as fetched (a fetch that resized stored others)."""
    headers: list[ImageHeader | None]
    images: list[Pixels | None]
    """uint8 [H, W, 3], upright; None where `errors` says why, and everywhere if no annotator needs pixels."""
    errors: list[str | None]
    """`class: message` of the images that do not decode."""


class Annotator(Protocol):
    """One row in, one row of columns out. `annotate` must give null wherever it needs pixels and there are none."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the same input and settings would give other values."""
    columns: ClassVar[pa.Schema]
    """The columns after `key`."""
    needs_pixels: ClassVar[bool]

    def settings(self) -> dict[str, Any]:
        """Return everything but files that changes the values, as plain data."""
        ...

    def files(self) -> dict[str, str]:
        """Return role -> URL of each model file. Their content counts, not their place."""
        ...

    def annotate(self, batch: Batch) -> Columns:
        """Return a list for each column. Raises ValueError if a model cannot be loaded, naming its file."""
        ...


def identity(annotator: Annotator) -> dict[str, Any]:
    """Return what the digest is taken of: name, version, settings, sha256 of each model file."""
    return {
        "name": annotator.name,
        "version": annotator.version,
        "settings": annotator.settings(),
        "files": {role: file_sha256(url) for role, url in sorted(annotator.files().items())},
    }


def digest(annotator: Annotator) -> str:
    """Return the hex digest of version, settings and model files: rows of one digest are comparable."""
    return hashlib.sha256(canonical_json(identity(annotator)).encode()).hexdigest()


def file_sha256(url: str) -> str:
    """Return the hex sha256 of a file; computed again only when its size or time changed. Raises ValueError."""
    try:
        fs, path = files.open_fs(url)
        info = fs.info(path)
        if info["type"] != "file":
            raise ValueError(f"model file {url} is a folder; give the file")
        stamp = str(info.get("mtime", info.get("ETag", info.get("LastModified", ""))))
        return _file_sha256(url, int(info["size"] or 0), stamp)
    except OSError as error:
        raise ValueError(f"model file {url} cannot be read ({type(error).__name__}); check the path") from error


@cache
def _file_sha256(url: str, _size: int, _stamp: str) -> str:
    fs, path = files.open_fs(url)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()

"""What has come of a raw shard that is not finished: outcomes and images, appended to one file as they come.

A killed process loses what was in flight, no more: what is appended is in the kernel's hands. Opened again, the file is
read up to its first record that is torn or damaged; the rest is cut. A spool of other rows, or of settings that would
give another result, begins anew. The order is that of arrival, so nothing of it may reach the raw shard but by row.

A record: its sizes and check sum, JSON, the image as stored. The image has no sum but its sha256 in the JSON, which is
compared when the file is opened again.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
import tempfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from headrace import atomic, urlpath
from headrace.config import canonical_json, config_to_dict
from headrace.curation.blocklist import blocklist_stamps
from headrace.curation.fetch.config import RESIZING, FetchConfig
from headrace.curation.raw.write import Outcome
from headrace.shards.images.header import ImageHeader

log = logging.getLogger(__name__)

FORMAT = 1
BOARD = "hosts"
"""Name of the file beside the spools by which processes tell each other of hosts."""
MAX_JSON_BYTES = 16 << 20

PACE = (
    "concurrency",
    "per_host",
    "retries",
    "backoff_seconds",
    "connect_seconds",
    "attempt_seconds",
    "deadline_seconds",
    "min_bytes_per_second",
    "slow_seconds",
    "outage_seconds",
    "retry_classes",
    "allow_private",
)
"""Settings that may change within a shard: they say how it is asked, not what is made of an answer."""

_SIZES = struct.Struct("<III")  # bytes of the JSON, bytes of the image, crc32 of both numbers and the JSON
_NESTED = ("header", "original")
_PLACE = ("offset", "size")


def identity(
    rows: Sequence[Sequence[Any]], config: FetchConfig, forgotten: str = "", *, resizing: int = RESIZING
) -> str:
    """Return what a spool belongs to: the records asked for, and what decides what becomes of them.

    Blocklists count by their files, and take-downs (`forgotten`) by their digest: what was spooled before one grew was
    not compared with its new lines.
    """
    settings = {name: value for name, value in config_to_dict(config).items() if name not in PACE}
    told: dict[str, Any] = {"rows": rows, "settings": settings, "blocklist": blocklist_stamps(config.blocklist)}
    told |= {"forgotten": forgotten} if forgotten else {}
    told |= {"resizing": resizing} if resizing > 1 else {}
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()


def remove_spools(folder: str, finished: Collection[str], *, run_is_over: bool = False) -> None:
    """Remove what killed processes left of finished shards; after a run what its processes told each other, too."""
    if not urlpath.is_local(folder) or not urlpath.local_path(folder).is_dir():
        return
    path = urlpath.local_path(folder)
    for entry in path.iterdir():
        if entry.is_file() and (entry.stem in finished or (run_is_over and entry.name == BOARD)):
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a retry that was cut short goes on another time
        path.rmdir()


class Spool:
    """The file of one raw shard. `known` holds what it held when it was opened, by row."""

    def __init__(self, path: Path | None, belongs_to: str) -> None:
        """Open or begin the file; without a path it has no name, and ends with this process.

        So it is of one that another process has open: two that append would give each other's bytes as images.
        """
        self.known: dict[int, Outcome] = {}
        found = None if path is None else _open_alone(path)
        self.path = None if found is None else path
        if found is None:
            found, name = tempfile.mkstemp(prefix="headrace-spool-")
            os.unlink(name)
        self._handle: int | None = found
        head = canonical_json({"format": FORMAT, "belongs_to": belongs_to}).encode()
        self._end = self._read(head)
        if not self._end:
            self._append(head, b"")

    @property
    def is_open(self) -> bool:
        """False once it was closed: its images cannot be read any more."""
        return self._handle is not None

    def _read(self, head: bytes) -> int:
        """Take what the file holds; return where it ends, 0 if none of it can be used."""
        assert self._handle is not None
        length, end = os.fstat(self._handle).st_size, 0
        while (record := self._record(end, length)) is not None:
            text, begin = record
            if not end and text != head:
                log.info("%s: it is of other settings or rows; begun anew", self.path)
                break
            if end and not self._keep(text, begin):
                break
            end = begin + (int(json.loads(text)["size"]) if end else 0)
        if end < length:
            os.ftruncate(self._handle, end)
            log.info("%s: %d bytes cut that were not whole", self.path, length - end)
        return end

    def _record(self, at: int, length: int) -> tuple[bytes, int] | None:
        """Return the JSON of the record at `at` and where its image begins; None if it is not whole."""
        assert self._handle is not None
        sizes = os.pread(self._handle, _SIZES.size, at)
        if len(sizes) < _SIZES.size:
            return None
        num_json, num_image, crc = _SIZES.unpack(sizes)
        begin = at + _SIZES.size
        if num_json > MAX_JSON_BYTES or begin + num_json + num_image > length:
            return None
        data = os.pread(self._handle, num_json, begin)
        return (data, begin + num_json) if zlib.crc32(sizes[:8] + data) == crc else None

    def _keep(self, text: bytes, offset: int) -> bool:
        """Take one record; False if its image is not the one that was stored."""
        record = json.loads(text)
        rows, size = record.pop("rows"), record.pop("size")
        for name in _NESTED:
            record[name] = record[name] and ImageHeader(**record[name])
        outcome = Outcome(**record, offset=offset, size=size)
        if outcome.header is not None:
            expected = outcome.stored_sha256 or outcome.sha256
            if hashlib.sha256(self.read(outcome)).hexdigest() != expected:
                return False
        self.known.update(dict.fromkeys(rows, outcome))
        return True

    def add(self, rows: Sequence[int], outcome: Outcome, image: bytes | None) -> Outcome:
        """Append what became of some rows; return it with its place. Raises OSError if the disk is full."""
        data = b"" if image is None else image
        record: dict[str, Any] = {field.name: getattr(outcome, field.name) for field in _FIELDS}
        for name in _NESTED:
            header = record[name]
            record[name] = header and {field.name: getattr(header, field.name) for field in _HEADER_FIELDS}
        text = json.dumps({**record, "rows": rows, "size": len(data)}, separators=(",", ":")).encode()
        return replace(outcome, offset=self._append(text, data), size=len(data))

    def _append(self, text: bytes, image: bytes) -> int:
        """Write a record at the end; return where its image begins."""
        assert self._handle is not None
        sizes = struct.pack("<II", len(text), len(image))
        head = sizes + struct.pack("<I", zlib.crc32(sizes + text)) + text
        begin = self._end + len(head)
        with atomic.naming_full_disk(str(self.path or tempfile.gettempdir())):
            written = os.pwritev(self._handle, [head, image], self._end)
            rest = memoryview(head + image)[written:] if written < len(head) + len(image) else memoryview(b"")
            while rest:  # a disk that is full writes a part first, then says so
                count = os.pwrite(self._handle, rest, self._end + written)
                rest, written = rest[count:], written + count
        self._end += written
        return begin

    def read(self, outcome: Outcome) -> bytes:
        """Return the image of an outcome."""
        assert self._handle is not None
        return os.pread(self._handle, outcome.size, outcome.offset)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def remove(self) -> None:
        """Close and remove the file: what it held is committed."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _open_alone(path: Path) -> int | None:
    """Return the handle of a spool; None if another process has it: an owner that was replaced and woke up again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        log.warning("%s: another process writes it; what comes now is kept without a name", path)
        return None
    except OSError as error:
        log.info("%s: cannot be locked (%s)", path, error)
    return handle


_FIELDS = tuple(field for field in fields(Outcome) if field.name not in _PLACE)
_HEADER_FIELDS = fields(ImageHeader)

"""A folder that keeps the rows of indexes, so that no parquet index is read twice.

A file is named by the sha256 of its index, so it is never out of date, whatever becomes of the dataset. It is written
beside and renamed, without a lock: two processes that write the same file write the same rows. What is damaged is made
again. The one thing a reader would get wrong: `max_bytes` is kept by whoever writes, now and then; between two looks
each process may write a 64th of it.
"""

import contextlib
import logging
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from headrace.shards.index_rows import DamagedRowsError, IndexRows, rows_of_file

log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
SUFFIX = ".rows"
LOOKS = 64
"""The folder is measured each time so large a part of `max_bytes` was written."""
KEPT = 0.9
"""What is left of `max_bytes` when old files were removed."""
USED_EACH_SECONDS = 86_400.0
"""A file that is used is marked as used at most so often."""
LEFTOVER_SECONDS = 3600.0
"""A temporary file of this age was left by a process that was killed."""

_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_LEFTOVER = re.compile(rf"\.{_OURS.pattern}\.[0-9a-f]{{32}}\.tmp")


def cache_folder(name: str) -> Path | None:
    """Return the folder that a user names: `auto` is under the user's cache folder, `none` is None."""
    if name == NONE:
        return None
    if name != AUTO:
        return Path(name).expanduser()
    ours = user_cache()
    return ours / "indexes" if ours is not None else None


def user_cache() -> Path | None:
    """Return our folder in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache); None where he has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "headrace"
    except RuntimeError:
        return None


class IndexCache:
    """Rows of indexes on disk, safe for several threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # Of many short runs, each somewhere else: also they measure the folder as often as bytes are written.
        self._until_look = random.uniform(0, max_bytes / LOOKS)
        self._failed = False

    def path(self, digest: str) -> Path:
        """Return where the rows of an index lie."""
        return self.folder / digest[:2] / f"{digest}{SUFFIX}"

    def get(self, digest: str) -> IndexRows | None:
        """Return the rows of the index whose sha256 is `digest`; None if they are not here, or not whole."""
        path = self.path(digest)
        try:
            rows = rows_of_file(path, digest)
            _mark_used(path)
        except FileNotFoundError:
            return None
        except (DamagedRowsError, OSError) as error:
            self.complain(digest, error)
            return None
        return rows

    def size(self, digest: str) -> int:
        """Return the bytes that the rows of an index take here, 0 if they are not here."""
        try:
            return self.path(digest).stat().st_size
        except OSError:
            return 0

    def put(self, digest: str, data: bytes) -> IndexRows | None:
        """Keep `data`, what `encode_rows` made; return it as it is on disk, or None if the folder takes nothing."""
        if self._failed:
            return None
        path = self.path(digest)
        try:
            _replace(path, data)
        except OSError as error:
            self._failed = True
            log.warning("%s: the index cache takes nothing, so indexes are read again: %s", self.folder, error)
            return None
        with self._lock:
            self._until_look -= len(data)
            look = self._until_look < 0
            if look:
                self._until_look = self._max_bytes / LOOKS
        if look:
            self.trim()
        try:
            return rows_of_file(path, digest)
        except (OSError, DamagedRowsError):  # another process has removed it, or the disk lies
            return None

    def complain(self, digest: str, error: Exception) -> None:
        """Say that a file is made again."""
        log.warning("%s is damaged and is made again: %s", self.path(digest), error)

    def trim(self) -> None:
        """Remove the files that were not used for longest, down to nine tenths of `max_bytes`, and leftovers."""
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        if total <= self._max_bytes:
            return
        removed = 0
        for _, size, path in found:
            if total <= self._max_bytes * KEPT:
                break
            if _remove(path):
                removed += 1
                total -= size
        log.info("%s: %d files that were not used for longest removed, %d bytes kept", self.folder, removed, total)

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield (last used, bytes, path) of each file; a folder that a user names may hold files of others."""
        for entry in _scan(self.folder):
            for file in _scan(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else ():
                with contextlib.suppress(OSError):  # another process removed it
                    found = file.stat(follow_symlinks=False)
                    if _OURS.fullmatch(file.name):
                        yield found.st_mtime, found.st_size, file.path
                    elif _LEFTOVER.fullmatch(file.name) and time.time() - found.st_mtime > LEFTOVER_SECONDS:
                        os.unlink(file.path)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is only read
        if time.time() - path.stat().st_mtime > USED_EACH_SECONDS:
            os.utime(path)


def _remove(path: str) -> bool:
    """Remove a file; False if it may not be removed, and those after it make room."""
    try:
        os.unlink(path)
    except FileNotFoundError:  # another process was first
        return True
    except OSError:
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    """Write `data` at once, without waiting for the disk: what a power cut damages is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:  # and not mkstemp, whose files no other user may read
            file.write(data)
        temporary.replace(path)
    except BaseException:  # Ctrl-C too: no half a file stays
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

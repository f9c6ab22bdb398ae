"""A file that lines, or records, are appended to, whole or not at all.

A disk that fills up in the middle of a line leaves no half of it. A patient file keeps what it could not write, and
writes it before the next line.
"""

import logging
import os
from pathlib import Path

from headrace.atomic import is_full_disk

MAX_WAITING_BYTES = 64 << 20

log = logging.getLogger(__name__)


class AppendedFile:
    """Appends to a file that exists, visible to readers at once."""

    def __init__(self, path: Path, *, patient: bool = False) -> None:
        self.path, self.patient = path, patient
        self._handle = os.open(path, os.O_WRONLY)
        self._size = os.lseek(self._handle, 0, os.SEEK_END)
        self._waiting = b""
        self._told = False

    def append(self, text: str | bytes) -> None:
        """Write `text` behind what is there. Raises OSError naming the file; a patient one waits for a full disk."""
        self._waiting += text.encode() if isinstance(text, str) else text
        try:
            self._write()
        except OSError as error:
            full = is_full_disk(error)
            if not (self.patient and full and len(self._waiting) < MAX_WAITING_BYTES):
                hint = "make room and run the same command again"
                told = OSError(f"{self.path}: cannot be written: {error.strerror}; {hint}")
                told.errno = error.errno
                raise told from error
            if not self._told:
                log.warning("%s: %s; its lines are kept in memory until there is room", self.path, error.strerror)
            self._told = True
        else:
            self._told = False

    def _write(self) -> None:
        try:
            written = 0
            while written < len(self._waiting):
                written += os.pwrite(self._handle, self._waiting[written:], self._size + written)
        except OSError:
            os.ftruncate(self._handle, self._size)
            raise
        self._size += len(self._waiting)
        self._waiting = b""

    def close(self) -> None:
        """Close the file; what still waits for room is lost, and said."""
        if self._handle < 0:
            return
        if self._waiting:
            log.warning("%s: %d bytes could not be written", self.path, len(self._waiting))
        os.close(self._handle)
        self._handle = -1

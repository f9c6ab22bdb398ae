"""How files from afar are read: with which patience, over which connections, and who may stop it.

`files` reads with one that a process shares; a stream has its own, which it can stop from another thread.
"""

import errno
import functools
import http.client
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, TypeVar

from headrace.patience import DEFAULT_PATIENCE, Patience, Stop, apart, is_of_backend, patiently, said
from headrace.text import without_secrets
from headrace.web import PLAINLY, Ask, Client, NoRangesError

log = logging.getLogger(__name__)

REQUEST_BYTES = 16 << 20
"""Most bytes of one request for a whole file; a cut costs so much."""
HEAD_BYTES = 1 << 16
"""What is asked for first of a file that is opened."""

T = TypeVar("T")

# What callers tell apart; everything else from afar becomes a RemoteError.
_KINDS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class RemoteError(OSError):
    """A read that failed for good."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """The way to files that are not on this machine."""

    patience: Patience
    client: Client
    stop: Stop
    """Whoever sets it makes all readers give up."""
    on_retry: Callable[[], None] = _nothing
    ask: Ask = PLAINLY
    """How ranges are asked for over http."""
    stoppable: bool = True
    """Run the reads of other libraries in threads that can be left behind, so that `stop` need not wait for them."""

    def run(self, url: str, action: Callable[[], T], *, place: str = "") -> T:
        """Return `action()`, which reads `url`, patiently. Raises OSError naming it, of the kind that fits.

        NoRangesError is left to the caller, who may read another way.
        """
        where = without_secrets(url) + place
        try:
            return patiently(action, self.patience, where, stop=self.stop, on_retry=self.on_retry)
        except NoRangesError:
            raise
        except (OSError, EOFError, http.client.HTTPException) as error:
            raise _named(where, error) from error
        except Exception as error:  # the errors of s3fs, gcsfs and their like have no class in common
            if not is_of_backend(error):
                raise
            raise _named(where, error) from error

    def call(self, action: Callable[[], T]) -> T:
        """Return `action()`, a read by another library."""
        return apart(action, self.stop) if self.stoppable else action()


def _named(where: str, error: Exception) -> OSError:
    kind = next((kind for kind in _KINDS if isinstance(error, kind)), RemoteError)
    return kind("; ".join((f"{where}: {said(error)}", *getattr(error, "__notes__", ()))))


def read_whole(url: str, access: Access) -> bytes:
    """Return a whole file at an http address: by ranges, so that a cut costs one of them, or as its server can."""
    data, total = bytearray(), None
    try:
        while total is None or len(data) < total:
            read = partial(access.client.read_range, url, len(data), REQUEST_BYTES)
            part, told = access.run(url, read, place=f": at byte {len(data)}" if data else "")
            # A file that became shorter has no byte there (416), which tells no size.
            if total is not None and told != total:
                raise RemoteError(f"{without_secrets(url)}: it was replaced while it was read")
            total = told
            data += part
            if len(part) < REQUEST_BYTES:
                break
    except NoRangesError:
        with tempfile.TemporaryFile() as copy:
            _download(url, copy, access)
            return copy.read()
    return bytes(data)


def size_or_copy(url: str, copy: IO[bytes], access: Access) -> int | None:
    """Return the size of a file that its server sends by ranges; None if `copy` now holds all of it, at its beginning.

    A small file is copied too, as it came with the first question.
    """
    try:
        data, total = access.run(url, lambda: access.client.read_range(url, 0, HEAD_BYTES))
    except NoRangesError as error:
        log.info("%s: %s; reading all of it into a temporary file", without_secrets(url), error)
        _download(url, copy, access)
        return None
    if len(data) < HEAD_BYTES or total == HEAD_BYTES:
        copy.write(data)
        copy.seek(0)
        return None
    if total is None:
        _download(url, copy, access)
    return total


def _download(url: str, copy: IO[bytes], access: Access) -> None:
    def download() -> None:
        try:
            access.client.download(url, copy)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                error.add_note(f"the copy goes to {tempfile.gettempdir()}, or where TMPDIR says")
            raise

    access.run(url, download)


def default_access() -> Access:
    """Return the access that this process shares."""
    return _access_of(os.getpid())


@functools.cache
def _access_of(_process: int) -> Access:  # a forked process must not use the connections of its parent
    stop = Stop()
    client = Client(timeout_seconds=DEFAULT_PATIENCE.timeout_seconds, stop=stop)
    return Access(patience=DEFAULT_PATIENCE, client=client, stop=stop, stoppable=False)

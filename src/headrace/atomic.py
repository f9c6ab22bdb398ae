"""Files written whole or not at all, at any fsspec URL; and files removed.

`write_atomic` may replace, while `put_if_absent` never does, and only the latter decides who finished a unit of work.
Changes far away are tried again as `headrace.patience` says.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from headrace.access import default_access
from headrace.patience import status_of
from headrace.stores import open_fs, open_store
from headrace.urlpath import basename, is_local, local_path

T = TypeVar("T")

PRECONDITION_FAILED = 412
"""What a store says of `If-None-Match: *` where the file is there."""
CONFLICT = 409
"""What S3 says of two such puts at one moment: neither is done, and it asks to try again."""


def write_atomic(url: str, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the whole new one, never a part."""
    with atomic_file(url) as path:
        path.write_bytes(data)


@contextlib.contextmanager
def atomic_file(url: str) -> Iterator[Path]:
    """Yield a local path to write; on a clean exit it becomes `url` at once, on an exception it is removed.

    A killed process leaves only a hidden `.NAME.*.tmp` beside the target; `remove_leftovers` clears those.
    """
    local = is_local(url)
    folder = local_path(url).parent if local else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{basename(url)}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with naming_full_disk(url):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if local:
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(local_path(url))
        else:
            _remote(url, lambda fs, path: fs.put_file(str(temporary), path))
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_full_disk(url: str) -> Iterator[None]:
    """Let the error of a full disk inside say what was being written: of a write it names no file."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error) and error.filename is None:
            error.filename = url
        raise


def is_full_disk(error: OSError) -> bool:
    """True if there is no room: on the disk, or in the quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def put_if_absent(url: str, data: bytes) -> bool:
    """Create `url` with `data` in one step; False if it already exists (its content stays)."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        try:
            with naming_full_disk(url), os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            # link() fails if the target exists and shows the whole content at once; O_EXCL + write would show a part.
            os.link(name, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # The owner of the folder took our temporary file for a leftover (`remove_leftovers`): once more.
            return put_if_absent(url, data)
        finally:
            Path(name).unlink(missing_ok=True)
        return True
    return _remote(url, lambda fs, path: _create(fs, path, data))


def _create(fs: Any, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:  # every object store has its own
        status = status_of(error)
        if status == CONFLICT:
            raise ConnectionError("another process puts it at this moment") from None  # transient: it is tried again
        if status != PRECONDITION_FAILED:
            raise
        return False
    return True


def _remote(url: str, action: Callable[[Any, str], T]) -> T:
    """Return `action(fs, path)`, which changes something far away, patiently.

    A fault may come after the change was made: the action must be one that may be done twice.
    """
    access = default_access()
    fs, path = open_store(url, access.patience)
    return access.run(url, lambda: access.call(lambda: action(fs, path)))


def remove(url: str) -> None:
    """Remove a file; nothing happens if there is none."""
    with contextlib.suppress(FileNotFoundError):
        if is_local(url):
            fs, path = open_fs(url)
            fs.rm_file(path)
        else:
            _remote(url, lambda fs, path: fs.rm_file(path))


def remove_folder(url: str) -> None:
    """Remove a local folder if it is there and empty; object stores have none."""
    if is_local(url):
        with contextlib.suppress(OSError):
            local_path(url).rmdir()


def remove_all(url: str) -> None:
    """Remove a folder and all in it, if it is there."""
    if is_local(url):
        fs, path = open_fs(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    with contextlib.suppress(FileNotFoundError):
        _remote(url, lambda fs, path: fs.rm(path, recursive=True))


def remove_leftovers(folder: str) -> None:
    """Remove the hidden temporary files that a killed writer left in a local folder."""
    if is_local(folder):
        for path in local_path(folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _umask() -> int:
    # os.umask can only be read by setting it; mkstemp's 0600 must become what open() would have given.
    mask = os.umask(0)
    os.umask(mask)
    return mask

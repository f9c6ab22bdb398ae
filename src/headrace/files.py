"""Reading files at any fsspec URL: what is there, whole files, ranges, digests and stamps.

Reads from afar are tried again as `headrace.patience` says. `headrace.atomic` writes.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from headrace.access import Access, default_access, read_whole, size_or_copy
from headrace.patience import status_of
from headrace.ranged_file import RangedFile
from headrace.stores import open_fs, open_store
from headrace.text import without_secrets
from headrace.urlpath import basename, is_local, join, local_path
from headrace.web import NoRangesError, is_http

T = TypeVar("T")

KEPT_BLOCKS = 16
LINE_BUFFER_BYTES = 1 << 20
HASHED_BYTES = 16 << 20


def exists(url: str) -> bool:
    """True if something is at `url`; never cached, as another process may just have written it."""
    if is_http(url):
        access = default_access()
        try:
            access.run(url, lambda: access.client.size_of(url))
        except (FileNotFoundError, PermissionError):  # an object store that may not be listed says 403
            return False
        return True
    fs, path = _open_to_read(url)
    return bool(_read(url, lambda: fs.exists(path)))


def is_folder(url: str) -> bool:
    """True if `url` is a folder; of an http address, a page that links to what lies below it."""
    if is_http(url):
        try:
            return bool(_links(url))
        except (FileNotFoundError, PermissionError):
            return False
    fs, path = _open_to_read(url)
    return bool(_read(url, lambda: fs.isdir(path)))


def list_names(url: str, suffix: str = "") -> list[str]:
    """Return the sorted names directly under a folder that end in `suffix`; empty if the folder does not exist."""
    try:
        if is_http(url):
            names = [name.rstrip("/") for name in _links(url)]
        else:
            fs, path = _open_to_read(url)
            names = [basename(str(name)) for name in _read(url, lambda: fs.ls(path, detail=False))]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))


def walk_remote(url: str) -> Iterator[tuple[str, int]]:
    """Yield (path below `url`, size) of all files below a folder that is not local; 0 where the size is not told."""
    if not is_http(url):
        fs, root = open_fs(url)
        root = root.rstrip("/")
        found = _read(url, lambda: fs.find(root, detail=True))
        yield from ((str(path)[len(root) :].lstrip("/"), int(info["size"] or 0)) for path, info in found.items())
        return
    folders = [""]
    while folders:
        folder = folders.pop()
        for name in _links(join(url, folder) if folder else url):
            if name.endswith("/"):
                folders.append(f"{folder}{name}")
            else:
                yield f"{folder}{name}", 0


def _links(url: str) -> list[str]:
    access = default_access()
    return access.run(url, lambda: access.client.folder(url))


def size_of(url: str) -> int:
    """Return the size in bytes. Raises FileNotFoundError, and ValueError if it is not told."""
    if is_http(url):
        access = default_access()
        size = access.run(url, lambda: access.client.size_of(url))
        if size is None:
            with opened(url) as file:  # a server that compresses, or sends chunks
                size = file.seek(0, io.SEEK_END)
        return size
    fs, path = _open_to_read(url)
    size = _read(url, lambda: fs.size(path))
    if size is None:
        raise ValueError(f"{without_secrets(url)}: its size is not told")
    return int(size)


def read_bytes(url: str, *, access: Access | None = None) -> bytes:
    """Return the whole file. Raises FileNotFoundError."""
    if not is_http(url):
        fs, path = _open_to_read(url, access)
        return _read(url, lambda: bytes(fs.cat_file(path)), access)
    return read_whole(url, access or default_access())


def read_range(url: str, offset: int, size: int, *, access: Access | None = None) -> bytes:
    """Return up to `size` bytes from `offset`; fewer only where the file ends first.

    A local file is read patiently too where an `access` is given: it may lie on a file server.
    """
    if access is None and is_local(url):
        return _local_range(url, offset, size)
    access, place = access or default_access(), f": at byte {offset}"
    try:
        return access.run(url, lambda: _range_once(url, offset, size, access), place=place)
    except NoRangesError as error:
        raise NoRangesError(f"{without_secrets(url)}{place}: {error}") from error


def _range_once(url: str, offset: int, size: int, access: Access) -> bytes:
    if is_local(url):
        return _local_range(url, offset, size)
    if is_http(url):
        return access.client.read_range(url, offset, size, access.ask)[0]
    fs, path = _open_to_read(url, access)
    try:
        data = access.call(lambda: bytes(fs.cat_file(path, start=offset, end=offset + size)))
    except Exception as error:  # every object store has its own
        if status_of(error) != 416:
            raise
        return b""  # it says so of a range past the end
    if len(data) > size:
        raise NoRangesError(f"asked for {size} bytes, the server sent {len(data)}: it ignores ranges")
    return data


def _local_range(url: str, offset: int, size: int) -> bytes:
    handle = os.open(local_path(url), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, size, offset)
        while data and len(data) < size:  # pread gives at most 2 GiB, or less after a signal
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(handle)


@contextlib.contextmanager
def opened(url: str, *, in_blocks: bool = True) -> Iterator[BinaryIO]:
    """Open a file to read and to jump in, wherever it lies. Raises FileNotFoundError.

    From afar it is read by ranges: in kept blocks, or with `in_blocks` off exactly as asked for. What a server cannot
    send by ranges is first copied into a temporary file.
    """
    if is_local(url):
        with local_path(url).open("rb") as local:
            yield local
        return
    if "::" in url and not is_http(url):
        fs, path = open_fs(url)  # a chain (`zip://...::`, `simplecache::`) brings a cache of its own
        with _read(url, lambda: fs.open(path, "rb")) as stream:
            yield stream
        return
    if is_http(url):
        with tempfile.TemporaryFile() as copy:
            size = size_or_copy(url, copy, default_access())
            yield cast(BinaryIO, copy) if size is None else _by_ranges(url, size, in_blocks)
        return
    yield _by_ranges(url, size_of(url), in_blocks)


def _by_ranges(url: str, size: int, in_blocks: bool) -> BinaryIO:
    file = RangedFile(url, size, read_range, num_blocks=KEPT_BLOCKS if in_blocks else 0)
    return cast(BinaryIO, io.BufferedReader(file, LINE_BUFFER_BYTES) if in_blocks else file)


def sha256_of(url: str) -> str:
    """Return the hex sha256 of a file, read by blocks."""
    with opened(url, in_blocks=False) as file:
        digest = hashlib.sha256()
        while block := file.read(HASHED_BYTES):
            digest.update(block)
        return digest.hexdigest()


def stamp_of(url: str) -> tuple[int, str]:
    """Return (size, what changes with the content) of a file. Raises IsADirectoryError for a folder."""
    if is_http(url):
        access = default_access()
        return access.run(url, lambda: access.client.stamp_of(url))
    if is_local(url):
        path = local_path(url)
        stamp, is_file = _local_stamp(path.stat()), path.is_file()
    else:
        fs, inside = _open_to_read(url)
        info = _read(url, lambda: fs.info(inside))
        stamp, is_file = _stamp(info), info["type"] == "file"
    if not is_file:
        raise IsADirectoryError(f"{without_secrets(url)} is a folder; give the file")
    return stamp


def stamps_in(url: str) -> dict[str, tuple[int, str]]:
    """Return the stamps of the files directly under a folder by name, in as few requests as its store lists it in.

    Nothing of an http address, where each file must be asked for its own.
    """
    if is_http(url):
        return {}
    if is_local(url):
        with os.scandir(local_path(url)) as entries:
            return {entry.name: _local_stamp(entry.stat()) for entry in entries if entry.is_file()}
    fs, path = _open_to_read(url)
    found = _read(url, lambda: fs.ls(path, detail=True))
    return {basename(str(info["name"])): _stamp(info) for info in found if info["type"] == "file"}


def _local_stamp(found: os.stat_result) -> tuple[int, str]:
    return found.st_size, str(found.st_mtime_ns)


def _stamp(info: dict[str, Any]) -> tuple[int, str]:
    return int(info["size"] or 0), str(info.get("mtime", info.get("ETag", info.get("LastModified", ""))))


def _open_to_read(url: str, access: Access | None = None) -> tuple[Any, str]:
    fs, path = open_store(url, (access or default_access()).patience)
    if not is_local(url):
        fs.invalidate_cache()  # another process may just have written what a kept listing does not hold
    return fs, path


def _read(url: str, action: Callable[[], T], access: Access | None = None) -> T:
    """Return what `action` reads of `url`; patiently if that is far away, or an `access` is given."""
    if access is None and is_local(url):
        return action()
    access = access or default_access()
    return access.run(url, lambda: access.call(action))

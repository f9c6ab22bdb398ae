"""Paths and URLs as strings: joining, splitting, and which of them are local; nothing is read.

Local paths and URLs are both plain strings. Names joined to an http address are percent-encoded, names taken from one
decoded: a shard may be called `a b#1`.
"""

from pathlib import Path
from urllib.parse import quote, unquote

from headrace.stores import open_fs
from headrace.web import is_http


def is_local(url: str) -> bool:
    """True if `url` is on this machine's file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def check_shared(*urls: str) -> None:
    """Check that other processes see what is at `urls`. Raises ValueError for `memory://`, also inside a chain."""
    for url in urls:
        if any(part.startswith("memory:") for part in url.split("::")):
            raise ValueError(f"{url} is seen by one process only; name a folder or URL that worker processes reach too")


def local_path(url: str) -> Path:
    """Return the path of a local URL. Raises ValueError for a remote one."""
    if not is_local(url):
        raise ValueError(f"{url} is not a local path")
    return Path(open_fs(url)[1])


def join(url: str, *names: str) -> str:
    """Append path names to a URL or path; of an http address before its query, which may hold a token."""
    if not names:
        return url
    query = ""
    if is_http(url):
        url, mark, rest = url.partition("?")
        query, names = mark + rest, tuple(quote(name) for name in names)
    return "/".join((url.rstrip("/") or "/", *names)) + query


def basename(url: str) -> str:
    """Return the last name of a URL or path."""
    if is_http(url):
        return unquote(url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1])
    return url.rstrip("/").rsplit("/", 1)[-1]


def parent(url: str) -> str:
    """Return the folder of a file; of an http address with its query."""
    query = ""
    if is_http(url):
        url, mark, rest = url.partition("?")
        query = mark + rest
    folder = url.rstrip("/").rpartition("/")[0]
    return (folder or ("/" if url.startswith("/") else ".")) + query

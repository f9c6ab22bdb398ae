"""What a glob names, at any URL.

The folders that exist at its head are taken as they are spelled, so `[`, `?` and `*` in the name of a real folder are
letters: `my [data]/*.txt`.
"""

import fnmatch
import re
from collections.abc import Callable
from urllib.parse import unquote

from headrace import files, stores, urlpath
from headrace.web import is_http


def matching(url: str) -> list[str]:
    """Return the URLs that `url` names, sorted: itself if it exists, else what it matches as a glob."""
    if files.exists(url):
        return [url]
    if is_http(url):
        return _matching_http(url)
    fs, path = stores.open_fs(url)
    real, pattern = split_real_folders(path, fs.isdir)
    found = [str(name) for name in fs.glob(re.sub(r"[*?[]", r"[\g<0>]", real) + pattern)]
    return sorted(found if urlpath.is_local(url) else [str(fs.unstrip_protocol(name)) for name in found])


def split_real_folders(path: str, is_folder: Callable[[str], bool]) -> tuple[str, str]:
    """Return the folders at the head of `path` that exist, and the rest."""
    parts = path.split("/")
    num_real = 0
    while num_real < len(parts) - 1 and is_folder("/".join(parts[: num_real + 1]) or "/"):
        num_real += 1
    real = "".join(f"{part}/" for part in parts[:num_real])
    return real, path[len(real) :]


def _matching_http(url: str) -> list[str]:
    """Only the last name may be a glob, as `?` begins the query of an address."""
    path, mark, query = url.partition("?")
    folder, _, name = path.rpartition("/")
    if not re.search(r"[*\[]", name):
        return []
    names = fnmatch.filter(files.list_names(folder + mark + query), unquote(name))
    return [urlpath.join(folder + mark + query, found) for found in names]

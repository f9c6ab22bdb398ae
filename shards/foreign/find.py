"""What a user means by a file, a folder or a glob, at any fsspec URL.

Sorted, so that the order of shards never depends on a listing. The one thing a reader would get wrong: a folder is
not searched below its first level.
"""

from collections.abc import Sequence

from headrace import files
from headrace.web import is_http


def expand_files(url: str, suffix: str) -> list[str]:
    """Return the files ending in `suffix` that a file's URL, a folder or a glob names, sorted.

    What exists is never read as a glob.
    """
    if is_http(url) and files.basename(url).endswith(suffix) and "*" not in url:
        return [url]  # without asking: reading it says what is the matter
    if any(letter in url for letter in ("*[" if is_http(url) else "*?[")) and not files.exists(url):
        return [name for name in files.matching(url) if files.basename(name).endswith(suffix)]
    if url.endswith(suffix):
        return [url] if files.exists(url) else []
    return [files.join(url, name) for name in files.list_names(url, suffix=suffix)]


def find_tars(urls: Sequence[str]) -> dict[str, list[str]]:
    """Expand folders, globs and tars to {folder: names of tars}. Raises ValueError where one names no tar."""
    found: dict[str, set[str]] = {}
    for url in urls:
        tars = expand_files(url, ".tar")
        if not tars:
            raise ValueError(f"{url}: no .tar there")
        for tar in tars:
            found.setdefault(files.parent(tar), set()).add(files.basename(tar))
    return {folder: sorted(names) for folder, names in sorted(found.items())}

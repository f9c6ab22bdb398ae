"""What a user means by a file, a folder, a glob or a `{000..999}` pattern, at any fsspec URL.

Sorted, so that the order of shards never depends on a listing. A folder is not searched below its first level.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

from headrace import files, urlpath
from headrace.globs import matching, split_real_folders
from headrace.web import is_http

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MAX_BRACES = 1_000_000
NAME_THEM = "tars end in .tar, and FOLDER/*/*.tar names those that lie deeper"
_SHOWN = 5

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_files(url: str, suffix: str) -> list[str]:
    """Return the files ending in `suffix` that a file's URL, a folder, a glob or a brace pattern names, sorted.

    What exists is never read as a pattern. Raises ValueError if a brace pattern names files that are not there.
    """
    if is_http(url):
        return _expand_http(url, suffix)
    if files.exists(url):
        if url.endswith(suffix) and not _is_folder(url):
            return [url]
        return [urlpath.join(url, name) for name in files.list_names(url, suffix=suffix)]
    folders, pattern = split_real_folders(url, _is_folder)
    spelled = [f"{folders}{name}" for name in spell_out(pattern)]
    if len(spelled) > 1:
        return _all_of(url, spelled, suffix)
    if any(letter in url for letter in "*?["):
        return [name for name in matching(url) if name.endswith(suffix)]
    # A server may list a folder that it does not say exists.
    return [] if url.endswith(suffix) else [urlpath.join(url, name) for name in files.list_names(url, suffix=suffix)]


def _expand_http(url: str, suffix: str) -> list[str]:
    spelled = list(spell_out(url))
    if len(spelled) > 1:
        return _all_of(url, spelled, suffix)
    if urlpath.basename(url).endswith(suffix) and "*" not in url:
        return [url]  # without asking: reading it says what is the matter
    if any(letter in url for letter in "*[") and not files.exists(url):
        return [name for name in matching(url) if urlpath.basename(name).endswith(suffix)]
    return [urlpath.join(url, name) for name in files.list_names(url, suffix=suffix)]


def spell_out(pattern: str) -> Iterator[str]:
    """Yield what a pattern with `{000..999}` or `{train,val}` stands for; itself if it has none."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    total = 1
    for some in choices:
        total *= len(some)
    if total > MAX_BRACES:
        raise ValueError(f"{pattern}: stands for {total} files, over {MAX_BRACES}")
    yield from map("".join, itertools.product(*choices))


def _choices(inside: str) -> Sequence[str]:
    found = _RANGE.fullmatch(inside)
    if found is not None:
        first, last = int(found[1]), int(found[2])
        padded = len(found[1]) if found[1].startswith("0") else 0
        if abs(last - first) >= MAX_BRACES:
            raise ValueError(f"{{{inside}}}: stands for {abs(last - first) + 1} files, over {MAX_BRACES}")
        step = 1 if last >= first else -1
        return [str(number).zfill(padded) for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _all_of(pattern: str, spelled: Sequence[str], suffix: str) -> list[str]:
    """Return all that a brace pattern names; its user wrote down which ones there are."""
    found: list[str] = []
    missing = []
    for url in spelled:
        here = expand_files(url, suffix)
        found += here
        if not here and url.endswith(suffix):
            missing.append(url)
    if missing and found:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{pattern}: {len(missing)} of {len(spelled)} are not there: {', '.join(missing[:_SHOWN])}{more}"
        )
    return sorted(dict.fromkeys(found))


def _is_folder(url: str) -> bool:
    return urlpath.is_local(url) and urlpath.local_path(url).is_dir()


def find_tars(urls: Sequence[str]) -> dict[str, list[str]]:
    """Expand folders, globs and tars to {folder: names of tars}. Raises ValueError where one names no tar."""
    found: dict[str, set[str]] = {}
    for url in urls:
        tars = expand_files(url, ".tar")
        if not tars:
            refuse_compressed(url)
            others = overlooked(url)
            raise ValueError(f"{url}: no .tar there" + (f"; there is {listed(others)}: {NAME_THEM}" if others else ""))
        for tar in tars:
            found.setdefault(urlpath.parent(tar), set()).add(urlpath.basename(tar))
    return {folder: sorted(names) for folder, names in sorted(found.items())}


def overlooked(url: str) -> list[str]:
    """Return what in a local folder may have been meant and is not read: `A.TAR`, and folders that hold tars."""
    if not _is_folder(url):
        return []
    found = []
    for path in sorted(urlpath.local_path(url).iterdir()):
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            if files.list_names(str(path), suffix=".tar"):
                found.append(f"{path.name}/")
        elif path.name.lower().endswith((".tar", *COMPRESSED)) and not path.name.endswith((".tar", *COMPRESSED)):
            found.append(path.name)
    return found


def listed(names: Sequence[str]) -> str:
    """Return the first names of several, and how many there are."""
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")


def compressed_tars(url: str) -> list[str]:
    """Return the compressed tars that `url` names, or that lie in the folder that it names."""
    name = urlpath.basename(url)
    if name.endswith(COMPRESSED):
        return [found for suffix in COMPRESSED if name.endswith(suffix) for found in expand_files(url, suffix)]
    if name.endswith((".tar", ".parquet")) or (is_http(url) and not files.is_folder(url)):
        return []
    return [found for suffix in COMPRESSED for found in expand_files(url, suffix)]


def refuse_compressed(url: str) -> None:
    """Raise ValueError if `url` names compressed tars, or a folder of them."""
    found = compressed_tars(url)
    if found:
        names = ", ".join(map(urlpath.basename, found[:_SHOWN]))
        raise ValueError(
            f"{url}: {len(found)} compressed tars ({names}{', ...' if len(found) > _SHOWN else ''}); "
            "a shard must be a plain .tar to be read by ranges: unpack them, for example with gunzip"
        )

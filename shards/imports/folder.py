"""An image folder as inputs: `CLASS/.../NAME.jpg`, the label is the index of the sorted class folder names.

Files directly in the folder have no label. The one thing a reader would get wrong: hidden files and folders are
skipped, everything else is an input, also `README.txt` and broken links (they become rejects).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace import files
from headrace.shards.imports.source import Input, too_large

# Size of what is no regular file: a broken link, a pipe, a device.
_NO_FILE = -1


@dataclass(frozen=True, slots=True)
class FolderUnit:
    """A run of files: (URL, name, size, label)."""

    files: tuple[tuple[str, str, int, int | None], ...]

    def read(self) -> Iterator[Input]:
        """Yield the files in order."""
        for url, name, size, label in self.files:
            if size == _NO_FILE:
                yield Input(name, None, note="not a regular file", missing="no-file")
                continue
            yield too_large(name, size) or Input(name, files.read_bytes(url), label)


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Sorted files of one folder, with sizes."""

    url: str
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]
    kind: str = "folder"

    @property
    def num_inputs(self) -> int:
        """Files."""
        return len(self.paths)

    def identity(self) -> Iterator[Any]:
        """Yield (name, size) of each file."""
        yield from zip(map(_shown, self.paths), self.sizes, strict=True)

    def unit(self, start: int, stop: int) -> FolderUnit:
        """Return files start..stop-1."""
        labels = {name: label for label, name in enumerate(self.classes)}
        chosen = []
        for path, size in zip(self.paths[start:stop], self.sizes[start:stop], strict=True):
            name = _shown(path)
            label = labels[name.split("/", 1)[0]] if "/" in name else None
            chosen.append((files.join(self.url, path), name, size, label))
        return FolderUnit(tuple(chosen))


def open_folder(url: str) -> FolderSource:
    """List an image folder. Raises ValueError if it holds no file."""
    listing = _list_local(files.local_path(url)) if files.is_local(url) else files.walk_remote(url)
    found = sorted((path, size) for path, size in listing if not any(part.startswith(".") for part in path.split("/")))
    if not found:
        raise ValueError(f"{url}: no file there")
    classes = sorted({_shown(path).split("/", 1)[0] for path, _ in found if "/" in path})
    return FolderSource(url, tuple(path for path, _ in found), tuple(size for _, size in found), tuple(classes))


def _list_local(root: Path) -> Iterator[tuple[str, int]]:
    """Yield (path below root, size); links are followed, as image folders are often made of them, but no loop."""
    for folder, names, found in os.walk(root, followlinks=True):
        here = Path(folder)
        parents = {parent.resolve() for parent in (here, *here.parents)}
        names[:] = [name for name in names if (here / name).resolve() not in parents]
        for name in found:
            path = here / name
            yield path.relative_to(root).as_posix(), path.stat().st_size if path.is_file() else _NO_FILE


def _shown(path: str) -> str:
    # A file name need not be UTF-8; what goes into columns and records must.
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

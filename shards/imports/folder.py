"""An image folder as inputs: `CLASS/.../NAME.jpg`, the label is the index of the sorted class folder names.

Files directly in the folder have no label. A `metadata.csv`, `.jsonl` or `.parquet` adds captions and more. Everything
else is an input, also `README.txt` and broken links (they become rejects); hidden files, and links that lead out of the
folder, are named as left over.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace import files, urlpath
from headrace.shards.columns import agree, type_of
from headrace.shards.imports.metadata import TABLE_NAMES, read_metadata
from headrace.shards.imports.source import Input, Leftover, fit, free_name, too_large
from headrace.shards.members import LABEL_TEXT, Facts, facts_of

log = logging.getLogger(__name__)

# Size of what is no regular file: a broken link, a pipe, a device.
_NO_FILE = -1


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One file, and what a table says of it."""

    name: str
    url: str
    size: int
    label: int | None
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class FolderUnit:
    """Some files."""

    chosen: tuple[FolderFile, ...]
    columns: Mapping[str, str]

    def read(self) -> Iterator[Input]:
        """Yield the files in order."""
        for file in self.chosen:
            if file.size == _NO_FILE:
                yield Input(file.name, None, note="not a regular file", missing="no-file")
                continue
            yield too_large(file.name, file.size) or self._read(file)

    def _read(self, file: FolderFile) -> Input:
        data = files.read_bytes(file.url)
        if file.facts is None:
            return Input(file.name, data, file.label)
        extras, unfit = fit(file.facts.extras, self.columns)
        return Input(
            name=file.name,
            image=data,
            label=file.facts.values.get("label", file.label),
            caption=file.facts.values.get("caption"),
            url=file.facts.values.get("url"),
            extras=extras,
            note="; ".join([*(message for _, message in file.facts.faults), *unfit]) or None,
        )


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Sorted files of one folder, with sizes and what a table says of them."""

    url: str
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    """By path."""
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    remarks: tuple[str, ...] = ()
    num_lost: int = 0
    kind: str = "folder"
    not_read: Mapping[str, int] = field(default_factory=dict)
    random_access: bool = True

    @property
    def num_inputs(self) -> int:
        """Files."""
        return len(self.paths)

    def identity(self) -> Iterator[Any]:
        """Yield (name, size) of each file, and what a table says of it."""
        for path, size in zip(self.paths, self.sizes, strict=True):
            facts = self.facts.get(path)
            more = [] if facts is None else [facts.values, {name: str(value) for name, value in facts.extras.items()}]
            yield [_shown(path), size, *more]
        yield [dict(self.columns), list(self.classes)]

    def unit(self, positions: Sequence[int]) -> FolderUnit:
        """Return the files at `positions`."""
        labels = {name: label for label, name in enumerate(self.classes)}
        chosen = []
        for position in positions:
            path = self.paths[position]
            name = _shown(path)
            label = labels.get(name.split("/", 1)[0]) if "/" in name else None
            url, size = urlpath.join(self.url, path), self.sizes[position]
            chosen.append(FolderFile(name, url, size, label, self.facts.get(path)))
        return FolderUnit(tuple(chosen), self.columns)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What stands in a folder; `reason` says why it is no input."""

    path: str
    size: int
    reason: str | None = None


def open_folder(url: str, *, follow_links: bool = False, with_metadata: bool = False) -> FolderSource:
    """List an image folder. Raises ValueError if it holds no file.

    `follow_links` also reads what links outside the folder lead to.
    """
    if urlpath.is_local(url):
        listing = _list_local(urlpath.local_path(url), follow_links)
    else:
        listing = (_Entry(path, size) for path, size in files.walk_remote(url))
    entries = sorted((_hidden(entry) for entry in listing), key=lambda entry: entry.path)
    tables = [entry.path for entry in entries if with_metadata and _is_table(entry)]
    found = [entry for entry in entries if entry.reason is None and entry.path not in tables]
    left = [Leftover(_shown(entry.path), entry.reason) for entry in entries if entry.reason is not None]
    if not found:
        more = f"; {len(left)} links out of it or hidden files were left out" if left else ""
        raise ValueError(f"{url}: no file there{more}")
    source = FolderSource(
        url,
        tuple(entry.path for entry in found),
        tuple(entry.size for entry in found),
        tuple(sorted({_shown(entry.path).split("/", 1)[0] for entry in found if "/" in entry.path})),
        leftovers=tuple(left),
        num_lost=sum(item.reason == "link-outside" for item in left),
    )
    return _with_tables(source, tables) if tables else source


def _is_table(entry: _Entry) -> bool:
    return entry.reason is None and entry.size >= 0 and urlpath.basename(entry.path) in TABLE_NAMES


def _with_tables(source: FolderSource, tables: Sequence[str]) -> FolderSource:
    """Join the tables; a row that names no file, or one that has a row already, is left over."""
    known, facts = set(source.paths), dict[str, Facts]()
    left = [Leftover(_shown(table), "table") for table in tables]
    # The table nearest to a file wins, as with Hugging Face.
    for table in sorted(tables, key=lambda path: (-path.count("/"), path)):
        folder = table.rpartition("/")[0]
        for name, row in read_metadata(urlpath.join(source.url, table)):
            path = f"{folder}/{name}" if folder else name
            if path not in known or path in facts:
                reason = "row-twice" if path in facts else "row-without-file"
                left.append(Leftover(_shown(name), reason, f"in {_shown(table)}"))
            else:
                facts[path] = facts_of(row, where=urlpath.basename(table))
    names = {one.values[LABEL_TEXT] for one in facts.values() if LABEL_TEXT in one.values}
    numbered = any("label" in one.values for one in facts.values())
    classes = tuple(sorted(names)) if names and not numbered else (() if numbered else source.classes)
    labels = {name: label for label, name in enumerate(classes)}
    for one in facts.values():
        if LABEL_TEXT in one.values:
            name = one.values.pop(LABEL_TEXT)
            one.extras[LABEL_TEXT] = name
            if name in labels:
                one.values["label"] = labels[name]
    columns = agree({name: type_of(value)} for one in facts.values() for name, value in one.extras.items())
    if names and not numbered:
        columns.pop(LABEL_TEXT, None)
    return replace(
        source,
        classes=classes,
        facts=facts,
        columns={name: kind for name, kind in columns.items() if free_name(name)},
        left_out=tuple(sorted({name for one in facts.values() for name in one.left_out})),
        leftovers=(*source.leftovers, *left),
        remarks=(f"{len(facts)} of {source.num_inputs} files have a row in {', '.join(map(_shown, tables))}",),
    )


def _hidden(entry: _Entry) -> _Entry:
    hidden = any(part.startswith(".") for part in entry.path.split("/"))
    return replace(entry, reason="hidden") if hidden and entry.reason is None else entry


def _list_local(root: Path, follow_links: bool) -> Iterator[_Entry]:
    """Yield what lies below root. Links that stay inside are followed, but no loop; others if that is asked for."""
    real = root.resolve()
    for folder, names, found in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder)
        parents = {parent.resolve() for parent in (here, *here.parents)}
        for name in list(names):
            path = here / name
            leads_out = not follow_links and path.is_symlink() and not _inside(path, real)
            if leads_out or path.resolve() in parents:
                names.remove(name)
                yield _Entry(path.relative_to(root).as_posix(), _NO_FILE, "link-outside" if leads_out else "loop")
        for name in found:
            path = here / name
            leads_out = not follow_links and path.is_symlink() and path.exists() and not _inside(path, real)
            size = path.stat().st_size if path.is_file() else _NO_FILE
            yield _Entry(path.relative_to(root).as_posix(), size, "link-outside" if leads_out else None)


def _raise(error: OSError) -> None:
    # A folder that cannot be read would otherwise be left out without a word.
    raise error


def _inside(path: Path, real: Path) -> bool:
    return path.resolve().is_relative_to(real)


def _shown(path: str) -> str:
    # A file name need not be UTF-8; what goes into columns and records must.
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""Zip files of images: label = folder name."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace import urlpath
from headrace.shards.images.formats import names_image
from headrace.shards.imports.source import Input, Leftover, too_large


@dataclass(frozen=True, slots=True)
class ZipUnit:
    """A run of members of one zip file."""

    path: str
    members: tuple[tuple[str, int, int | None], ...]

    def read(self) -> Iterator[Input]:
        """Yield the members in order."""
        with zipfile.ZipFile(self.path) as archive:
            for name, size, label in self.members:
                yield too_large(name, size) or Input(name, archive.read(name), label)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipSource:
    """One zip file as a numbered list of inputs; no columns but the label, and nothing that is no input."""

    url: str
    members: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    kind: str = "zip"
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    not_read: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    num_lost: int = 0
    random_access: bool = True

    @property
    def num_inputs(self) -> int:
        """Images and what else is there."""
        return len(self.members)

    def identity(self) -> Iterator[Any]:
        """Yield name and size of each member."""
        yield from ([name, size] for name, size in self.members)

    def unit(self, positions: Sequence[int]) -> ZipUnit:
        """Return the inputs at these places."""
        labels = {name: number for number, name in enumerate(self.classes)}
        chosen = [self.members[position] for position in positions]
        path = str(urlpath.local_path(self.url))
        return ZipUnit(path, tuple((name, size, labels.get(name.rpartition("/")[0])) for name, size in chosen))


def open_zip(url: str) -> ZipSource:
    """Return the inputs of a zip file. Raises ValueError if it is none."""
    try:
        with zipfile.ZipFile(urlpath.local_path(url)) as archive:
            members = tuple((item.filename, item.file_size) for item in archive.infolist() if not item.is_dir())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{url}: not a zip file: {error}") from error
    folders = {name.rpartition("/")[0] for name, _ in members if names_image(name)} - {""}
    return ZipSource(url=url, members=members, classes=tuple(sorted(folders)))

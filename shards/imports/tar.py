"""Tars as inputs: WebDataset samples, or loose images one after the other.

A tar with any `.txt`, `.json` or `.cls` member is WebDataset. In loose tars each file is an input and its class is
the folder it lies in, or the synset of ImageNet's own names (`n01484850_17.JPEG`). The one thing a reader would get
wrong: loose images are not grouped, as webdataset's rule would merge `a.1.jpg` and `a.2.jpg` into one sample.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace import files
from headrace.shards.group import SampleColumns, SampleMembers, group_members, header_columns, read_columns
from headrace.shards.imports.source import Input, too_large
from headrace.shards.tar import TarMember, scan_tar
from headrace.shards.windows import Windows

_TEXT_EXTENSIONS = ("txt", "json", "cls")
_SYNSET = re.compile(r"(n\d{8})_(.+?)\.[^.]+")


@dataclass(frozen=True, slots=True)
class TarInput:
    """One input: its place, and its class where names give one."""

    name: str
    sample: SampleMembers
    label: int | None


@dataclass(frozen=True, slots=True)
class TarUnit:
    """A run of inputs, by tar."""

    parts: tuple[tuple[str, tuple[TarInput, ...]], ...]

    def read(self) -> Iterator[Input]:
        """Yield the inputs in order, each tar read forwards."""
        for url, inputs in self.parts:
            with Windows(url) as windows:
                for item in inputs:
                    yield _read(windows, item)


@dataclass(frozen=True, slots=True)
class TarSource:
    """The inputs of several tars, one after the other."""

    tars: tuple[tuple[str, tuple[TarInput, ...]], ...]
    classes: tuple[str, ...]
    kind: str = "tar"

    @property
    def url(self) -> str:
        """The first file."""
        return self.tars[0][0]

    @property
    def num_inputs(self) -> int:
        """Inputs of all tars."""
        return sum(len(inputs) for _, inputs in self.tars)

    def identity(self) -> Iterator[Any]:
        """Yield each tar's name and each input's name and members."""
        for url, inputs in self.tars:
            yield files.basename(url)
            for item in inputs:
                members = item.sample.members.items()
                yield [item.name, item.label, [[ext, member.offset, member.size] for ext, member in members]]

    def unit(self, start: int, stop: int) -> TarUnit:
        """Return inputs start..stop-1."""
        parts, base = [], 0
        for url, inputs in self.tars:
            part = inputs[max(0, start - base) : max(0, stop - base)]
            if part:
                parts.append((url, part))
            base += len(inputs)
        return TarUnit(tuple(parts))


def open_tars(urls: Sequence[str]) -> TarSource:
    """Scan the headers of the tars. Raises ShardError if one is damaged."""
    scanned = [(url, scan_tar(url)) for url in urls]
    loose_names = [member.name for _, members in scanned if not _is_webdataset(members) for member in members]
    classes = sorted({name for name in map(_class_name, loose_names) if name is not None})
    labels = {name: label for label, name in enumerate(classes)}
    tars = tuple((url, tuple(_inputs(url, members, labels))) for url, members in scanned)
    return TarSource(tars, tuple(classes))


def _inputs(url: str, members: Sequence[TarMember], labels: dict[str, int]) -> Iterator[TarInput]:
    if _is_webdataset(members):
        for sample in group_members(members, url):
            yield TarInput(sample.key, sample, None)
        return
    for member in members:
        if not member.name.rpartition("/")[2].startswith("."):
            label = labels.get(_class_name(member.name) or "")
            yield TarInput(member.name, SampleMembers(member.name, {"jpg": member}), label)


def _is_webdataset(members: Sequence[TarMember]) -> bool:
    return any(member.name.rpartition(".")[2].lower() in _TEXT_EXTENSIONS for member in members)


def _class_name(name: str) -> str | None:
    """Return the class that a loose image's name gives, or None."""
    folders, _, last = name.removeprefix("./").rpartition("/")
    if folders:
        return folders.rpartition("/")[2]
    match = _SYNSET.fullmatch(last)
    if match is None:
        return None
    return match.group(1) if match.group(2).isdigit() else f"{match.group(1)}_{match.group(2)}"


def _read(windows: Windows, item: TarInput) -> Input:
    image = item.sample.image
    if image is None:
        return Input(item.name, None, note="no image among its members")
    reject = too_large(item.name, image.size)
    if reject is not None:
        return reject
    # Loose images have one member; there is nothing else to read.
    columns = read_columns(windows, item.sample, with_image=False)
    data = windows.read(image.offset, image.size)
    return Input(
        name=item.name,
        image=data,
        label=columns.values.get("label", item.label),
        caption=columns.values.get("caption"),
        url=columns.values.get("url"),
        orientation=_orientation(columns, data),
        note="; ".join(message for _, message in columns.faults) or None,
    )


def _orientation(columns: SampleColumns, data: bytes) -> int | None:
    try:
        return columns.orientation_of(header_columns(data)) if columns.stated else None
    except ValueError:
        return None

"""Members of a tar -> samples, by webdataset's rule, and what the small members say.

A key is the name up to the first dot of its last part, folder included; consecutive members of one key are one
sample. The one thing a reader would get wrong: the rule is webdataset's own regular expression, so `._a.jpg`, names
without a dot and `__meta__` members are skipped here exactly as there.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.shards.errors import ShardError
from headrace.shards.images.formats import IMAGE_EXTENSIONS
from headrace.shards.images.header import read_header
from headrace.shards.tar import TarMember
from headrace.shards.windows import Windows

MAX_IMAGE_BYTES = 256 * 1024 * 1024
MAX_TEXT_BYTES = 16 * 1024 * 1024
_STEP_BYTES = 4 * 1024 * 1024

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")

# json keys that become columns, with the type each must have.
_JSON_COLUMNS = {"caption": str, "label": int, "uid": str, "url": str, "sha256": str}

# What a KEY.json of ours says of its image; another's `orientation` may mean anything.
_OWN_JSON = ("uid", "sha256", "width", "height", "format", "orientation")
_OWN_IMAGE = ("width", "height", "format")


@dataclass(frozen=True, slots=True)
class SampleMembers:
    """The members of one sample, by extension in lower case, in the tar's order."""

    key: str
    members: dict[str, TarMember]

    @property
    def image(self) -> TarMember | None:
        """The first member with the extension of an image; of `seg.png` and `jpg` the plain one."""
        for extension, member in self.members.items():
            if extension in IMAGE_EXTENSIONS:
                return member
        for extension, member in self.members.items():
            if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
                return member
        return None


@dataclass(slots=True)
class SampleColumns:
    """What one sample's members say; `faults` are (byte offset, message)."""

    values: dict[str, Any] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    stated: dict[str, Any] = field(default_factory=dict)
    """Size, format and orientation in a `.json` of ours; empty where there is none."""

    def orientation_of(self, header: Mapping[str, Any]) -> int | None:
        """Return the orientation that the `.json` states for an image of this header, or None.

        Curation cuts the EXIF, so of its images only the `.json` and the index still know.
        """
        agrees = self.stated and all(self.stated[name] == header.get(name) for name in _OWN_IMAGE)
        return int(self.stated["orientation"]) if agrees else None


def split_name(name: str) -> tuple[str, str] | None:
    """Return (key, extension in lower case), or None for a name that is no sample's."""
    if _META.match(name):
        return None
    match = _NAME.match(name)
    return (match.group(1), match.group(2).lower()) if match else None


def group_members(members: Iterable[TarMember], url: str) -> Iterator[SampleMembers]:
    """Yield samples in order. Raises ShardError where one sample has two members of one extension."""
    current: SampleMembers | None = None
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, extension = split
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = SampleMembers(key, {})
        if extension in current.members:
            raise ShardError(f"two members .{extension} in one sample", shard=url, key=key, offset=member.offset)
        current.members[extension] = member
    if current is not None:
        yield current


def read_columns(windows: Windows, sample: SampleMembers, *, with_image: bool = True) -> SampleColumns:
    """Read the image (crc32, header), `.txt`, `.json` and `.cls` of one sample, in the tar's order.

    `.txt` and `.cls` win over the same fact in `.json`. What cannot be understood is a fault, and null.
    """
    found = SampleColumns()
    by_extension: dict[str, dict[str, Any]] = {}
    image = sample.image
    for extension, member in sample.members.items():
        if member is image:
            if with_image:
                found.values.update(_read_image(windows, member, found.faults))
        elif extension in _READERS:
            try:
                by_extension[extension] = _READERS[extension](_read_text(windows, member), member, found)
            except ValueError as error:
                found.faults.append((member.offset, f".{extension}: {error}"))
    for extension in ("json", "cls", "txt"):
        found.values.update(by_extension.get(extension, {}))
    orientation = found.orientation_of(found.values)
    if orientation is not None:
        found.values["orientation"] = orientation
    return found


def header_columns(data: bytes) -> dict[str, Any]:
    """Return width, height, orientation, format of an image. Raises ValueError."""
    header = read_header(data)
    return {
        "width": header.width,
        "height": header.height,
        "orientation": header.orientation,
        "format": header.format,
    }


def _read_image(windows: Windows, member: TarMember, faults: list[tuple[int, str]]) -> dict[str, Any]:
    if member.size > MAX_IMAGE_BYTES:
        faults.append((member.offset, f"image of {member.size} bytes, over {MAX_IMAGE_BYTES}"))
        crc = 0
        for start in range(0, member.size, _STEP_BYTES):
            crc = zlib.crc32(windows.read(member.offset + start, min(_STEP_BYTES, member.size - start)), crc)
        return {"crc32": crc}
    data = windows.read(member.offset, member.size)
    columns: dict[str, Any] = {"crc32": zlib.crc32(data)}
    try:
        columns.update(header_columns(data))
    except ValueError as error:
        faults.append((member.offset, str(error)))
    return columns


def _read_text(windows: Windows, member: TarMember) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{member.size} bytes, over {MAX_TEXT_BYTES}")
    return windows.read(member.offset, member.size).decode("utf-8")


def _caption(text: str, _member: TarMember, _found: SampleColumns) -> dict[str, Any]:
    return {"caption": text}


def _label(text: str, _member: TarMember, _found: SampleColumns) -> dict[str, Any]:
    return {"label": _int64(int(text[:32]))}


def _json(text: str, member: TarMember, found: SampleColumns) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a mapping, got {type(record).__name__}")
    values = {}
    for name, kind in _JSON_COLUMNS.items():
        value = record.get(name)
        if value is None:
            continue
        try:
            values[name] = _typed(value, kind)
        except ValueError as error:
            found.faults.append((member.offset, f".json: {name}: {error}"))
    if all(name in record for name in _OWN_JSON) and record["orientation"] in range(1, 9):
        found.stated = {name: record[name] for name in (*_OWN_IMAGE, "orientation")}
    return values


def _typed(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"expected {kind.__name__}, got {str(value)[:80]!r}")
    if isinstance(value, str):
        value.encode()  # a lone surrogate, legal in JSON, is no UTF-8; UnicodeEncodeError is a ValueError
        return value
    return _int64(int(value))


def _int64(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("over 64 bits")
    return value


_READERS = {"txt": _caption, "cls": _label, "json": _json}

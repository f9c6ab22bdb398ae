"""What the members of one sample say: the image's crc32 and header, `.txt`, `.cls`, `.json`.

Each member is read by itself, so that a tar is read once, forwards, whatever its members turn out to belong to. What
cannot be understood is a fault and null, never a guess; values that mean "none" in JSON (null, NaN) are null without a
fault.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.shards.group import TEXT_KINDS, Kind, SampleMembers
from headrace.shards.images.formats import names_image
from headrace.shards.images.header import read_header
from headrace.shards.tar import TarMember
from headrace.shards.windows import Windows

MAX_IMAGE_BYTES = 256 * 1024 * 1024
MAX_TEXT_BYTES = 16 * 1024 * 1024
_BYTE_ORDER_MARK = "\ufeff"
_STEP_BYTES = 4 * 1024 * 1024

LABEL_TEXT = "label_text"
"""Column of a label that is no number: the name of a class."""

# What is measured or made here; in the json of others these names mean what they may.
_MEASURED = ("key", "offset", "size", "crc32", "width", "height", "orientation", "format", LABEL_TEXT)
_TEXT_COLUMNS = ("uid", "url", "sha256")

# What a KEY.json of ours says of its image; another's `orientation` may mean anything.
_OWN_JSON = ("uid", "sha256", "width", "height", "format", "orientation")
_OWN_IMAGE = ("width", "height", "format")


@dataclass(slots=True)
class Facts:
    """What members say; `faults` are (byte offset, message)."""

    values: dict[str, Any] = field(default_factory=dict)
    """Columns of the index."""
    extras: dict[str, Any] = field(default_factory=dict)
    """More columns: what else stands in a `.json`."""
    left_out: list[str] = field(default_factory=list)
    """Names in a `.json` whose values are lists or mappings."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    stated: dict[str, Any] = field(default_factory=dict)
    """Size, format and orientation in a `.json` of ours; empty where there is none."""

    def orientation_of(self, header: Mapping[str, Any]) -> int | None:
        """Return the orientation that the `.json` states for an image of this header, or None.

        Curation cuts the EXIF, so of its images only the `.json` and the index still know.
        """
        agrees = self.stated and all(self.stated[name] == header.get(name) for name in _OWN_IMAGE)
        return int(self.stated["orientation"]) if agrees else None


def read_member(windows: Windows, member: TarMember) -> Facts | None:
    """Read what a member says by its last extension; None where nothing here reads it."""
    if names_image(member.name):
        return read_image(windows, member)
    kind = TEXT_KINDS.get(member.name.rpartition(".")[2].lower())
    return None if kind is None or member.link else read_text(windows, member, kind)


def read_sample_facts(windows: Windows, sample: SampleMembers, beside: Facts | None = None) -> Facts:
    """Read the small members of one sample, in the tar's order; `beside` as for `join_facts`."""
    found: dict[int, Facts] = {}
    for kind, member in sorted(sample.texts.items(), key=lambda item: item[1].offset):
        found[member.offset] = read_text(windows, member, kind)
    return join_facts(sample, found, beside)


def join_facts(sample: SampleMembers, by_offset: Mapping[int, Facts], beside: Facts | None = None) -> Facts:
    """Return what the members of one sample say together, from what each says.

    `.txt` and `.cls` win over the same fact in `.json`, and all of them over what a table says beside the tar.
    """
    joined = Facts()
    members = [sample.texts[kind] for kind in ("facts", "label", "caption") if kind in sample.texts]
    if sample.image is not None and sample.image.offset in by_offset:
        members.insert(0, sample.image)
    for facts in (*([] if beside is None else [beside]), *(by_offset[member.offset] for member in members)):
        if LABEL_TEXT in facts.values or "label" in facts.values:
            for name in ("label", LABEL_TEXT):
                joined.values.pop(name, None)
        joined.values.update(facts.values)
        joined.extras.update(facts.extras)
        joined.left_out.extend(facts.left_out)
        joined.faults.extend(facts.faults)
        joined.stated.update(facts.stated)
    joined.faults.sort()
    orientation = joined.orientation_of(joined.values)
    if orientation is not None:
        joined.values["orientation"] = orientation
    return joined


def header_columns(data: bytes) -> dict[str, Any]:
    """Return width, height, orientation, format of an image. Raises ValueError."""
    header = read_header(data)
    return {
        "width": header.width,
        "height": header.height,
        "orientation": header.orientation,
        "format": header.format,
    }


def read_image(windows: Windows, member: TarMember) -> Facts:
    """Return crc32 and header of an image."""
    if member.size > MAX_IMAGE_BYTES:
        crc = 0
        for start in range(0, member.size, _STEP_BYTES):
            crc = zlib.crc32(windows.read(member.offset + start, min(_STEP_BYTES, member.size - start)), crc)
        fault = f"image of {member.size} bytes, over {MAX_IMAGE_BYTES}"
        return Facts({"crc32": crc}, faults=[(member.offset, fault)])
    data = windows.read(member.offset, member.size)
    facts = Facts({"crc32": zlib.crc32(data)})
    try:
        facts.values.update(header_columns(data))
    except ValueError as error:
        facts.faults.append((member.offset, str(error)))
    return facts


def read_text(windows: Windows, member: TarMember, kind: Kind) -> Facts:
    """Return what a small member says."""
    try:
        if member.size > MAX_TEXT_BYTES:
            raise ValueError(f"{member.size} bytes, over {MAX_TEXT_BYTES}")
        text = windows.read(member.offset, member.size).decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
        if kind == "caption":
            caption = caption_of(text)
            return Facts({} if caption is None else {"caption": caption})
        return _label(text) if kind == "label" else _json(text, member)
    except ValueError as error:
        extension = member.name.rpartition("/")[2].rpartition(".")[2].lower()
        return Facts(faults=[(member.offset, f".{extension}: {error}")])


def caption_of(text: str) -> str | None:
    """Return the caption that a text is, or None: img2dataset writes an empty `.txt` where there is none."""
    text = text.removeprefix(_BYTE_ORDER_MARK)
    return text if text.strip() else None


def label_of(value: Any) -> tuple[int | None, str | None]:
    """Return (label, name of its class), one of them: 3.0 and "3" are numbers, "cat" is a name. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected int or the name of a class, got {str(value)[:80]!r}")
    if isinstance(value, int):
        return _int64(value), None
    if isinstance(value, str):
        text = value.strip()
        if any(letter.isalpha() for letter in text) and text.lower() not in ("nan", "inf", "infinity"):
            text.encode()  # a lone surrogate, legal in JSON, is no UTF-8; UnicodeEncodeError is a ValueError
            return None, text
        if text.lstrip("+-").isdecimal():
            return _int64(int(text[:32])), None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"expected int or the name of a class, got {str(value)[:80]!r}")
    return _int64(int(number)), None


def _label(text: str) -> Facts:
    label, name = label_of(text)
    return Facts({"label": label} if name is None else {LABEL_TEXT: name})


def _json(text: str, member: TarMember) -> Facts:
    try:
        record = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a mapping, got {type(record).__name__}")
    facts = facts_of(record, where=".json", offset=member.offset)
    if all(name in record for name in _OWN_JSON) and record["orientation"] in range(1, 9):
        facts.stated = {name: record[name] for name in (*_OWN_IMAGE, "orientation")}
    return facts


def facts_of(record: Mapping[str, Any], *, where: str, offset: int = 0) -> Facts:
    """Return what the entries of a record say; its faults name `where` it stands, and the byte offset there."""
    facts = Facts()
    for name, value in record.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        try:
            _take(facts, name, value)
        except ValueError as error:
            facts.faults.append((offset, f"{where}: {name[:80]}: {error}"))
    text = facts.extras.get("text")
    if "caption" not in facts.values and isinstance(text, str) and caption_of(text) is not None:
        facts.values["caption"] = caption_of(text)
    return facts


def _take(facts: Facts, name: str, value: Any) -> None:
    """Put one entry of a `.json` where it belongs. Raises ValueError."""
    if name in _MEASURED:
        return
    if name == "label":
        label, text = label_of(value)
        facts.values["label" if text is None else LABEL_TEXT] = label if text is None else text
    elif name == "caption" and isinstance(value, str):
        caption = caption_of(_text(value))
        if caption is not None:
            facts.values["caption"] = caption
    elif name == "caption" and isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        facts.values["caption"] = _text(value[0])
        if len(value) > 1:
            facts.extras["captions"] = [_text(item) for item in value]
    elif name == "captions" and isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        facts.extras["captions"] = [_text(item) for item in value]
    elif name == "caption" or name in _TEXT_COLUMNS:
        facts.values[name] = _text(value)
    elif isinstance(value, list | dict) or not name:
        facts.left_out.append(name)
    else:
        _text(name)
        facts.extras[name] = _text(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected str, got {str(value)[:80]!r}")
    value.encode()
    return value


def _int64(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("over 64 bits")
    return value

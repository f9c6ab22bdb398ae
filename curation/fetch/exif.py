"""The Exif fields of an image as JSON: names of the standard, values as numbers, text and lists.

Whatever stands there is data of strangers: damage and oversize give null, never an error.
"""

import math
import warnings
from functools import cache
from typing import Any

from PIL import ExifTags, Image

from headrace.config import canonical_json
from headrace.shards.images.pillow import open_image

MAX_JSON_CHARS = 1 << 16
MAX_VALUES = 1024
_BLOCKS = {"Exif": ExifTags.IFD.Exif, "GPS": ExifTags.IFD.GPSInfo}


def exif_json(data: bytes, image_format: str) -> str | None:
    """Return the Exif fields of an image as JSON; null where it has none, or none that can be read."""
    try:
        _silence_pillow()
        with open_image(image_format, data) as image:
            fields = _fields(image)
    except Exception:  # noqa: BLE001  Pillow raises SyntaxError, KeyError, struct.error, ... for damaged Exif
        return None
    text = canonical_json(fields) if fields else None
    return text if text is None or len(text) <= MAX_JSON_CHARS else None


@cache
def _silence_pillow() -> None:
    """Keep Pillow's warnings of damaged fields from the terminal: there may be one for every image."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _fields(image: Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    fields = {ExifTags.TAGS.get(tag, f"0x{tag:04x}"): _plain(value) for tag, value in exif.items()}
    for name, block in _BLOCKS.items():
        names = ExifTags.GPSTAGS if name == "GPS" else ExifTags.TAGS
        for tag, value in exif.get_ifd(block).items():
            fields[names.get(tag, f"{name} 0x{tag:04x}")] = _plain(value)
    return {name: value for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; null for what it cannot."""
    if isinstance(value, bool | int | str):
        return value.replace("\0", "").encode("utf-8", "replace").decode() if isinstance(value, str) else value
    if isinstance(value, bytes):
        return value.hex() if len(value) <= MAX_VALUES else None
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value[:MAX_VALUES]]
    try:
        number = float(value)  # a fraction
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None

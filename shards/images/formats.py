"""The image formats that are read: the one table of their names and of the extensions that files of them bear."""

from types import MappingProxyType

_SPELLINGS = {
    "jpeg": ("jpg", "jpeg", "jpe", "jfif"),
    "png": ("png",),
    "webp": ("webp",),
    "gif": ("gif",),
    "bmp": ("bmp", "dib"),
    "tiff": ("tif", "tiff"),
    "avif": ("avif",),
}

FORMATS = tuple(_SPELLINGS)
"""Names of the formats, as headers and indexes spell them."""

EXTENSIONS = MappingProxyType({name: spellings[0] for name, spellings in _SPELLINGS.items()})
"""Format -> the extension that is written, without a dot."""

IMAGE_EXTENSIONS = tuple(extension for spellings in _SPELLINGS.values() for extension in spellings)
"""All extensions in lower case that announce an image; what the file really is, its header says."""


def names_image(name: str) -> bool:
    """True if a path ends in the extension of an image, in any case; a hidden file (`._a.jpg` of macOS) is none."""
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and not stem.startswith(".") and extension.lower() in IMAGE_EXTENSIONS

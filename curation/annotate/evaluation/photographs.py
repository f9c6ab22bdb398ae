"""Photographs of a folder or a tar, upright, one at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from headrace import files, urlpath
from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.decode import decode
from headrace.curation.annotate.evaluation.known_boxes import Marked
from headrace.shards.images.formats import names_image
from headrace.shards.payloads import read_payloads
from headrace.shards.tar import scan_tar


@dataclass(frozen=True, slots=True)
class Photograph:
    """One image, or why it cannot be read."""

    name: str
    pixels: Pixels | None
    error: str
    total: int
    """How many there are in all."""


def nothing_marked() -> Marked:
    """Return that no face is marked."""
    return Marked(np.zeros((0, 4), np.float32), np.zeros(0, np.bool_))


def photographs(url: str, marked: Mapping[str, Marked] | None = None, *, every: int = 1) -> Iterator[Photograph]:
    """Yield the images below a folder or in a tar, in the order of their names; with `marked` those that it names.

    Raises ValueError if there are none, or if a marked one is not there.
    """
    places = _of_tar(url) if url.endswith(".tar") else _of_folder(url, marked)
    names = sorted(places if marked is None else marked)
    missing = [name for name in names if name not in places]
    if missing or not names:
        raise ValueError(
            f"{url}: no image {missing[0]!r}, which the annotations name ({len(missing)} of {len(names)} are missing)"
            if missing
            else f"{url}: no images; expected a folder or a tar of them"
        )
    names = names[::every]
    for name in names:
        decoded = decode(_read(url, places[name]))
        yield Photograph(name, decoded.pixels, decoded.error or "", len(names))


def _of_tar(url: str) -> dict[str, tuple[int, int] | str]:
    return {member.name: (member.offset, member.size) for member in scan_tar(url) if names_image(member.name)}


def _of_folder(url: str, marked: Mapping[str, Marked] | None) -> dict[str, tuple[int, int] | str]:
    if marked is not None:
        return {name: urlpath.join(url, name) for name in marked if files.exists(urlpath.join(url, name))}
    if not urlpath.is_local(url):
        return {name: urlpath.join(url, name) for name, _ in files.walk_remote(url) if names_image(name)}
    root = urlpath.local_path(url)
    paths = [path for path in root.rglob("*") if path.is_file() and names_image(path.name)]
    return {path.relative_to(root).as_posix(): str(path) for path in paths}


def _read(url: str, place: tuple[int, int] | str) -> bytes:
    return files.read_bytes(place) if isinstance(place, str) else read_payloads(url, [place])[0]

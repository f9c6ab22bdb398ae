"""Pictures of evaluation images, which lie outside the job: read from where the recipe says, faces looked for here.

Nobody annotated them, so one is shown only if the job's own face detector has looked at it, or if the recipe says that
all pictures may be shown.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace import urlpath
from headrace.curation.blur import blur_boxes
from headrace.curation.report.pictures import Thumbnail, thumbnail
from headrace.curation.select.evaluation import EvaluationSet, Part, find_parts, read_part
from headrace.shards.images.decode import decode_rgb
from headrace.shards.payloads import read_payloads

log = logging.getLogger(__name__)

FindFaces = Callable[[NDArray[np.uint8]], Sequence[Sequence[float]] | None]
"""Boxes of the faces in upright RGB pixels; None if they could not be looked for."""


def reference_pictures(
    sets: Iterable[EvaluationSet], names: Iterable[str], pixels: int, find_faces: FindFaces | None, *, all_shown: bool
) -> dict[str, Thumbnail]:
    """Return SET/NAME -> thumbnail of those that are there and may be shown, at most `pixels` a side."""
    found: dict[str, Thumbnail] = {}
    if find_faces is None and not all_shown:
        return found
    for item in sets:
        wanted = {name[len(item.name) + 1 :] for name in names if name.startswith(f"{item.name}/")}
        if not wanted:
            continue
        try:
            for name, data in _read(item.url, wanted):
                made = _thumbnail(data, pixels, find_faces, all_shown=all_shown)
                if made is not None:
                    found[f"{item.name}/{name}"] = Thumbnail(made, f"{item.name}/{name}", "")
        except (OSError, ValueError) as error:
            log.warning("evaluation set %s: its pictures are not shown: %s", item.name, error)
    return found


def _read(url: str, wanted: set[str]) -> Iterable[tuple[str, bytes]]:
    for part in find_parts(url):
        if part.row_group >= 0:
            prefix = f"{urlpath.basename(part.url)}/{part.row_group}/"
            if any(name.startswith(prefix) for name in wanted):
                yield from ((name, data) for name, data in read_part(part) if name in wanted)
        elif part.spans:
            some = [(name, span) for name, span in zip(part.names, part.spans, strict=True) if name in wanted]
            if some:
                payloads = read_payloads(part.url, [span for _, span in some])
                yield from zip((name for name, _ in some), payloads, strict=True)
        elif part.names[0] in wanted:
            yield from read_part(Part(part.url, part.names))


def _thumbnail(data: bytes, pixels: int, find_faces: FindFaces | None, *, all_shown: bool) -> bytes | None:
    try:
        image = decode_rgb(data)
        boxes = find_faces(image) if find_faces is not None else None
    except ValueError:
        return None
    if boxes is None and not all_shown:
        return None
    return thumbnail(blur_boxes(image, boxes or []), pixels)

"""Search an image whole, and again by overlapping tiles, so that small faces of a large image are large enough."""

from collections.abc import Callable, Iterator

import numpy as np

from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.detectors.boxes import Found, best_of_overlapping
from headrace.curation.annotate.detectors.combine import joined

# A face up to this share of a tile is whole in one tile at least; larger ones are found in the whole image.
SHARED = 0.25
# A box that comes so near to a border inside the image is cut by it: the next tile has all of it.
BORDER = 0.01


def search_by_tiles(
    pixels: Pixels, whole: Found, search: Callable[[Pixels], Found], *, tile_pixels: int, overlap: float
) -> Found:
    """Return the faces of `whole` and of all tiles, as fractions of the image; of two that overlap the better.

    Where there are no scores the whole image goes first, then the tiles in reading order.
    """
    height, width = pixels.shape[:2]
    parts = [whole]
    for top, left in _corners(height, width, tile_pixels):
        tile = np.ascontiguousarray(pixels[top : top + tile_pixels, left : left + tile_pixels])
        parts.append(_placed(search(tile), tile, (left, top), (width, height)))
    found = best_of_overlapping(joined(parts), overlap)
    return found if whole.scores is not None else Found(boxes=found.boxes, scores=None)


def _corners(height: int, width: int, tile: int) -> Iterator[tuple[int, int]]:
    """Yield (top, left) of each tile; none if one would be the whole image."""
    if max(height, width) > tile:
        yield from ((top, left) for top in _starts(height, tile) for left in _starts(width, tile))


def _starts(side: int, tile: int) -> list[int]:
    step = max(1, int(tile * (1 - SHARED)))
    last = max(0, side - tile)
    return [*range(0, last, step), last]


def _placed(found: Found, tile: Pixels, corner: tuple[int, int], size: tuple[int, int]) -> Found:
    """Return boxes of a tile as fractions of the image, without those that the tile cuts."""
    part = np.array([tile.shape[1], tile.shape[0]], np.float32)
    first = np.array(corner, np.float32)
    inside_before, inside_after = first > 0, first + part < np.array(size)
    cut = (inside_before & (found.boxes[:, :2] < BORDER)) | (inside_after & (found.boxes[:, 2:] > 1 - BORDER))
    kept = found.take(np.flatnonzero(~cut.any(axis=1)))
    whole = np.array(size, np.float32)
    boxes = (kept.boxes * np.tile(part, 2) + np.tile(first, 2)) / np.tile(whole, 2)
    return Found(
        boxes=np.asarray(boxes, np.float32),
        scores=kept.scores,
        landmarks=None if kept.landmarks is None else np.asarray((kept.landmarks * part + first) / whole, np.float32),
    )

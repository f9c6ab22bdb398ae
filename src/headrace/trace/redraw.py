"""The pictures of some positions once more, by the code that made them in the run: gate, decoder, windows, colours.

What a run saw is a function of its mixture and the position, so it is not kept anywhere: it is made again. A damaged
sample is found damaged again, and replaced as it was.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.views import view_windows
from headrace.pipeline.chunks import ChunkReader, Payload
from headrace.pipeline.decode import make_decoder
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.order.plan import BatchPlan
from headrace.pipeline.pictures import MadeRow, PictureMaker
from headrace.pipeline.quarantine import DamagedSample
from headrace.pipeline.state import with_choices
from headrace.shards.images.decode import decode_rgb
from headrace.shards.ranges import RangeReader
from headrace.trace.lookup import Opened

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

PICTURES_AT_ONCE = 64
"""Positions whose pictures are held at the same time."""
SHOWN_VIEWS = 4
SIDE_PIXELS = 160
QUALITY = 80
NOTHING: Mapping[int, int] = MappingProxyType({})
FRAMES = ("#e6194b", "#4363d8", "#3cb44b", "#f58231")
"""A colour for the window of each view that is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Redrawn:
    """What was given at one position, made again."""

    position: int
    key: str
    """Of the sample whose picture it is."""
    damaged: tuple[DamagedSample, ...]
    """The position's own sample if it is damaged, then replacements that are damaged too."""
    picture: bytes = b""
    """JPEG: the original with the windows of the views drawn in, then each view. Empty: none was asked for."""
    windows: tuple[Window, ...] = ()
    """Of each view, in upright pixels of the original."""


class Redrawer:
    """Makes pictures again; use it in `with`."""

    def __init__(self, opened: Opened, stack: contextlib.ExitStack) -> None:
        self._opened = opened
        mixture = with_choices(dataclasses.replace(opened.history.mixture, quarantine=""), opened.identity)
        ranges = RangeReader(mixture.patience)
        self._reader = ChunkReader(opened.sources, ranges, io_threads=mixture.io_threads, verify_crc=mixture.verify_crc)
        stack.callback(self._reader.close)
        decoder = make_decoder(mixture, "cpu")
        stack.callback(decoder.close)
        self._maker = PictureMaker(mixture, opened.plan, self._reader, decoder)
        self._windows = view_windows(mixture)
        self._max_pixels = mixture.max_pixels

    def redraw(
        self, positions: Sequence[int], given: Mapping[int, int] = NOTHING, *, pictures: bool = True
    ) -> Iterator[Redrawn]:
        """Yield what each of ascending `positions` of one step gave. Raises ReadError where data is out of reach.

        `given` says which sample stood in for the planned one, by position, where that is known.
        """
        for start in range(0, len(positions), PICTURES_AT_ONCE):
            yield from self._some(list(positions[start : start + PICTURES_AT_ONCE]), given, pictures=pictures)

    def _some(self, positions: list[int], given: Mapping[int, int], *, pictures: bool) -> Iterator[Redrawn]:
        plan = self._plan(positions)
        own = self._read(plan, given)
        views = self._maker.empty(plan)
        made: dict[int, MadeRow] = {}
        size = max(1, self._maker.decoder.items_per_call)
        parts = [range(start, min(start + size, len(positions))) for start in range(0, len(positions), size)]
        with ThreadPoolExecutor(self._maker.decoder.calls_at_once) as pool:
            for some in pool.map(lambda rows: self._maker.fill(plan, {row: own[row] for row in rows}, views), parts):
                made |= some
        for row, position in enumerate(positions):
            damaged = tuple(made[row].damaged)
            if not pictures:
                yield Redrawn(position=position, key=made[row].key, damaged=damaged)
                continue
            payload = own[row] if not damaged else self._replacement(plan, row, len(damaged))
            windows, picture = self._picture(position, payload, [np.asarray(view[row]) for view in views])
            yield Redrawn(position=position, key=made[row].key, damaged=damaged, picture=picture, windows=windows)

    def _plan(self, positions: list[int]) -> BatchPlan:
        position = np.array(positions, np.int64)
        part = self._opened.plan.timeline.part_at(positions[0])
        return BatchPlan(position, np.ones(len(positions), np.bool_), self._opened.placed(position), part)

    def _read(self, plan: BatchPlan, given: Mapping[int, int]) -> dict[int, Payload]:
        result: dict[int, Payload] = {}
        places = zip(plan.position.tolist(), plan.placed.sample.tolist(), strict=True)
        sample = np.array([given.get(position, planned) for position, planned in places], np.int64)
        for source in np.unique(plan.placed.source).tolist():
            rows = np.flatnonzero(plan.placed.source == source)
            samples = sample[rows]
            found = self._reader.read(source, np.unique(samples))
            result |= {row: found[sample] for row, sample in zip(rows.tolist(), samples.tolist(), strict=True)}
        return result

    def _replacement(self, plan: BatchPlan, row: int, steps: int) -> Payload:
        sample = self._opened.plan.replacement(plan, row, steps)
        return self._reader.read(int(plan.placed.source[row]), np.array([sample], np.int64))[sample]

    def _picture(self, position: int, payload: Payload, views: list[Pixels]) -> tuple[tuple[Window, ...], bytes]:
        try:
            if payload.fault is not None:
                raise payload.fault
            orientation = int(payload.rows.orientation[payload.row])
            header = admit(payload.data, orientation=orientation, max_pixels=self._max_pixels)
            pixels = decode_rgb(payload.data, max_pixels=self._max_pixels, header=header)
        except ValueError as error:  # as many damaged ones in a row as stop a run
            log.info("position %d: no picture: %s", position, error)
            return (), b""
        windows = tuple(choose(position, *pixels.shape[:2]) for choose in self._windows)
        return windows, _composed(pixels, windows, views)


@contextlib.contextmanager
def open_redrawer(opened: Opened) -> Iterator[Redrawer]:
    """Open what makes pictures of a history again."""
    with contextlib.ExitStack() as stack:
        yield Redrawer(opened, stack)


def _composed(original: Pixels, windows: Sequence[Window], views: Sequence[Pixels]) -> bytes:
    """Return one JPEG: the original, small, with the windows drawn in; beside it the views."""
    image = Image.fromarray(original)
    high, wide = original.shape[:2]
    image.thumbnail((2 * SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.LANCZOS)
    draw, scale = ImageDraw.Draw(image), image.width / wide
    for window, colour in zip(windows[:SHOWN_VIEWS], FRAMES, strict=False):
        left, top = window.left * scale, window.top * (image.height / high)
        right = (window.left + window.width) * scale - 1
        bottom = (window.top + window.height) * (image.height / high) - 1
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
    squares = [Image.fromarray(view).resize((SIDE_PIXELS, SIDE_PIXELS)) for view in views[:SHOWN_VIEWS]]
    sheet = Image.new("RGB", (image.width + sum(4 + SIDE_PIXELS for _ in squares), SIDE_PIXELS), "#808080")
    sheet.paste(image, (0, (SIDE_PIXELS - image.height) // 2))
    for number, (square, colour) in enumerate(zip(squares, FRAMES, strict=False)):
        left = image.width + 4 + number * (4 + SIDE_PIXELS)
        sheet.paste(square, (left, 0))
        if len(squares) > 1:
            ImageDraw.Draw(sheet).rectangle((left, 0, left + SIDE_PIXELS - 1, SIDE_PIXELS - 1), outline=colour, width=2)
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()

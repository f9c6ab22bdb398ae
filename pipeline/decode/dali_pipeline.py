"""The one DALI pipeline: compressed JPEGs and windows in, squares out, on the CPU or a CUDA device.

The device is one word in it (`mixed` or `cpu`). Each picture is decoded once, the box that holds its windows; each view
is a slice of that, resized (the filter widened when shrinking), mirrored, and padded. DALI stops the whole run at one
picture that it cannot read, and after errors of another kind the next run may end the process.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.config import Interpolation
from headrace.text import one_line

Ints = NDArray[np.int32]

TAIL_PIXELS = 8
"""Side of the square at the end of each box that is given back: see `dali_feed`."""
_REFUSED = re.compile(r"Failed to decode sample #(\d+)|nvImageCodec failure")

PATTERN_ROWS, PATTERN_COLUMNS = 16, 32
"""Of the part near the end of each box that is given back too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSettings:
    """What is the same for every picture of a view."""

    side: int
    """Of its square, pixels."""
    interpolation: Interpolation = "bilinear"
    fill: int | None = None
    """None: windows are stretched over the square. Else they keep their ratio, this level beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a pipeline is made with."""

    views: tuple[ViewSettings, ...]
    most_items: int
    """Pictures in a run, at most."""
    threads: int
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    hw_decoder_load: float = 0.0
    """Share of a run that the hardware decoder of a CUDA device gets."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One run. Windows and tails are within the box, boxes within the picture as stored: that was checked."""

    jpegs: Sequence[NDArray[np.uint8]]
    boxes: Ints
    """[B, 4]: top, left, height, width."""
    tails: Ints
    """[B, 2]: top and left, within the box."""
    patterns: Ints
    """[B, 2]: top and left, within the box."""
    windows: Ints
    """[V, B, 4]: top, left, height, width, within the box."""
    mirrored: Ints
    """[V, B, 2]: 1 = left-right, 1 = up-down, after the resize."""
    insides: Ints
    """[V, B, 4]: where in its square a window comes to lie: top, left, height, width."""

    def __len__(self) -> int:
        return len(self.jpegs)

    def at(self, rows: Sequence[int]) -> "Feed":
        """Return some of it."""
        jpegs = [self.jpegs[row] for row in rows]
        by_view = (self.windows[:, rows], self.mirrored[:, rows], self.insides[:, rows])
        return Feed(jpegs, self.boxes[rows], self.tails[rows], self.patterns[rows], *by_view)


@dataclass(frozen=True, slots=True)
class Fed:
    """What came of a run, valid until the next."""

    squares: list[Any]
    """For each view [B, S, S, 3], where the pipeline has them."""
    tails: NDArray[np.uint8]
    """[B, 8, 8, 3], on the host."""
    patterns: NDArray[np.uint8]
    """[B, 16, 32, 3], on the host."""


class DaliPipeline:
    """A pipeline that is built. One thread runs it at a time."""

    def __init__(self, settings: Settings) -> None:
        self._views = settings.views
        self._pipeline = _define(settings)
        self._pipeline.build()

    def run(self, feed: Feed) -> Fed:
        """Decode. Raises RuntimeError: `refusal_of` tells if a picture cannot be decoded, or this is broken."""
        inputs: dict[str, Any] = {
            "jpegs": list(feed.jpegs),
            "start": _own(feed.boxes[:, :2]),
            "shape": _own(feed.boxes[:, 2:]),
            "tail": _own(feed.tails),
            "pattern": _own(feed.patterns),
        }
        for view, settings in enumerate(self._views):
            inputs[f"start{view}"] = _own(feed.windows[view, :, :2])
            inputs[f"shape{view}"] = _own(feed.windows[view, :, 2:])
            inputs[f"across{view}"] = _own(feed.mirrored[view, :, 0])
            inputs[f"down{view}"] = _own(feed.mirrored[view, :, 1])
            if settings.fill is not None:
                inputs[f"size{view}"] = feed.insides[view, :, 2:].astype(np.float32)
                inputs[f"corner{view}"] = _own(-feed.insides[view, :, :2])
        *squares, tails, patterns = self._pipeline.run(**inputs)
        on_host = [np.asarray(part.as_cpu().as_tensor()) for part in (tails, patterns)]
        return Fed([view.as_tensor() for view in squares], *on_host)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why DALI stopped a run."""

    text: str
    place: int | None
    """Which picture of the run it names, if it names one."""
    is_pictures: bool
    """True if a picture cannot be decoded, and nothing else is wrong."""


def refusal_of(error: RuntimeError, num_items: int) -> Refusal:
    """Return what DALI's error says of a run of so many pictures."""
    text = one_line(str(error).partition("encountered:\n")[2].partition("Current pipeline")[0] or str(error))
    named = _REFUSED.search(text)
    place = int(named[1]) if named is not None and named[1] is not None else num_items
    return Refusal(text, place if place < num_items else None, named is not None)


@cache
def dali_fault(device: str = "cpu") -> str:
    """Return why `dali` cannot be used on a device; empty if it can. It decodes one small picture there, once."""
    import simplejpeg

    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        return f"not installed ({one_line(str(error))}); pip install 'headrace[dali]'"
    jpeg = np.frombuffer(simplejpeg.encode_jpeg(np.full((32, 48, 3), 90, np.uint8)), np.uint8)
    whole = np.array([[0, 0, 32, 48]], np.int32)
    none = np.zeros((1, 1, 2), np.int32)
    feed = Feed([jpeg], whole, none[0], none[0], whole[None], none, whole[None])
    views = (ViewSettings(side=16),)
    try:
        fed = DaliPipeline(Settings(views=views, most_items=1, threads=1, device=device)).run(feed)
    except RuntimeError as error:
        return f"does not work on {device}: {one_line(str(error))}"
    worst = int(np.abs(fed.patterns.astype(int) - 90).max())
    return f"does not work on {device}: a grey picture came out {worst} levels off" if worst > 2 else ""


def dali_version() -> str:
    """Return DALI's version, for people."""
    import nvidia.dali

    return str(nvidia.dali.__version__)


def _define(settings: Settings) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    on_cuda = settings.device != "cpu"
    decoding = {"device": "mixed", "hw_decoder_load": settings.hw_decoder_load} if on_cuda else {"device": "cpu"}

    filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}

    def numbers(name: str, ndim: int, dtype: Any = types.INT32) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim)

    # One run at a time, nothing ahead: what is fed is what comes out, and an error is that of this run.
    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=settings.most_items,
        num_threads=settings.threads,
        device_id=int(settings.device.partition(":")[2]) if on_cuda else None,
        prefetch_queue_depth=1,
    )
    def define() -> tuple[Any, ...]:
        jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
        box = fn.decoders.image_slice(
            jpegs,
            start=numbers("start", 1),
            shape=numbers("shape", 1),
            axis_names="HW",
            output_type=types.RGB,
            adjust_orientation=False,
            **decoding,
        )
        squares = []
        for number, view in enumerate(settings.views):
            square = (view.side, view.side)
            start, shape = numbers(f"start{number}", 1), numbers(f"shape{number}", 1)
            cut = fn.slice(box, start=start, shape=shape, axis_names="HW")
            size = square if view.fill is None else numbers(f"size{number}", 1, types.FLOAT)
            resized = fn.resize(cut, size=size, interp_type=filters[view.interpolation], antialias=True)
            across, down = numbers(f"across{number}", 0), numbers(f"down{number}", 0)
            turned = fn.flip(resized, horizontal=across, vertical=down)
            if view.fill is not None:
                padding: dict[str, Any] = {"out_of_bounds_policy": "pad", "fill_values": float(view.fill)}
                corner = numbers(f"corner{number}", 1)
                turned = fn.slice(turned, start=corner, shape=square, axis_names="HW", **padding)
            squares.append(turned)
        tail = fn.slice(box, start=numbers("tail", 1), shape=(TAIL_PIXELS, TAIL_PIXELS), axis_names="HW")
        shape = (PATTERN_ROWS, PATTERN_COLUMNS)
        pattern = fn.slice(box, start=numbers("pattern", 1), shape=shape, axis_names="HW")
        return (*squares, tail, pattern)

    return define()


def _own(numbers: Ints) -> Ints:
    return np.ascontiguousarray(numbers, np.int32)

"""What is decoded of a JPEG by region is, bit for bit, that part of the whole; and no file brings it down."""

import io
import random
import sys
from collections.abc import Iterator
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from numpy.typing import NDArray
from PIL import Image, ImageFile

from headrace.pipeline.decode import region
from headrace.pipeline.decode.region import Box, Decoded, decode_region, decode_whole
from headrace.pipeline.decode.resize import Inside
from headrace.shards.images.header import read_header

KINDS = ("grey", "444", "422", "420", "411", "440", "rgb")

needs_regions = pytest.mark.skipif(bool(region.region_fault()), reason=region.region_fault())


def dirty(num_bytes: int) -> NDArray[np.uint8]:
    """Return memory that is not zero: a row that nobody wrote is seen."""
    return np.full(num_bytes, 123, np.uint8)


def jpeg(kind: str, size: tuple[int, int], seed: int, *, progressive: bool = False, restarts: bool = False) -> bytes:
    """Return noise of (height, width): nothing in it can be guessed from beside it."""
    import cv2

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    if kind in ("411", "440"):
        factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{kind}")
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
        return bytes(cv2.imencode(".jpg", pixels, options)[1])
    sink = io.BytesIO()
    of_kind: dict[str, dict[str, object]] = {"rgb": {"keep_rgb": True}, "grey": {}}
    sampling = of_kind.get(kind, {"subsampling": ":".join(kind)})
    image = Image.fromarray(pixels[..., 0] if kind == "grey" else pixels)
    image.save(sink, "JPEG", quality=90, progressive=progressive, restart_marker_rows=int(restarts), **sampling)
    return sink.getvalue()


def pixels_of(decoded: Decoded, box: Box) -> NDArray[np.uint8]:
    """Return the box as an array."""
    span = decoded.span(Inside(*box))
    rows = span.buffer[: span.height * span.row_bytes].reshape(span.height, span.row_bytes)
    return rows[:, : 4 * span.width].reshape(span.height, span.width, 4)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    """A size and a window in it: at every border, one pixel wide, all of it."""
    side = st.one_of(st.integers(1, 4), st.integers(5, 150))
    height, width = draw(side), draw(side)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return (height, width), Box(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))


@needs_regions
@given(
    placed=boxes(),
    kind=st.sampled_from(KINDS),
    progressive=st.booleans(),
    restarts=st.booleans(),
    denominator=st.sampled_from((1, 1, 2, 4, 8)),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=300)
def test_a_region_is_that_part_of_the_whole_bit_for_bit(
    placed: tuple[tuple[int, int], Box], kind: str, progressive: bool, restarts: bool, denominator: int, seed: int
) -> None:
    size, box = placed
    assume(denominator == 1 or max(size) > 8)  # simplejpeg takes the least factor that gives one pixel
    before, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 1 << 20  # else Pillow cannot write the noise of small pictures
    try:
        data = jpeg(kind, size, seed, progressive=progressive, restarts=restarts)
    finally:
        ImageFile.MAXBLOCK = before
    # In pixels of the scaled picture.
    box = Box.around([Inside(*(length / denominator for length in box))])
    header = read_header(data)
    part = decode_region(data, header, box, dirty, denominator=denominator)
    whole = decode_whole(data, header, dirty, denominator=denominator)
    assert (pixels_of(part, box) == pixels_of(whole, box)).all()


@needs_regions
def test_a_window_of_a_large_picture_costs_its_columns_only() -> None:
    for kind in ("420", "444"):
        data = jpeg(kind, (700, 900), 3)
        header, box = read_header(data), Box(333, 517, 224, 101)
        part, whole = decode_region(data, header, box, dirty), decode_whole(data, header, dirty)
        assert part.box.width < 101 + 64  # and not all columns
        assert (pixels_of(part, box) == pixels_of(whole, box)).all()


@needs_regions
def test_mutated_files_are_judged_as_whole_ones_are_and_crash_nothing() -> None:
    rng = random.Random(0)
    seeds = [
        jpeg(kind, (60, 90), 1, progressive=progressive, restarts=not progressive)
        for kind in ("420", "444", "grey")
        for progressive in (False, True)
    ]
    counts = {"same": 0, "refused": 0, "below": 0}
    for _ in range(3000):
        data = mutated(rng, rng.choice(seeds))
        try:
            header = read_header(data)
        except ValueError:
            continue
        if header.format != "jpeg" or header.height * header.width > 1 << 20:
            continue
        whole = attempt(partial(decode_whole, data, header, dirty))
        everything = Box(0, 0, header.height, header.width)
        all_of_it = attempt(partial(decode_region, data, header, everything, dirty))
        assert (whole is None) == (all_of_it is None)
        top = rng.randrange(header.height)
        box = Box(top, rng.randrange(header.width), rng.randint(1, header.height - top), 1)
        part = attempt(partial(decode_region, data, header, box, dirty))
        if whole is None:
            counts["refused" if part is None else "below"] += 1  # the fault lies below the window
            continue
        assert all_of_it is not None
        assert part is not None
        assert (pixels_of(all_of_it, everything) == pixels_of(whole, everything)).all()
        assert (pixels_of(part, box) == pixels_of(whole, box)).all()
        counts["same"] += 1
    assert min(counts.values()) > 100, counts


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Return a JPEG with bytes changed, left out, put in, or cut and given an end."""
    out, kind = bytearray(data), rng.random()
    for _ in range(rng.choice((1, 1, 2, 9))):
        place = rng.randrange(2, min(len(out), rng.choice((700, 1 << 20))))
        if kind < 0.6:
            out[place] = rng.choice((0, 255, rng.randrange(256)))
        elif kind < 0.75:
            del out[place : place + rng.randint(1, 9)]
        elif kind < 0.9:
            out[place:place] = rng.randbytes(rng.randint(1, 9))
        else:
            return bytes(out[:place]) + b"\xff\xd9"
    return bytes(out)


def attempt(decode: partial[Decoded]) -> Decoded | None:
    """Return what was decoded; None if it was refused."""
    try:
        return decode()
    except ValueError:
        return None


@needs_regions
def test_a_window_outside_the_picture_and_a_small_buffer_are_refused() -> None:
    data = jpeg("420", (40, 50), 0)
    header = read_header(data)
    for box in (Box(0, 0, 41, 50), Box(39, 0, 2, 5), Box(0, 50, 1, 1), Box(0, 0, 0, 5)):
        with pytest.raises(ValueError, match="not in the picture"):
            decode_region(data, header, box, dirty)
    with pytest.raises(ValueError, match="does not fit"):
        decode_region(data, header, Box(0, 0, 40, 50), lambda _: dirty(4 * 40 * 49))
    with pytest.raises(ValueError, match="1/2, 1/4 or 1/8, not 1/3"):
        decode_region(data, header, Box(0, 0, 5, 5), dirty, denominator=3)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that was made without a C compiler."""
    monkeypatch.setitem(sys.modules, "headrace.pipeline.decode._jpeg_region", None)
    region._library.cache_clear()
    yield
    region._library.cache_clear()


@pytest.mark.usefixtures("without_extension")
def test_without_the_extension_whole_pictures_are_decoded_and_it_is_said() -> None:
    assert region.describe_jpeg_decoder().startswith("simplejpeg, whole pictures (the C extension was not built")


@needs_regions
def test_a_library_of_another_abi_is_refused() -> None:
    import subprocess

    program = "from headrace.pipeline.decode import _jpeg_region as r; r.open('libc.so.6')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "OSError: libc.so.6 has no jpeg_std_error" in done.stderr
    assert "libjpeg-turbo, the rows and columns" in region.describe_jpeg_decoder()

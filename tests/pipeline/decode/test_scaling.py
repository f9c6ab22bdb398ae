"""`jpeg_scaling: on`: nearly the exact squares, far fewer pixels decoded, and part of the state."""

import dataclasses
import io
import math
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline import Mixture, Source, open_stream
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.region import largest_denominator, region_fault
from headrace.pipeline.decode.turbo import Turbo

SIDE = 48
WINDOWS = (
    Window(0, 0, 600, 900, False),
    Window(37, 101, 333, 257, True),
    Window(450, 613, 150, 287, False),
    Window(7, 9, 74, 75, False),
)


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """Detail of every size, 600 x 900, 4:2:0."""
    rng = np.random.default_rng(0)
    total = np.zeros((600, 900, 3))
    for scale in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(600 // scale + 1, 900 // scale + 1, 3)).astype(np.float32)
        for channel in range(3):
            grown = Image.fromarray(noise[..., channel]).resize((900, 600), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(grown) * scale
    sink = io.BytesIO()
    Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def squares(data: bytes, windows: tuple[Window, ...], orientation: int, **keys: object) -> list[NDArray[np.uint8]]:
    """Return every window of a picture."""
    mixture = dataclasses.replace(Mixture(sources=(Source(name="s", url="s"),)), **keys)  # type: ignore[arg-type]
    out = [np.zeros((1, SIDE, SIDE, 3), np.uint8) for _ in windows]
    item = Item(data, admit(data, orientation=orientation, max_pixels=1 << 20), position=0, row=0)
    assert Turbo(mixture).decode([item], [lambda *_, window=window: window for window in windows], out) == [None]  # type: ignore[misc]
    return [view[0] for view in out]


def decibels(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    error = ((one.astype(float) - two) ** 2).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize("resizer", ["fast", "pillow"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_scaled_squares_are_within_forty_decibels_of_the_exact(
    photograph: bytes, orientation: int, resizer: Literal["fast", "pillow"]
) -> None:
    size = (600, 900) if orientation < 5 else (900, 600)
    for window in WINDOWS:
        here = window
        if orientation >= 5:
            here = Window(window.left, window.top, window.width, window.height, window.flipped)
        assert here.top + here.height <= size[0]
        assert here.left + here.width <= size[1]
        (exact,) = squares(photograph, (here,), orientation, resizer=resizer)
        (scaled,) = squares(photograph, (here,), orientation, resizer=resizer, jpeg_scaling="on")
        assert decibels(exact, scaled) > 40
        assert (exact == scaled).all() == (window == WINDOWS[-1])  # which is too small to be scaled


@pytest.mark.skipif(bool(region_fault()), reason=region_fault())
def test_regions_and_whole_pictures_give_the_same_scaled_squares(photograph: bytes) -> None:
    for window in WINDOWS:
        one, two = (
            squares(photograph, (window,), 6 if window.height > 800 else 1, jpeg_scaling="on", jpeg_regions=regions)[0]
            for regions in (True, False)
        )
        assert (one == two).all()


def test_one_small_window_keeps_the_whole_picture_exact(photograph: bytes) -> None:
    together = squares(photograph, WINDOWS, 1, jpeg_scaling="on")
    assert all((one == two).all() for one, two in zip(together, squares(photograph, WINDOWS, 1), strict=True))


@pytest.mark.parametrize(
    ("window", "margin", "denominator"),
    [
        (Window(0, 0, 1792, 2000, False), 1.0, 8),
        (Window(0, 0, 1791, 2000, False), 1.0, 4),
        (Window(0, 0, 671, 2000, False), 1.5, 1),
        (Window(0, 0, 672, 2000, False), 1.5, 2),
        (Window(0, 0, 223, 2000, False), 1.0, 1),
    ],
)
def test_a_window_keeps_the_margin_in_the_scaled_picture(window: Window, margin: float, denominator: int) -> None:
    assert largest_denominator([window], [224], margin=margin) == denominator
    assert largest_denominator([window, Window(0, 0, 300, 300, False)], [224, 96], margin=margin) == min(
        denominator, 2 if margin * 96 * 2 <= 300 else 1
    )


def test_scaling_is_part_of_the_state_and_off_is_what_it_was(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        state = stream.state_dict()
    scaled = dataclasses.replace(mixture, jpeg_scaling="on")
    with open_stream(scaled, global_batch=8) as stream:
        with pytest.raises(ValueError, match=r"jpeg_scaling was 'off', this stream has 'margin 1.5'"):
            stream.load_state_dict(state)
        other = stream.state_dict()
    wider = dataclasses.replace(scaled, jpeg_scaling_margin=2)
    with (
        open_stream(wider, global_batch=8) as stream,
        pytest.raises(ValueError, match="jpeg_scaling was "),
    ):
        stream.load_state_dict(other)
    with pytest.raises(ValueError, match=r"jpeg_scaling_margin must be at least 1, got 0\.5"):
        dataclasses.replace(mixture, jpeg_scaling_margin=0.5)

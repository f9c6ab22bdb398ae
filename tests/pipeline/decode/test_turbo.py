"""Pixels of every format and orientation are those of a slow filter; what cannot be decoded is the sample's fault."""

import math
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import Window, choose_window, position_draws
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.decoder import Item
from headrace.pipeline.decode.gate import admit
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Augment, Mixture, Source
from headrace.shards.permutation import make_key

Resizer = Literal["auto", "fast", "pillow"]
KEY = make_key(1, "augment", 0)


def decode_into(
    data: bytes,
    orientation: int,
    choose: ChooseWindow,
    out: NDArray[np.uint8],
    *,
    max_pixels: int = 1 << 20,
    resizer: Resizer = "auto",
) -> None:
    """Decode one picture through the gate. Raises SampleError."""
    mixture = Mixture(sources=(Source(name="s", url="s"),), max_pixels=max_pixels, resizer=resizer)
    item = Item(data, admit(data, orientation=orientation, max_pixels=max_pixels), position=5, row=0)
    (error,) = Turbo(mixture).decode([item], [choose], [out[None]])
    if error is not None:
        raise error


def whole_picture(_position: int, height: int, width: int) -> Window:
    """The window that is the picture."""
    return Window(0, 0, height, width, False)


def _always(window: Window, _position: int, _height: int, _width: int) -> Window:
    return window


def slow_resize(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Triangle filter, widened by the scale when shrinking, one axis after the other."""

    def weights(length: int) -> NDArray[np.float64]:
        scale = length / side
        support = max(scale, 1.0)
        centre = (np.arange(side) + 0.5)[:, None] * scale
        distance = np.abs(np.arange(length)[None] + 0.5 - centre) / support
        weight = np.clip(1 - distance, 0, None)
        return np.asarray(weight / weight.sum(axis=1, keepdims=True))

    across = np.einsum("ow,hwc->hoc", weights(pixels.shape[1]), pixels.astype(np.float64))
    return np.asarray(np.einsum("oh,hwc->owc", weights(pixels.shape[0]), across))


def encode(image_format: str, pixels: NDArray[np.uint8]) -> bytes:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return sink.getvalue()


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Smooth noise, 90 x 130."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((130, 90), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize(
    "window",
    [
        Window(0, 0, 90, 130, False),
        Window(10, 21, 64, 80, False),
        Window(60, 100, 30, 30, True),
        Window(89, 129, 1, 1, False),
        Window(29, 69, 32, 32, True),
        Window(0, 129, 90, 1, False),
    ],
)
def test_pixels_are_those_of_the_slow_filter(picture: NDArray[np.uint8], image_format: str, window: Window) -> None:
    from headrace.shards.images.decode import decode_rgb

    data = encode(image_format, picture)
    out = np.full((2, 32, 32, 3), 7, np.uint8)
    decode_into(data, 1, lambda _p, height, width: _check_size(height, width, window), out[1])
    cut = decode_rgb(data)[window.top : window.top + window.height, window.left : window.left + window.width]
    expected = slow_resize(cut, 32)
    if window.flipped:
        expected = expected[:, ::-1]
    assert np.abs(out[1] - expected).max() <= 1.01  # two roundings
    assert (out[0] == 7).all()


def _check_size(height: int, width: int, window: Window) -> Window:
    assert (height, width) == (90, 130)
    return window


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_are_upright_for_every_orientation(picture: NDArray[np.uint8], orientation: int) -> None:
    from headrace.shards.images.decode import apply_orientation, decode_rgb

    data = encode("JPEG", picture)
    upright = apply_orientation(decode_rgb(data), orientation)
    out = np.empty((20, 20, 3), np.uint8)
    window = Window(5, 30, 40, 50, False)
    decode_into(data, orientation, lambda _p, _h, _w: window, out)
    assert np.abs(out - slow_resize(upright[5:45, 30:80], 20)).max() <= 1.01


def by_torchvision(pixels: NDArray[np.uint8], height: int, width: int, *, bicubic: bool) -> NDArray[np.uint8]:
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    resized = functional.resize(image, [height, width], mode, antialias=True).permute(1, 2, 0).numpy()
    return np.asarray(resized, np.uint8)


@pytest.mark.parametrize("resizer", ["fast", "pillow"])
@pytest.mark.parametrize("side", [20, 200])
def test_bicubic_is_torchvisions_with_antialias(picture: NDArray[np.uint8], side: int, resizer: Resizer) -> None:
    from headrace.shards.images.decode import decode_rgb

    data = encode("JPEG", picture)
    out = np.empty((side, side, 3), np.uint8)
    window = Window(5, 30, 40, 50, True, "bicubic")
    decode_into(data, 1, partial(_always, window), out, resizer=resizer)
    expected = by_torchvision(decode_rgb(data)[5:45, 30:80], side, side, bicubic=True)[:, ::-1]
    apart = np.abs(out - expected.astype(int))
    assert apart.max() <= (2 if resizer == "fast" else 1)
    assert apart.mean() < 0.25  # of noise, where the cubic leaves 0..255, they round and cut off in another order


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flipped", [False, True])
def test_a_padded_picture_keeps_its_ratio(picture: NDArray[np.uint8], orientation: int, flipped: bool) -> None:
    from headrace.shards.images.decode import apply_orientation, decode_rgb

    for image_format in ("JPEG", "PNG"):
        data = encode(image_format, picture)
        upright = apply_orientation(decode_rgb(data), orientation)
        out = np.empty((52, 52, 3), np.uint8)
        augment = Augment(crop="pad", pad_value=99, flip=flipped)
        decode_into(data, orientation, lambda _p, high, wide, how=augment: choose_window(how, [0.0], high, wide), out)
        beside = np.full((52, 52, 3), 99, np.uint8)
        inside = (slice(8, 44), slice(0, 52)) if upright.shape[1] == 130 else (slice(0, 52), slice(8, 44))
        beside[inside] = out[inside]
        assert np.array_equal(out, beside)
        size = (36, 52) if upright.shape[1] == 130 else (52, 36)
        expected = by_torchvision(upright, *size, bicubic=False).astype(int)
        assert np.abs(out[inside] - (expected[:, ::-1] if flipped else expected)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_give_the_squares_that_whole_pictures_give(picture: NDArray[np.uint8], orientation: int) -> None:
    data = encode("JPEG", picture)
    windows = (Window(3, 31, 30, 50, True), Window(11, 60, 50, 17, False), Window(47, 29, 43, 61, True))
    outs = []
    for jpeg_regions in (True, False):
        mixture = Mixture(sources=(Source(name="s", url="s"),), jpeg_regions=jpeg_regions)
        out = [np.full((2, side, side, 3), 9, np.uint8) for side in (32, 16, 40)]
        item = Item(data, admit(data, orientation=orientation, max_pixels=1 << 20), position=5, row=1)
        chosen = [partial(_always, window) for window in windows]
        assert Turbo(mixture).decode([item], chosen, out) == [None]
        outs.append(out)
    for one, two in zip(*outs, strict=True):
        assert (one == two).all()
        assert (one[0] == 9).all()


def test_a_file_without_its_end_is_refused_wherever_the_window_is(picture: NDArray[np.uint8]) -> None:
    data = encode("JPEG", picture)[:-200]
    with pytest.raises(SampleError, match="truncated, the end is missing"):
        decode_into(data, 1, lambda _p, _h, _w: Window(0, 0, 8, 8, False), np.empty((16, 16, 3), np.uint8))


def test_grey_and_four_colour_jpegs_become_rgb(picture: NDArray[np.uint8]) -> None:
    import io

    from PIL import Image

    out = np.empty((16, 16, 3), np.uint8)
    for mode in ("L", "CMYK"):
        sink = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(sink, "JPEG")
        decode_into(sink.getvalue(), 1, whole_picture, out)
        expected = slow_resize(np.asarray(Image.fromarray(picture).convert("L").convert("RGB")), 16)
        if mode == "L":
            assert np.abs(out - expected).mean() < 3
            assert (out[..., 0] == out[..., 1]).all()
        else:
            assert np.abs(out - slow_resize(picture, 16)).mean() < 12


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_cannot_be_decoded_is_a_fault_of_the_sample(picture: NDArray[np.uint8], image_format: str) -> None:
    whole, out = encode(image_format, picture), np.empty((16, 16, 3), np.uint8)
    spoilt = [b"", whole[:1], b"<html>not an image</html>", whole[: len(whole) // 2], whole[:100], whole[:4] + whole]
    for data in spoilt:
        with pytest.raises(SampleError) as caught:
            decode_into(data, 1, whole_picture, out)
        assert caught.value.reason == "decode"


def test_a_jpeg_fault_that_decode_rgb_tolerates_is_no_fault_of_the_sample(picture: NDArray[np.uint8]) -> None:
    whole = encode("JPEG", picture)
    out = np.zeros((3, 16, 16, 3), np.uint8)
    for number, data in enumerate((whole, whole[:-2] + b"abc" + whole[-2:], whole[:11] + b"\7" + whole[12:])):
        decode_into(data, 1, whole_picture, out[number])
    assert (out[1:] == out[0]).all()
    closed = whole[: len(whole) * 3 // 4] + b"\xff\xd9"
    with pytest.raises(SampleError, match="truncated"):
        decode_into(closed, 1, whole_picture, out[0])


def test_a_bomb_is_refused_from_its_header(picture: NDArray[np.uint8]) -> None:
    out = np.empty((16, 16, 3), np.uint8)
    for image_format in ("JPEG", "PNG"):
        with pytest.raises(SampleError, match="pixels are over the cap of 1000"):
            decode_into(encode(image_format, picture), 1, whole_picture, out, max_pixels=1000)


@pytest.mark.full
@pytest.mark.parametrize(("resizer", "mean"), [("pillow", 60), ("fast", 54)])
def test_crops_reach_forty_decibels_against_torchvision(shared_data: Path, resizer: Resizer, mean: float) -> None:
    import tarfile

    import torch
    from torchvision.transforms.v2 import functional

    from headrace.shards.images.decode import decode_rgb

    ratios = []
    augment = Augment()
    with tarfile.open(shared_data / "imagenet-sample.tar") as archive:
        members = [member for member in archive if member.isfile()][:100]
        for position, member in enumerate(members):
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            pixels = torch.from_numpy(decode_rgb(data)).permute(2, 0, 1)
            window = choose_window(augment, position_draws(KEY, position), pixels.shape[1], pixels.shape[2])
            out = np.empty((224, 224, 3), np.uint8)
            choose = partial(_always, window)
            decode_into(data, 1, choose, out, max_pixels=1 << 26, resizer=resizer)
            cut = functional.resized_crop(pixels, *window[:4], [224, 224], antialias=True)
            expected = (cut.flip(2) if window.flipped else cut).permute(1, 2, 0).numpy()
            error = ((out.astype(np.float64) - expected) ** 2).mean()
            ratios.append(10 * math.log10(255**2 / max(error, 1e-9)))
    assert min(ratios) > 45
    assert np.mean(ratios) > mean

"""Windows as torchvision draws them, as functions of the position; pixels as a slow filter gives them."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.pipeline.augment.crop import TRIES, Window, choose_window, position_draws
from headrace.pipeline.chunks import SampleError
from headrace.pipeline.decode.turbo import Decoder
from headrace.pipeline.mixture import Augment
from headrace.shards.permutation import make_key

sides = st.integers(1, 3000)
KEY = make_key(1, "augment", 0)


def slow_window(augment: Augment, draws: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params of torchvision, line by line, with our numbers for its generator."""
    numbers = iter(draws[1:])
    area = height * width
    log_ratio = [math.log(ratio) for ratio in augment.ratio]
    for _ in range(TRIES):
        target = area * (augment.scale[0] + next(numbers) * (augment.scale[1] - augment.scale[0]))
        aspect = math.exp(log_ratio[0] + next(numbers) * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        down, across = next(numbers), next(numbers)
        if 0 < w <= width and 0 < h <= height:
            return math.floor(down * (height - h + 1)), math.floor(across * (width - w + 1)), h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(augment.ratio):
        w, h = width, round(width / min(augment.ratio))
    elif in_ratio > max(augment.ratio):
        h, w = height, round(height * max(augment.ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@given(st.integers(0, 10**15), sides, sides)
def test_windows_are_those_of_random_resized_crop(position: int, height: int, width: int) -> None:
    augment, draws = Augment(), position_draws(KEY, position)
    assert tuple(choose_window(augment, draws, height, width)[:4]) == slow_window(augment, draws, height, width)


@given(st.integers(0, 10**15), sides, sides, st.floats(0.01, 1.0), st.floats(0.05, 1.0))
def test_every_window_lies_inside_the_picture(
    position: int, height: int, width: int, scale: float, ratio: float
) -> None:
    augment = Augment(scale=(scale, 1.0), ratio=(ratio, 1 / ratio))
    window = choose_window(augment, position_draws(KEY, position), height, width)
    assert window.top >= 0
    assert window.left >= 0
    assert window.height >= 1
    assert window.width >= 1
    assert window.top + window.height <= height
    assert window.left + window.width <= width


def test_draws_depend_on_position_and_key_alone() -> None:
    assert position_draws(KEY, 7) == position_draws(KEY, 7)
    assert position_draws(KEY, 7) != position_draws(KEY, 8)
    assert position_draws(KEY, 7) != position_draws(make_key(2, "augment", 0), 7)
    assert position_draws(KEY, 7) != position_draws(make_key(1, "augment", 1), 7)
    # Neighbours share no number: a later parameter of one is not the first of the next.
    together = [draw for position in range(50) for draw in position_draws(KEY, position)]
    assert len(set(together)) == len(together)


def test_draws_are_even_and_half_the_pictures_are_mirrored() -> None:
    draws = np.array([position_draws(KEY, position) for position in range(4000)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    windows = [choose_window(Augment(), row, 300, 400) for row in draws.tolist()]
    assert abs(np.mean([window.flipped for window in windows]) - 0.5) < 0.03
    area = np.array([window.height * window.width / 120_000 for window in windows])
    # Of areas drawn evenly from 0.08..1, those that fit: the mean torchvision's own draws give is 0.48 at this shape.
    assert 0.42 < area.mean() < 0.54
    ratio = np.log([window.width / window.height for window in windows])
    assert np.abs(ratio).max() < math.log(4 / 3) + 0.1
    assert not any(choose_window(Augment(flip=False), row, 300, 400).flipped for row in draws[:50].tolist())


def test_a_centre_window_is_the_middle_square() -> None:
    augment = Augment(crop="center", flip=False)
    assert choose_window(augment, [0.0], 300, 400) == Window(0, 50, 300, 300, False)
    assert choose_window(augment, [0.0], 401, 300) == Window(50, 0, 300, 300, False)


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
    Decoder(max_pixels=1 << 20).decode_into(data, 1, lambda height, width: _check_size(height, width, window), out[1])
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
    Decoder(max_pixels=1 << 20).decode_into(data, orientation, lambda _h, _w: window, out)
    assert np.abs(out - slow_resize(upright[5:45, 30:80], 20)).max() <= 1.01


def test_grey_and_four_colour_jpegs_become_rgb(picture: NDArray[np.uint8]) -> None:
    import io

    from PIL import Image

    out = np.empty((16, 16, 3), np.uint8)
    for mode in ("L", "CMYK"):
        sink = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(sink, "JPEG")
        Decoder(max_pixels=1 << 20).decode_into(sink.getvalue(), 1, lambda h, w: Window(0, 0, h, w, False), out)
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
            Decoder(max_pixels=1 << 20).decode_into(data, 1, lambda h, w: Window(0, 0, h, w, False), out)
        assert caught.value.reason == "decode"


def test_a_jpeg_fault_that_decode_rgb_tolerates_is_no_fault_of_the_sample(picture: NDArray[np.uint8]) -> None:
    whole = encode("JPEG", picture)
    out = np.zeros((3, 16, 16, 3), np.uint8)
    for number, data in enumerate((whole, whole[:-2] + b"abc" + whole[-2:], whole[:11] + b"\7" + whole[12:])):
        Decoder(max_pixels=1 << 20).decode_into(data, 1, lambda h, w: Window(0, 0, h, w, False), out[number])
    assert (out[1:] == out[0]).all()
    closed = whole[: len(whole) * 3 // 4] + b"\xff\xd9"
    with pytest.raises(SampleError, match="truncated"):
        Decoder(max_pixels=1 << 20).decode_into(closed, 1, lambda h, w: Window(0, 0, h, w, False), out[0])


def test_a_bomb_is_refused_from_its_header(picture: NDArray[np.uint8]) -> None:
    out = np.empty((16, 16, 3), np.uint8)
    for image_format in ("JPEG", "PNG"):
        with pytest.raises(SampleError, match="pixels are over the cap of 1000"):
            Decoder(max_pixels=1000).decode_into(
                encode(image_format, picture), 1, lambda h, w: Window(0, 0, h, w, False), out
            )


@pytest.mark.full
def test_crops_reach_forty_decibels_against_torchvision(shared_data: Path) -> None:
    import tarfile

    import torch
    from torchvision.transforms.v2 import functional

    from headrace.shards.images.decode import decode_rgb

    ratios = []
    decoder, augment = Decoder(max_pixels=1 << 26), Augment()
    with tarfile.open(shared_data / "imagenet-sample.tar") as archive:
        members = [member for member in archive if member.isfile()][:100]
        for position, member in enumerate(members):
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            pixels = torch.from_numpy(decode_rgb(data)).permute(2, 0, 1)
            window = choose_window(augment, position_draws(KEY, position), pixels.shape[1], pixels.shape[2])
            out = np.empty((224, 224, 3), np.uint8)
            decoder.decode_into(data, 1, lambda _h, _w, window=window: window, out)  # type: ignore[misc]
            cut = functional.resized_crop(pixels, *window[:4], [224, 224], antialias=True)
            expected = (cut.flip(2) if window.flipped else cut).permute(1, 2, 0).numpy()
            error = ((out.astype(np.float64) - expected) ** 2).mean()
            ratios.append(10 * math.log10(255**2 / max(error, 1e-9)))
    assert min(ratios) > 45
    assert np.mean(ratios) > 60

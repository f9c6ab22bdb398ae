"""One image, published: the right format, the right orientation, the face gone, the profile kept."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from headrace.curation.build.clean import clean_image
from headrace.shards.images.decode import decode_rgb

FACE = (0.3, 0.2, 0.7, 0.8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def image(mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    return Image.fromarray(pixels).convert(mode)


def save(picture: Image.Image, kind: str, **options: Any) -> bytes:
    output = io.BytesIO()
    picture.save(output, kind, **options)
    return output.getvalue()


def detail(pixels: np.ndarray) -> float:
    """Mean step from pixel to pixel: what a blur takes away."""
    return float(
        np.abs(np.diff(pixels.astype(int), axis=0)).mean() + np.abs(np.diff(pixels.astype(int), axis=1)).mean()
    )


@pytest.mark.parametrize(
    ("kind", "published", "extension"),
    [
        ("JPEG", "jpeg", "jpg"),
        ("PNG", "png", "png"),
        ("WEBP", "webp", "webp"),
        ("GIF", "png", "png"),
        ("BMP", "png", "png"),
        ("TIFF", "png", "png"),
        ("AVIF", "jpeg", "jpg"),
    ],
)
def test_a_face_is_blurred_in_every_format(kind: str, published: str, extension: str) -> None:
    data = save(image(), kind)
    clean = clean_image(data, face_boxes=[FACE])
    assert (clean.header.format, clean.extension, clean.reencoded) == (published, extension, True)
    before, after = decode_rgb(data), decode_rgb(clean.data)
    assert after.shape == before.shape == (120, 180, 3)
    assert (clean.header.width, clean.header.height) == (180, 120)
    assert detail(after[40:80, 70:110]) < 0.25 * detail(before[40:80, 70:110])
    assert np.abs(after[:, -20:].astype(int) - before[:, -20:]).mean() < 10


@pytest.mark.parametrize(
    ("kind", "published", "same"), [("BMP", "png", True), ("TIFF", "png", True), ("AVIF", "jpeg", False)]
)
def test_formats_without_a_cut_are_encoded_again(kind: str, published: str, same: bool) -> None:
    data = save(image(), kind)
    clean = clean_image(data)
    assert (clean.header.format, clean.reencoded) == (published, True)
    assert (decode_rgb(clean.data) == decode_rgb(data)).all() == same


def test_of_an_animated_webp_the_first_frame_is_published() -> None:
    data = save(image(), "WEBP", save_all=True, append_images=[image(seed=1)], lossless=True)
    clean = clean_image(data)
    assert clean.reencoded
    with Image.open(io.BytesIO(clean.data)) as published:
        assert getattr(published, "n_frames", 1) == 1
    difference = np.abs(decode_rgb(clean.data).astype(int) - np.asarray(image()))
    assert difference.mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_kept_beside_an_untouched_image_and_applied_to_a_blurred_one(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(image(), "JPEG", exif=exif.tobytes())
    untouched = clean_image(data)
    assert untouched.header.orientation == orientation
    assert not untouched.reencoded
    assert (decode_rgb(untouched.data, header=untouched.header) == decode_rgb(data)).all()
    # The box is in the upright image: its top left corner.
    blurred = clean_image(data, face_boxes=[(0, 0, 0.3, 0.3)])
    assert blurred.header.orientation == 1
    before, after = decode_rgb(data), decode_rgb(blurred.data)
    assert after.shape == before.shape
    assert detail(after[:20, :20]) < 0.35 * detail(before[:20, :20])
    assert detail(after[-20:, -20:]) > 0.8 * detail(before[-20:, -20:])


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("LA", "PNG")]
)
def test_faces_are_blurred_in_every_mode(mode: str, kind: str) -> None:
    data = save(image(mode), kind)
    clean = clean_image(data, face_boxes=[FACE])
    assert detail(decode_rgb(clean.data)[40:80, 70:110]) < 0.3 * detail(decode_rgb(data)[40:80, 70:110])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_rgb_profile_survives_a_new_encoding(kind: str) -> None:
    clean = clean_image(save(image(), kind, icc_profile=PROFILE), face_boxes=[FACE])
    with Image.open(io.BytesIO(clean.data)) as published:
        assert published.info["icc_profile"] == PROFILE


def test_a_long_profile_is_cut_into_segments() -> None:
    profile = PROFILE + bytes(150_000)
    clean = clean_image(save(image(), "JPEG", icc_profile=profile), face_boxes=[FACE])
    with Image.open(io.BytesIO(clean.data)) as published:
        assert published.info["icc_profile"] == profile


def test_the_profile_of_a_cmyk_image_does_not_describe_its_rgb_pixels() -> None:
    profile = PROFILE[:16] + b"CMYK" + PROFILE[20:]
    clean = clean_image(save(image("CMYK"), "JPEG", icc_profile=profile), face_boxes=[FACE])
    with Image.open(io.BytesIO(clean.data)) as published:
        assert "icc_profile" not in published.info


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        clean_image(data)


def test_a_truncated_image_is_refused_even_if_its_header_is_whole() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = save(image(), kind)
        with pytest.raises(ValueError, match=r".+"):
            clean_image(data[: len(data) * 2 // 3])

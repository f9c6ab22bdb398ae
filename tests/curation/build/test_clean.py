"""One image, published: the right format, the right orientation, the face gone, the profile kept."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from headrace.curation.build.clean import clean_image
from headrace.curation.build.config import BuildConfig
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


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(image(), kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_published_upright_for_readers_that_know_no_exif(orientation: int) -> None:
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 90})):
        data = turned(kind, orientation, **options)
        clean = clean_image(data)
        seen = decode_rgb(data)
        assert (clean.header.orientation, clean.reencoded) == (1, orientation != 1)
        assert (clean.header.width, clean.header.height) == seen.shape[1::-1]
        with Image.open(io.BytesIO(clean.data)) as plain:
            assert "exif" not in plain.info
            difference = np.abs(np.asarray(plain.convert("RGB"), np.int64) - seen)
        lossy = 0 if kind == "PNG" or "lossless" in options else 12
        assert difference.mean() <= lossy, kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_kept_beside_an_image_that_is_left_as_it_lies(orientation: int) -> None:
    data = turned("JPEG", orientation)
    untouched = clean_image(data, config=BuildConfig(upright=False))
    assert untouched.header.orientation == orientation
    assert not untouched.reencoded
    assert (decode_rgb(untouched.data, header=untouched.header) == decode_rgb(data)).all()
    # The box is in the upright image: its top left corner.
    blurred = clean_image(data, face_boxes=[(0, 0, 0.3, 0.3)], config=BuildConfig(upright=False))
    assert blurred.header.orientation == 1
    before, after = decode_rgb(data), decode_rgb(blurred.data)
    assert after.shape == before.shape
    assert detail(after[:20, :20]) < 0.35 * detail(before[:20, :20])
    assert detail(after[-20:, -20:]) > 0.8 * detail(before[-20:, -20:])


def photograph(width: int = 208, height: int = 160) -> Image.Image:
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (10, 13, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [60, 85])
def test_a_blurred_jpeg_keeps_its_sampling_its_tables_and_about_its_size(sampling: str, quality: int) -> None:
    data = save(photograph(), "JPEG", quality=quality, subsampling=sampling)
    clean = clean_image(data, face_boxes=[(0.0, 0.0, 0.2, 0.2)])
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(clean.data)) as after:
        assert after.quantization == before.quantization
        assert after.layer == before.layer
    assert len(clean.data) <= 1.05 * len(data)
    far = np.s_[:, 160:]
    difference = decode_rgb(clean.data)[far].astype(int) - decode_rgb(data)[far]
    assert 10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-9)) > 38
    fixed = clean_image(data, face_boxes=[(0.0, 0.0, 0.2, 0.2)], config=BuildConfig(encoding="fixed"))
    assert len(fixed.data) > len(clean.data)
    with Image.open(io.BytesIO(fixed.data)) as after:
        assert [layer[1:3] for layer in after.layer] == [(1, 1)] * 3


def test_no_jpeg_is_published_at_a_higher_quality_than_the_recipe_says() -> None:
    data = save(photograph(), "JPEG", quality=100, subsampling="4:2:0")
    with Image.open(io.BytesIO(save(photograph(), "JPEG", quality=90, subsampling="4:2:0"))) as at_90:
        expected = at_90.quantization
    with Image.open(
        io.BytesIO(clean_image(data, face_boxes=[FACE], config=BuildConfig(jpeg_quality=90)).data)
    ) as published:
        assert published.quantization == expected


def test_a_jpeg_of_fine_noise_is_blurred_too() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (320, 320, 3), np.uint8))
    data = save(noise, "JPEG", quality=100, subsampling=0)
    clean = clean_image(data, face_boxes=[FACE], config=BuildConfig(jpeg_quality=100))
    assert detail(decode_rgb(clean.data)[130:190, 130:190]) < 0.25 * detail(decode_rgb(data)[130:190, 130:190])


def test_a_gray_jpeg_stays_gray() -> None:
    clean = clean_image(save(photograph().convert("L"), "JPEG"), face_boxes=[FACE])
    with Image.open(io.BytesIO(clean.data)) as published:
        assert published.mode == "L"


@pytest.mark.parametrize(("size", "least"), [((208, 160), 45), ((201, 157), 38)])
def test_a_turn_costs_next_to_nothing_where_the_blocks_keep_their_places(size: tuple[int, int], least: int) -> None:
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = save(photograph(*size), "JPEG", quality=80, exif=exif.tobytes())
        clean = clean_image(data)
        difference = decode_rgb(clean.data).astype(int) - decode_rgb(data)
        assert 10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-9)) > least, orientation


def test_a_turned_png_keeps_its_alpha_and_a_webp_without_loss_stays_so() -> None:
    picture = photograph().convert("RGBA")
    picture.putalpha(77)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        clean = clean_image(save(picture, kind, exif=exif.tobytes(), **options))
        with Image.open(io.BytesIO(clean.data)) as published:
            assert published.size == (160, 208)
            assert np.asarray(published.convert("RGBA"))[..., 3].tolist() == np.full((208, 160), 77).tolist()
    blurred = clean_image(save(photograph(), "WEBP", lossless=True), face_boxes=[(0, 0, 0.1, 0.1)])
    assert (decode_rgb(blurred.data)[100:] == np.asarray(photograph())[100:]).all()


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

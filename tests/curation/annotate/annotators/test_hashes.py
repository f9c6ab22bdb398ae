"""Copies meet, pictures that differ do not."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.curation.annotate.annotators.hash_variants import (
    CUT_COLUMNS,
    MIRRORED_COLUMNS,
    HashVariants,
    HashVariantsConfig,
    turn,
)
from headrace.curation.annotate.annotators.hashes import ImageHashes, image_hashes, trim_border
from headrace.shards.images.decode import decode_rgb

SEEDS = range(12)
DUPLICATE, COPY = 20, 31


def distance(one: bytes, other: bytes) -> int:
    """Return the number of differing bits."""
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def nearest(one: ImageHashes, other: ImageHashes) -> int:
    """Return the least distance of any hash of one image to any of the other, as select compares them."""
    variants = ("pdq", "pdq_trimmed", "pdq_centre")
    return min(distance(getattr(one, a), getattr(other, b)) for a in variants for b in variants)


@pytest.mark.parametrize("seed", SEEDS)
def test_reencoded_and_resized_copies_meet(seed, scene, encode):
    original = scene(seed)
    hashes = image_hashes(original)
    assert hashes.quality >= 50
    for quality in (10, 50, 95):
        copy = image_hashes(decode_rgb(encode(original, quality=quality)))
        assert distance(hashes.pdq, copy.pdq) <= DUPLICATE
    for size in ((160, 120), (256, 256), (640, 480)):
        copy = image_hashes(cv2.resize(original, size, interpolation=cv2.INTER_AREA))
        assert distance(hashes.pdq, copy.pdq) <= DUPLICATE


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 90)])
@pytest.mark.parametrize("seed", SEEDS)
def test_only_trimming_finds_padded_copies(seed, colour, scene, encode):
    original = scene(seed)
    hashes = image_hashes(original)
    padded = cv2.copyMakeBorder(original, 60, 60, 20, 20, cv2.BORDER_CONSTANT, value=colour)
    copy = image_hashes(decode_rgb(encode(padded, quality=75)))
    assert distance(hashes.pdq, copy.pdq) > COPY
    assert nearest(hashes, copy) <= COPY


def test_different_scenes_stay_apart(scene):
    hashes = [image_hashes(scene(seed)) for seed in range(60)]
    least = min(nearest(a, b) for place, a in enumerate(hashes) for b in hashes[:place])
    assert least > COPY


def test_a_letterbox_within_a_pillar_box_is_trimmed_to_the_picture(scene):
    original = scene(3)
    boxed = cv2.copyMakeBorder(original, 30, 30, 0, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    boxed = cv2.copyMakeBorder(boxed, 0, 0, 50, 50, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    height, width = trim_border(boxed).shape[:2]
    assert abs(height - original.shape[0]) <= 2
    assert abs(width - original.shape[1]) <= 2


@pytest.mark.parametrize(("above", "beside"), [(40, 40), (40, 0), (0, 40)])
def test_a_border_is_cut_from_a_picture_whose_own_edges_are_smooth(above, beside):
    """The moon: under the border every edge looks like one, and what is cut there is not cut from the original."""
    rng = np.random.default_rng(7)
    original = np.clip(rng.normal(115, 3, (150, 200, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    for _ in range(40):
        x, y = int(rng.integers(30, 170)), int(rng.integers(30, 120))
        cv2.circle(original, (x, y), int(rng.integers(3, 14)), (int(rng.integers(0, 255)),) * 3, -1)
    framed = cv2.copyMakeBorder(original, above, above, beside, beside, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    assert trim_border(framed).shape == original.shape


def test_a_thin_border_is_found_although_colours_bleed_into_it(scene, encode):
    original = scene(6)
    thin = cv2.copyMakeBorder(original, 8, 8, 8, 8, cv2.BORDER_CONSTANT, value=(250, 220, 40))
    copy = decode_rgb(encode(thin, quality=75))
    bled = np.abs(copy[:, 0] - np.median(copy[:, 0], axis=0)).max(axis=1)
    assert (bled > 16).mean() > 0.02
    assert trim_border(copy).shape == original.shape


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_cut_to_a_square_is_found_by_the_centre_framed_or_not(seed, scene, encode):
    original = scene(seed)
    square = original[:, 40:280]
    framed = cv2.copyMakeBorder(square, 20, 20, 60, 60, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    hashes = image_hashes(original)
    for picture in (square, framed):
        copy = image_hashes(decode_rgb(encode(picture, quality=75)))
        assert distance(hashes.pdq_centre, copy.pdq_trimmed) <= COPY
        assert min(distance(hashes.pdq, copy.pdq), distance(hashes.pdq_trimmed, copy.pdq_trimmed)) > COPY
    assert image_hashes(square).pdq_centre == image_hashes(square).pdq_trimmed


def test_a_picture_without_border_is_not_trimmed(scene):
    original = scene(4)
    assert trim_border(original) is not None
    assert trim_border(original).shape == original.shape
    assert image_hashes(original).pdq == image_hashes(original).pdq_trimmed


def test_a_flat_image_has_quality_zero_and_is_left_whole():
    flat = np.full((100, 80, 3), 255, np.uint8)
    assert trim_border(flat).shape == flat.shape
    assert image_hashes(flat).quality == 0


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 100),
    levels=st.sampled_from([1, 2, 256]),
)
def test_any_image_has_hashes_and_keeps_16_pixels_each_way(height, width, seed, levels):
    pixels = np.random.default_rng(seed).integers(0, levels, (height, width, 3), np.uint8)
    trimmed = trim_border(pixels)
    assert trimmed.shape[0] >= min(16, height)
    assert trimmed.shape[1] >= min(16, width)
    hashes = image_hashes(pixels)
    assert len(hashes.pdq) == len(hashes.pdq_trimmed) == len(hashes.pdq_centre) == 32
    assert 0 <= hashes.quality <= 100


def test_photographs_and_their_copies_meet(shared_data):
    """Recall on real pictures; the whole table is `benchmarks/annotate.py`."""
    from headrace.shards.payloads import read_payloads
    from headrace.shards.tar import scan_tar

    url = str(shared_data / "imagenet-sample.tar")
    members = [member for member in scan_tar(url) if member.name.endswith(".JPEG")][::12]
    found = 0
    for data in read_payloads(url, [(member.offset, member.size) for member in members]):
        pixels = decode_rgb(data)
        height, width = pixels.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = cv2.copyMakeBorder(
            pixels, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        small = cv2.resize(square, (256, 256), interpolation=cv2.INTER_AREA)
        found += nearest(image_hashes(pixels), image_hashes(small)) <= COPY
    assert found >= 0.9 * len(members)


def test_variants_are_those_of_the_changed_picture_and_flat_ones_are_left_out(scene, batch_of):
    pixels = scene(3)
    flat = np.full((90, 90, 3), 120, np.uint8)
    found = HashVariants(HashVariantsConfig(crops=True)).annotate(batch_of([pixels, flat, None]))
    mirrored = image_hashes(np.ascontiguousarray(pixels[:, ::-1]))
    assert [found[name][0] for name in MIRRORED_COLUMNS] == [mirrored.pdq, mirrored.pdq_trimmed, mirrored.pdq_centre]
    height, width = pixels.shape[:2]
    rows, columns = round(0.95 * height), round(0.95 * width)
    assert found["pdq_crop_0"][0] == image_hashes(pixels[:rows, :columns]).pdq
    assert found["pdq_crop_8"][0] == image_hashes(pixels[-rows:, -columns:]).pdq
    assert distance(found["pdq_turn_2"][0], image_hashes(turn(pixels, 3)).pdq) <= COPY
    assert all(values[2] is None for values in found.values())
    assert all(found[name][1] is None for name in CUT_COLUMNS)
    assert HashVariants(HashVariantsConfig()).schema().names == list(MIRRORED_COLUMNS)
    assert list(HashVariants(HashVariantsConfig()).annotate(batch_of([pixels]))) == list(MIRRORED_COLUMNS)

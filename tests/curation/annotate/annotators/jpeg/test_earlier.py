"""Promises of the search for an earlier saving: it shows under a coarser or finer one, never where none was."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from headrace.curation.annotate.annotators.jpeg.earlier import earlier_saving
from headrace.curation.annotate.annotators.jpeg.history import coefficients_of


def _picture(seed: int) -> Image.Image:
    """A picture whose contrast falls with frequency, as that of photographs does."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(0, 6 * cells**-0.5, (256 // cells, 256 // cells, 3)) * 4 for cells in (1, 2, 4, 8, 16)]
    pixels = 128 + sum(np.kron(layer, np.ones((256 // len(layer), 256 // len(layer), 1))) for layer in layers)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _found(image: Image.Image, *qualities: int) -> tuple[int, float]:
    """Save an image with these qualities, one after the other, and ask about the last file."""
    steps = None
    for quality in qualities:
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality)
        saved = Image.open(sink)
        steps, image = np.array(getattr(saved, "quantization", {})[0], np.float64), saved.convert("RGB")
    return earlier_saving(coefficients_of(np.asarray(image)), steps)


@pytest.mark.parametrize("quality", [75, 85, 96])
def test_a_picture_saved_once_shows_no_earlier_saving(quality: int) -> None:
    assert [_found(_picture(seed), quality) for seed in range(4)] == [(100, 0.0)] * 4


@pytest.mark.parametrize("chain", [(75, 85), (80, 85), (90, 85), (85, 75), (60, 95), (80, 96, 85)])
def test_the_first_saving_shows_under_finer_and_coarser_ones(chain: tuple[int, ...]) -> None:
    assert [_found(_picture(seed), *chain)[0] for seed in range(4)] == [chain[0]] * 4


def test_each_later_saving_moves_the_coefficients_on() -> None:
    picture = _picture(0)
    moved = [_found(picture, *chain)[1] for chain in [(75, 96), (75, 96, 90), (75, 96, 90, 85)]]
    assert moved == sorted(moved)
    assert moved[-1] > 1.2 * moved[0] > 0


def test_what_was_painted_over_hides_nothing() -> None:
    sink = io.BytesIO()
    _picture(0).save(sink, "JPEG", quality=75)
    marked = Image.open(sink).convert("RGB")
    ImageDraw.Draw(marked).rectangle((20, 100, 236, 130), fill=(255, 255, 255))
    assert _found(marked, 85)[0] == 75


def test_a_table_that_is_not_of_the_pixels_is_not_believed() -> None:
    # As of CMYK, or of colours saved without luminance.
    coefficients = coefficients_of(np.asarray(_picture(0)))
    assert earlier_saving(coefficients, np.full(64, 20.0)) == (100, 0.0)


def test_a_picture_too_small_for_a_block_shows_nothing() -> None:
    assert earlier_saving(coefficients_of(np.zeros((7, 7, 3), np.uint8)), None) == (100, 0.0)

"""Masks and boxes lie where the decoder puts the pixels, whatever the window, and boxes come back."""

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Augment, Mixture, Source, open_stream
from headrace.pipeline.augment.crop import Window
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.train.objectives.dense.masks import PIXELS, MaskRules, PlaceMasks
from headrace.train.objectives.dense.placement import boxes_in_picture, boxes_in_view, cut_mask
from tests.train.tasks.drawn import png

SIDE = 48


@pytest.mark.parametrize(
    "augment",
    [Augment(crop="pad"), Augment(crop="scale_jitter", jitter=(0.5, 2)), Augment(scale=(0.2, 0.6), ratio=(1, 1))],
)
def test_a_mask_lies_on_its_pixels_in_a_stream(augment: Augment, tmp_path: object) -> None:
    """Bright where the mask is 1: so are the pixels of the square, whatever window and mirror the position gives."""
    rows = []
    for number in range(12):
        rng = np.random.default_rng(number)
        height, width = (int(side) for side in rng.integers(60, 140, 2))
        mask = np.zeros((height, width), np.uint8)
        top, left = (int(side) for side in rng.integers(5, 30, 2))
        mask[top : top + height // 3, left : left + width // 2] = 1
        picture = np.repeat((40 + 180 * mask)[..., None].astype(np.uint8), 3, axis=2)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=98, colorsubsampling="444")
        rows.append(Sample(f"{number:03d}", jpeg, "jpg", {"mask": png(mask)}))
    import pyarrow as pa

    write_shard(str(tmp_path), "00000", rows, pa.schema([("mask", pa.binary())]))
    finish_dataset(str(tmp_path), recipe_digest="test")
    mixture = Mixture(lanes=1, image_size=SIDE, sources=(Source(name="a", url=str(tmp_path)),), augment=augment, seed=3)
    place = PlaceMasks(mixture, MaskRules(num_classes=2), "mask")
    with open_stream(mixture, global_batch=12, columns=("mask",), map=place) as stream:
        batch = next(stream)
    pixels_BSS = np.asarray(batch.columns[PIXELS])
    assert pixels_BSS.shape == (12, SIDE, SIDE)
    bright_BSS = np.asarray(batch.images)[..., 0] > 130
    shown = pixels_BSS >= 0
    assert (pixels_BSS == 1).any()
    assert shown.all() or augment.fills
    assert (bright_BSS == (pixels_BSS == 1))[shown].mean() > 0.97, "but for pixels on an edge"


@given(
    window=st.builds(
        Window,
        top=st.integers(0, 20),
        left=st.integers(0, 20),
        height=st.integers(8, 60),
        width=st.integers(8, 60),
        flipped=st.booleans(),
        fill=st.sampled_from([None, 0]),
    ),
    corner=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.5)),
)
@settings(max_examples=60, deadline=None)
def test_boxes_go_to_the_square_and_back(window: Window, corner: tuple[float, float]) -> None:
    x, y = window.left + corner[0] * window.width, window.top + corner[1] * window.height
    box = np.array([[x, y, x + 0.4 * window.width, y + 0.3 * window.height]])
    view = boxes_in_view(box, window, side=SIDE)
    top, left, height, width = window.inside(SIDE)
    assert (view >= [left, top, left, top]).all()
    assert (view <= np.array([left, top, left, top]) + [width, height] * 2).all()
    assert np.allclose(boxes_in_picture(view, window, side=SIDE), box, atol=1e-9)


def test_a_box_holds_its_mask_in_the_square() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[20:50, 30:90] = 1
    for flipped in (False, True):
        window = Window(10, 15, 60, 90, flipped, fill=0)
        square = cut_mask(mask, window, side=SIDE, fill=0)
        rows, columns = np.nonzero(square)
        box = boxes_in_view(np.array([[30.0, 20, 90, 50]]), window, side=SIDE)[0]
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(box - drawn).max() <= 0.75

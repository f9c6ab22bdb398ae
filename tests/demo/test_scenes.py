"""Scenes are pure functions of attributes and seed, and perceptual hashes tell them apart."""

import dataclasses

import numpy as np
import pdqhash
import pytest
from PIL import Image

from headrace.demo.scenes import SHAPES, Scene, caption, differing_attributes, draw, draw_attributes, generator

PLAIN = Scene(shape="circle", colour="red", position="middle", texture="striped", background="grey")


def test_a_scene_is_drawn_the_same_again() -> None:
    first, second = (draw(PLAIN, generator(3, "x"), width=120, height=96) for _ in range(2))
    assert first.shape == (96, 120, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw(PLAIN, generator(4, "x"), width=120, height=96))


@pytest.mark.parametrize("seed", [1, 22, 333])
def test_scenes_of_the_same_attributes_are_far_apart_for_pdq(seed: int) -> None:
    hashes, qualities = [], []
    for number in range(40):
        rng = generator(seed, number)
        picture = draw(PLAIN, rng, width=int(rng.integers(96, 200)), height=int(rng.integers(96, 200)))
        square = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BOX))
        bits, quality = pdqhash.compute(square)
        hashes.append(bits)
        qualities.append(quality)
    stacked = np.array(hashes)
    distances = (stacked[:, None] != stacked[None]).sum(-1)[np.triu_indices(len(stacked), 1)]
    assert min(qualities) >= 50
    assert distances.min() > 56


@pytest.mark.parametrize("shape", [*SHAPES, "trefoil"])
def test_every_shape_changes_the_picture_where_it_stands(shape: str) -> None:
    scene = dataclasses.replace(PLAIN, shape=shape, position="left")
    picture = draw(scene, generator(1, shape), width=150, height=150).astype(int)
    redness = picture[..., 0] - picture[..., 1]
    assert redness[:, :75].max() > 80
    assert redness[:, 110:].max() < 40


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        draw(dataclasses.replace(PLAIN, shape="blob"), generator(1), width=96, height=96)


def test_a_wrong_caption_shares_no_attribute() -> None:
    for number in range(200):
        rng = generator(9, number)
        scene = draw_attributes(rng)
        other = differing_attributes(rng, scene)
        assert not {
            name
            for name in ("shape", "colour", "position", "texture", "background")
            if getattr(scene, name) == getattr(other, name)
        }


def test_true_captions_name_shape_colour_and_background() -> None:
    texts = set()
    for number in range(100):
        text = caption(generator(2, number), PLAIN)
        texts.add(text)
        assert {"red", "circle", "grey"} <= set(text.replace(",", "").split())
    assert len(texts) > 10

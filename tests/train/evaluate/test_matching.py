"""Matched pairs are told from shuffled ones as slow loops tell them, however many ranks saw them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from headrace.pipeline import Batch
from headrace.train.evaluate.matching import PairPass, area_under_curve, matching_values
from headrace.train.parallel.ranks import ALONE


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    found = rng.normal(size=(rows, 4)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_area_is_the_share_of_couples_in_order() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 9, 40).astype(np.float32), rng.integers(0, 9, 70).astype(np.float32)
    couples = [(a > b) + (a == b) / 2 for a in high for b in low]
    assert area_under_curve(high, low) == pytest.approx(np.mean(couples))
    assert area_under_curve(high + 10, low) == 1.0
    assert area_under_curve(low, low) == 0.5


def test_retrieval_counts_pictures_once_and_takes_any_of_their_captions() -> None:
    rng = np.random.default_rng(2)
    pictures = np.repeat(np.arange(12), 3)
    image, text = unit(rng, 12)[pictures], unit(rng, 36)
    text = text + image  # better than chance
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    values = matching_values(image, text, picture_N=pictures, caption_N=np.arange(36))
    score = text @ image[::3].T
    for at in (1, 5):
        by_text = [sorted(score[n], reverse=True)[at - 1] <= score[n, pictures[n]] for n in range(36)]
        by_image = []
        for u in range(12):
            best = max(score[n, u] for n in range(36) if pictures[n] == u)
            by_image.append(sum(score[n, u] > best for n in range(36) if pictures[n] != u) < at)
        assert values[f"text_to_image_at_{at}"] == pytest.approx(np.mean(by_text))
        assert values[f"image_to_text_at_{at}"] == pytest.approx(np.mean(by_image))


def test_captions_of_the_same_picture_and_equal_ones_are_no_shuffled_pairs() -> None:
    rng = np.random.default_rng(3)
    image, ids = unit(rng, 8), np.arange(8)
    assert matching_values(image, image, picture_N=ids, caption_N=ids)["auc"] == 1.0
    assert matching_values(image, image, picture_N=np.zeros(8, np.int64), caption_N=ids) == {}
    assert matching_values(image, image, picture_N=ids, caption_N=np.zeros(8, np.int64)) == {}
    # Two of one picture: their captions score as high as the picture's own, and count for nothing.
    twice = np.array([0, 0, 1, 2, 3, 4, 5, 6])
    assert matching_values(image[twice], image[twice], picture_N=twice, caption_N=ids)["auc"] == 1.0
    assert matching_values(image[:1], image[:1], picture_N=ids[:1], caption_N=ids[:1]) == {}


def test_chance_is_a_half() -> None:
    rng = np.random.default_rng(4)
    ids = np.arange(600)
    assert matching_values(unit(rng, 600), unit(rng, 600), picture_N=ids, caption_N=ids)["auc"] == pytest.approx(
        0.5, abs=0.03
    )


def test_rows_that_do_not_count_are_not_kept(make_batch: Callable[..., Batch]) -> None:
    rng, batch = np.random.default_rng(5), make_batch(6)
    image, text = torch.from_numpy(unit(rng, 6)), torch.from_numpy(unit(rng, 6))
    counted = np.array([True, True, False, True, True, True])
    found = PairPass()
    found.add(batch, column="caption", counted_B=counted, image_BD=image, text_BD=text)
    rows, ids = np.flatnonzero(counted), np.arange(5)
    expected = matching_values(image.numpy()[rows], text.numpy()[rows], picture_N=ids, caption_N=ids)
    assert found.values(ALONE) == expected
    assert PairPass().values(ALONE) == {}

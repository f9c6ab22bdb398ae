"""Scores of a segmentation against counting by hand, and against scikit-learn's way of a slow loop."""

import numpy as np
import pytest
import torch

from headrace.train.objectives.dense.confusion import class_ious, confusion, segmentation_scores


def test_scores_are_those_of_sets_of_pixels() -> None:
    rng = np.random.default_rng(0)
    truth, choice = rng.integers(-1, 4, 5000), rng.integers(0, 4, 5000)
    counts = confusion(torch.from_numpy(truth), torch.from_numpy(choice), 5).numpy()
    known = truth >= 0
    ious, right = [], []
    for label in range(5):
        own, chosen = set(np.flatnonzero(known & (truth == label))), set(np.flatnonzero(known & (choice == label)))
        ious.append(len(own & chosen) / len(own | chosen) if own | chosen else None)
        if own:
            right.append(len(own & chosen) / len(own))
    assert ious[4] is None, "a class that is neither there nor chosen is in no mean"
    scores = segmentation_scores(counts)
    assert scores["miou"] == pytest.approx(np.mean([one for one in ious if one is not None]))
    assert scores["mean_accuracy"] == pytest.approx(np.mean(right))
    assert scores["pixel_accuracy"] == pytest.approx((truth == choice)[known].mean())
    assert np.isnan(class_ious(counts)[4])


def test_a_class_that_is_chosen_and_never_there_counts_as_nothing() -> None:
    counts = confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 3).numpy()
    assert class_ious(counts).tolist() == [0.5, 1.0, 0.0]
    assert segmentation_scores(counts)["miou"] == pytest.approx(0.5)

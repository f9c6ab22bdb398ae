"""Few shots are fitted as big_vision fits them, and the test set decides nothing."""

import math

import numpy as np
import pytest
import torch

from headrace.train.evaluate.few_shot import FewShotConfig, draw_shots, few_shot_accuracies, fit_ridge


def clusters(samples: int, width: int, *, classes: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(samples) % classes
    return 3 + 2 * (centres[labels] + noise * torch.randn(samples, width, generator=generator)), labels


def direct_weights(features: np.ndarray, labels: np.ndarray, *, classes: int, l2: float) -> np.ndarray:
    """Solve the normal equations of the whitened features with the constant 100, the textbook's way."""
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / (np.sqrt(((x - x.mean(axis=0)) ** 2).mean(axis=0)) + 1e-5)
    x = np.hstack([x, np.full((len(x), 1), 100.0)])
    y = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    weights: np.ndarray = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return weights


@pytest.mark.parametrize(("samples", "width"), [(60, 8), (30, 40), (41, 40), (40, 40)])
@pytest.mark.parametrize("l2", [2.0**-10, 1.0, 2.0**10])
def test_it_is_the_direct_solution(samples: int, width: int, l2: float) -> None:
    """More samples than features, fewer, and as many with and without the constant."""
    features, labels = clusters(samples, width, classes=5, seed=0, noise=1.0)
    ridge = fit_ridge(features, labels, classes=5)
    expected = direct_weights(features.numpy(), labels.numpy(), classes=5, l2=l2)
    np.testing.assert_allclose(ridge.weights(l2).numpy(), expected, rtol=1e-5, atol=1e-7)
    test, test_labels = clusters(200, width, classes=5, seed=1, noise=1.0)
    white = (test.numpy() - features.numpy().mean(axis=0)) / (features.numpy().std(axis=0) + 1e-5)
    told = (np.hstack([white, np.full((200, 1), 100.0)]) @ expected).argmax(axis=1)
    assert ridge.accuracy(test, test_labels, l2) == pytest.approx((told == test_labels.numpy()).mean())


@pytest.mark.parametrize(("samples", "width"), [(40, 6), (18, 30)])
def test_leaving_one_out_is_what_fits_without_it_say(samples: int, width: int) -> None:
    features, labels = clusters(samples, width, classes=3, seed=2, noise=2.0)
    for l2 in (0.01, 8.0):
        ridge = fit_ridge(features, labels, classes=3)
        right = 0
        for left_out in range(samples):
            kept = np.arange(samples) != left_out
            x, y = ridge.features_ND.numpy()[kept], ridge.target_NC.numpy()[kept]
            weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
            right += int((ridge.features_ND.numpy()[left_out] @ weights).argmax() == int(labels[left_out]))
        assert ridge.left_out_accuracy(l2) == pytest.approx(right / samples)
        assert ridge.left_out_accuracy(l2) < 1


def test_shots_are_those_of_big_vision_and_grow() -> None:
    labels = np.array([1, 0, 2, 1, 1, 0, 2, 0, 1, 0])
    rng = np.random.default_rng(7)  # as its evaluator draws: one permutation a class, in the order of classes
    theirs = [rng.permutation(np.where(labels == number)[0]) for number in range(3)]
    for shots in (1, 2, 25):
        drawn = draw_shots(labels, shots, classes=3, seed=7)
        assert drawn.tolist() == [int(row) for rows in theirs for row in rows[:shots]]
    assert draw_shots(labels, 2, classes=3, seed=8).tolist() != draw_shots(labels, 2, classes=3, seed=7).tolist()


def test_accuracy_rises_with_shots_and_processes_share_the_rows() -> None:
    train, test = (clusters(900, 24, classes=6, seed=seed, noise=2.0) for seed in (0, 1))
    config = FewShotConfig()
    rows = few_shot_accuracies(train, test, config)
    assert [(row["shots"], row["seed"]) for row in rows] == [(n, s) for n in (1, 5, 10, 25) for s in (0, 1, 2)]
    means = [np.mean([row["test_accuracy"] for row in rows if row["shots"] == shots]) for shots in config.shots]
    assert means == sorted(means)
    assert means[2] > 0.6
    assert rows == few_shot_accuracies(train, test, config)
    shared = [few_shot_accuracies(train, test, config, part=(part, 2)) for part in (0, 1)]
    assert sorted(shared[0] + shared[1], key=str) == sorted(rows, key=str)
    half = (train[0].half(), train[1])
    assert few_shot_accuracies(half, test, config)[0]["test_accuracy"] == pytest.approx(rows[0]["test_accuracy"], 0.05)


def test_the_test_set_does_not_choose_the_penalty() -> None:
    train, test = (clusters(300, 24, classes=6, seed=seed, noise=2.0) for seed in (0, 1))
    wrong = (test[0], (test[1] + 1) % 6)
    for one, other in zip(
        *(few_shot_accuracies(train, given, FewShotConfig()) for given in (test, wrong)), strict=True
    ):
        assert one["l2"] == other["l2"]
    (row,) = few_shot_accuracies(train, test, FewShotConfig(shots=(5,), seeds=(0,), l2s=(2.0**10,)))
    assert row["test_accuracy"] == row["published_l2_test_accuracy"]
    assert row["l2"] == 2.0**10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": ()}, "must not be empty"),
        ({"shots": (0,)}, "shots must be at least 1"),
        ({"l2s": (0.0,)}, "l2s must be above 0"),
        ({"l2s": (math.inf,)}, "l2s must be above 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(given: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotConfig(**given)  # type: ignore[arg-type]


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters(20, 4, classes=2, seed=0, noise=1.0)
    features[3, 2] = math.inf
    with pytest.raises(ValueError, match="features are not finite"):
        fit_ridge(features, labels, classes=2)

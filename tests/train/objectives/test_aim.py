"""The AIM loss against a slow loop written from the reference text, and the published numbers."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from headrace.pipeline import Batch
from headrace.train.batches import micro_batches
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.head_rows import padded, predicting_rows
from headrace.train.objectives.prefixes import prefix_lengths
from headrace.train.objectives.targets import normalised_patches

SMALL = AimConfig(kind="aim", model="tiny", patch=4, width=16, depth=2, heads=2, head_width=12, head_depth=2)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def small_aim(config: AimConfig = SMALL, seed: int = 7) -> Aim:
    objective = build_objective(config, image_size=16, seed=seed)
    assert isinstance(objective, Aim)
    return objective


def slow_targets(image: np.ndarray, patch: int) -> np.ndarray:
    """Patches row by row; inside a patch row, column, channel; mean 0 and variance 1 with n - 1."""
    pixels = (image / 255 - MEAN) / STD
    rows = []
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            values = [pixels[top + y, left + x, c] for y in range(patch) for x in range(patch) for c in range(3)]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            rows.append([(value - mean) / math.sqrt(variance + 1e-6) for value in values])
    return np.array(rows)


@torch.no_grad()
def test_loss_is_the_slow_loop(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small_aim(), make_batch(5, first=40)
    loss, _ = objective(batch)
    tokens = objective.encoder(objective.normalise(batch.images), _mask(objective, batch))
    predicted = objective.head(tokens, torch.arange(80)).reshape(5, 16, -1).detach().numpy()
    total, terms = 0.0, 0
    for sample, prefix in enumerate(objective.prefixes(batch)):
        targets = slow_targets(batch.images[sample].astype(np.float64), 4)
        for i in range(16 - 1):
            if i + 1 >= prefix:  # the target is behind the prefix
                errors = [(p - t) ** 2 for p, t in zip(predicted[sample, i], targets[i + 1], strict=True)]
                total += sum(errors) / len(errors)
                terms += 1
    assert objective.num_terms(batch) == terms
    assert float(loss) == pytest.approx(total, rel=1e-5)


def _mask(objective: Aim, batch: Batch) -> torch.Tensor:
    mask = np.zeros((len(batch.position), 16, 16), bool)
    for sample, prefix in enumerate(objective.prefixes(batch)):
        for i in range(16):
            for j in range(16):
                mask[sample, i, j] = j < prefix or j <= i
    return torch.from_numpy(mask)


def test_targets_use_the_unbiased_variance() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.float64)
    pixels = torch.from_numpy((image / 255 - MEAN) / STD).permute(2, 0, 1)[None]
    got = normalised_patches(pixels, 4)[0]
    np.testing.assert_allclose(got.numpy(), slow_targets(image, 4), atol=1e-5)
    # 48 values a patch: with the biased variance the mean square would be 1, with the unbiased one 47 / 48.
    np.testing.assert_allclose(got.square().mean(dim=1).numpy(), 47 / 48, atol=1e-4)


def test_a_flat_patch_gives_zeros_not_nan() -> None:
    assert torch.equal(normalised_patches(torch.ones(1, 3, 8, 8), 4), torch.zeros(1, 4, 48))


def test_prefixes_are_uniform_on_the_inclusive_range_and_depend_on_position_alone() -> None:
    drawn = prefix_lengths(np.arange(6000), 5, seed=1)
    counts = np.bincount(drawn, minlength=5)
    assert counts[0] == 0
    assert len(counts) == 5
    # four values, 1500 each: six standard deviations are 201
    assert np.all(np.abs(counts[1:] - 1500) < 201)
    assert np.array_equal(prefix_lengths(np.array([17, 4000]), 5, seed=1), drawn[[17, 4000]])
    assert not np.array_equal(prefix_lengths(np.arange(100), 5, seed=2), drawn[:100])
    assert np.array_equal(prefix_lengths(np.arange(50), 2, seed=0), np.ones(50))


def test_predicting_rows_against_brute_force() -> None:
    prefix, valid = np.array([1, 3, 4, 2]), np.array([True, True, True, False])
    expected = [
        sample * 5 + i
        for sample in range(4)
        for i in range(4)
        if valid[sample] and i + 1 >= prefix[sample]  # i predicts i + 1, the last patch predicts nothing
    ]
    assert predicting_rows(prefix, valid, 5).tolist() == expected


def test_padding_keeps_the_rows_in_front_and_few_lengths() -> None:
    lengths = set()
    for count in range(1, 960):
        rows, kept = padded(np.arange(count) + 5, 1024)
        assert kept == count
        assert rows[:count].tolist() == list(range(5, count + 5))
        assert not rows[count:].any()
        lengths.add(len(rows))
    assert lengths == set(range(32, 961, 32))


def test_gradients_match_finite_differences(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small_aim().double(), make_batch(2)
    parameter = objective.encoder.trunk.blocks[0].attn.qkv.weight
    objective(batch)[0].backward()
    assert parameter.grad is not None
    for place in ((0, 0), (20, 3), (40, 7)):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[place] += shift
                values.append(float(objective(batch)[0]))
                parameter[place] -= shift
        assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-5)


def test_every_parameter_gets_a_gradient(make_batch: Callable[..., Batch]) -> None:
    for config in (SMALL, dataclasses.replace(SMALL, head_identity_residual=True)):
        objective = small_aim(config)
        objective(make_batch(4))[0].backward()
        assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_parts_sum_to_the_whole(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small_aim(), make_batch(7)
    parts = micro_batches(batch, 3)
    assert [len(part.position) for part in parts] == [3, 3, 1]
    assert sum(objective.num_terms(part) for part in parts) == objective.num_terms(batch)
    assert sum(float(objective(part)[0]) for part in parts) == pytest.approx(float(objective(batch)[0]), rel=1e-6)


@torch.no_grad()
def test_padded_samples_are_not_in_the_loss(make_batch: Callable[..., Batch]) -> None:
    objective = small_aim()
    padded, short = make_batch(4, valid=[True, True, False, False]), make_batch(2)
    assert objective.num_terms(padded) == objective.num_terms(short)
    assert float(objective(padded)[0]) == pytest.approx(float(objective(short)[0]), rel=1e-6)
    empty = make_batch(2, valid=[False, False])
    assert (objective.num_terms(empty), float(objective(empty)[0])) == (0, 0.0)


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = small_aim(seed=3).state_dict()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = small_aim(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = small_aim(seed=4).state_dict()
    assert not torch.equal(first["head.decoder_pred.weight"], other["head.decoder_pred.weight"])


# Counts of the released backbones, and the training head of the 0.6B run (measured by others on the reference code).
@pytest.mark.parametrize(
    ("model", "backbone"),
    [("0.6B", 680_535_552), ("1B", 1_209_370_624), ("3B", 2_720_025_600), ("7B", 6_445_404_160)],
)
def test_published_models_have_the_published_number_of_parameters(model: str, backbone: int) -> None:
    with torch.device("meta"):
        objective = build_objective(AimConfig(kind="aim", model=model), image_size=224, seed=0)
    assert isinstance(objective, Aim)
    assert sum(p.numel() for p in objective.encoder.parameters()) == backbone
    if model == "0.6B":
        head = sum(p.numel() for p in objective.head.parameters())
        assert round(head / 1e6, 1) == 407.1
        stem = sum(p.numel() for p in objective.encoder.preprocessor.parameters())
        assert round(stem / 1e6, 1) == 0.9
        assert objective.train_flops_per_image / 1e9 == pytest.approx(1699, abs=1)


@pytest.mark.parametrize(("model", "gflops"), [("1B", 2523), ("3B", 4865), ("7B", 10636)])
def test_flops_per_image_are_the_published_arithmetic(model: str, gflops: int) -> None:
    with torch.device("meta"):
        objective = build_objective(AimConfig(kind="aim", model=model), image_size=224, seed=0)
    assert objective.train_flops_per_image / 1e9 == pytest.approx(gflops, rel=1e-3)


def test_needed_flops_count_what_the_loss_reads(make_batch: Callable[..., Batch]) -> None:
    objective, batch = small_aim(), make_batch(6, first=11)
    trunk, head = (sum(p.numel() for p in part.parameters()) for part in (objective.encoder, objective.head))
    pairs = int(_mask(objective, batch).sum())
    expected = 6 * trunk * 16 * 6 + 6 * head * objective.num_terms(batch) + 12 * 2 * 16 * pairs
    assert objective.needed_flops(batch) == expected
    assert objective.needed_flops(batch) < 6 * objective.train_flops_per_image


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown model '2B'; known models: tiny, 0\.6B"):
        AimConfig(kind="aim", model="2B")

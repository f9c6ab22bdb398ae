"""Mixup and CutMix: partners at any world size, shares as drawn, pixels as a slow loop has them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.train.objectives.mixing import MixConfig, Mixes, beta_quantiles, draw_mixes, mix, partners


@given(
    lanes=st.sampled_from([2, 4, 8, 12]),
    rows=st.integers(2, 6),
    step=st.integers(0, 10_000),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_partners_are_the_same_at_any_world_size(
    lanes: int, rows: int, step: int, seed: int, data: st.DataObject
) -> None:
    first = step * lanes * rows
    position = np.arange(first, first + lanes * rows)
    shuffled = np.concatenate([np.random.default_rng(step * rows + row).permutation(lanes) for row in range(rows)])
    whole = position[partners(shuffled, position, seed)]
    assert not (whole == position).any()
    assert sorted(whole) == sorted(position)
    world = data.draw(st.sampled_from([size for size in (1, 2, 3, 4, 6, 8, 12) if not lanes % size]))
    for rank in range(world):
        own = shuffled // (lanes // world) == rank
        assert (position[own][partners(shuffled[own], position[own], seed)] == whole[own]).all()


def test_partners_change_from_step_to_step() -> None:
    lane = np.tile(np.arange(4), 8)
    found = {tuple(partners(lane, np.arange(32) + 32 * step, 0)) for step in range(20)}
    assert len(found) > 5


def test_a_lane_with_one_picture_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lower mixture\.lanes to at most half of global_batch"):
        partners(np.arange(4), np.arange(4), 0)


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.8, 1.0, 2.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    """Against numpy's own draws, and its first two moments."""
    even = (np.arange(200_000) + 0.5) / 200_000
    ours = beta_quantiles(even, alpha)
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000))
    assert np.abs(ours - theirs).max() < 0.01
    assert ours.mean() == pytest.approx(0.5, abs=1e-4)
    assert ours.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    if alpha == 1:
        assert ours == pytest.approx(even, abs=1e-6)


def test_half_are_cut_and_half_are_blended_and_the_label_has_the_share_of_the_pixels() -> None:
    position = np.arange(20_000)
    mixes = draw_mixes(position, MixConfig(mixup=0.8, cutmix=1.0), seed=3, side=32)
    area = (mixes.box_B4[:, 1] - mixes.box_B4[:, 0]) * (mixes.box_B4[:, 3] - mixes.box_B4[:, 2])
    cut = area > 0
    assert cut.mean() == pytest.approx(0.5, abs=0.03)
    assert mixes.share_B[cut] == pytest.approx(1 - area[cut] / 32**2)
    assert (mixes.share_B >= 0).all()
    assert (mixes.share_B <= 1).all()
    rare = draw_mixes(position, MixConfig(mixup=0.8, probability=0.25), seed=3, side=32)
    assert (rare.share_B < 1).mean() == pytest.approx(0.25, abs=0.02)
    parts = [
        draw_mixes(position[rows], MixConfig(mixup=0.8, cutmix=1.0), seed=3, side=32)
        for rows in (slice(7), slice(7, None))
    ]
    assert np.concatenate([part.share_B for part in parts]).tolist() == mixes.share_B.tolist()


def test_pixels_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    own, other = (torch.from_numpy(rng.normal(size=(3, 3, 8, 8)).astype(np.float32)) for _ in range(2))
    mixes = Mixes(np.array([0.3, 0.75, 1.0]), np.array([[0, 0, 0, 0], [2, 6, 4, 8], [0, 0, 0, 0]]))
    got = mix(own, other, mixes)
    assert torch.allclose(got[0], 0.3 * own[0] + 0.7 * other[0], atol=1e-6)
    for row in range(8):
        for column in range(8):
            source = other if 2 <= row < 6 and 4 <= column < 8 else own
            assert torch.equal(got[1, :, row, column], source[1, :, row, column])
    assert torch.equal(got[2], own[2])

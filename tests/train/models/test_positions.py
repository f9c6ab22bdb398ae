"""Learnt positions of another resolution, as open_clip resamples them."""

from types import SimpleNamespace

import pytest
import torch

from headrace.train.models.positions import resampled


@pytest.mark.parametrize(("old", "new"), [(7, 14), (14, 7), (16, 24), (4, 5)])
def test_a_grid_with_a_class_token_is_resampled_as_open_clip_does(old: int, new: int) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    positions = torch.randn(old**2 + 1, 8)
    visual = SimpleNamespace(grid_size=(new, new), positional_embedding=torch.zeros(new**2 + 1, 8))
    state = {"visual.positional_embedding": positions.clone()}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=visual))
    got = resampled(positions, new**2 + 1)
    assert got is not None
    assert torch.allclose(got, state["visual.positional_embedding"], atol=1e-6)
    assert torch.equal(got[0], positions[0])


def test_a_grid_without_one_keeps_a_constant_and_no_square_is_left_alone() -> None:
    constant = torch.full((16, 4), 0.7)
    got = resampled(constant, 36)
    assert got is not None
    assert got.shape == (36, 4)
    assert torch.allclose(got, torch.full_like(got, 0.7), atol=1e-6)
    assert resampled(torch.zeros(15, 4), 36) is None
    assert resampled(torch.zeros(17, 4), 36) is None

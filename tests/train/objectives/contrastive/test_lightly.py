"""Losses and gradients are those of lightly, on the same features."""

import pytest
import torch
from torch import Tensor

from headrace.train.objectives.contrastive.losses import (
    Rows,
    nt_xent,
    sinkhorn,
    squared_distance,
    swapped_prediction,
    unit,
)

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

PICTURES, WIDTH, PROTOTYPES = 24, 16, 12


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradient_of(loss: Tensor, features: Tensor) -> Tensor:
    return torch.autograd.grad(loss, features, retain_graph=True)[0]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclrs_loss_is_ntxent(temperature: float) -> None:
    from lightly.loss import NTXentLoss

    features = drawn(2, PICTURES, WIDTH).requires_grad_()
    ones = torch.ones(PICTURES)
    views = unit(features)
    found = nt_xent(views, views, Rows(torch.arange(PICTURES), ones, ones), temperature=temperature)[0].mean()
    wanted = NTXentLoss(temperature=temperature)(features[0], features[1])
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=5e-7)
    torch.testing.assert_close(gradient_of(found, features), gradient_of(wanted, features), rtol=1e-5, atol=1e-7)


def test_byols_loss_is_four_and_twice_the_negative_cosines() -> None:
    from lightly.loss import NegativeCosineSimilarity

    features, targets = drawn(2, PICTURES, WIDTH).requires_grad_(), drawn(2, PICTURES, WIDTH + 1)[..., :WIDTH]
    found = sum(squared_distance(unit(features[v]), unit(targets[1 - v])).mean() for v in (0, 1))
    cosine = NegativeCosineSimilarity()
    wanted = 4 + 2 * (cosine(features[0], targets[1]) + cosine(features[1], targets[0]))
    assert isinstance(found, Tensor)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=5e-7)
    torch.testing.assert_close(gradient_of(found, features), gradient_of(wanted, features), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("queued", [0, 8])
def test_swavs_loss_is_swavloss(queued: int) -> None:
    from lightly.loss import SwaVLoss

    features = drawn(4, PICTURES, WIDTH).requires_grad_()
    prototypes, queue = unit(drawn(PROTOTYPES, WIDTH)), unit(drawn(2, queued + 1, WIDTH))[:, :queued]
    cosines = [unit(view) @ prototypes.T for view in features]
    counted = torch.ones(PICTURES + queued)
    codes = []
    for a in (0, 1):
        every = torch.cat([cosines[a].detach(), queue[a] @ prototypes.T])
        codes.append(sinkhorn(every, counted, epsilon=0.05, iterations=3)[:PICTURES])
    found = swapped_prediction(cosines, codes, temperature=0.1).mean()
    held = [queue[a] @ prototypes.T for a in (0, 1)] if queued else None
    wanted = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)(cosines[:2], cosines[2:], held)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    torch.testing.assert_close(gradient_of(found, features), gradient_of(wanted, features), rtol=1e-4, atol=1e-7)

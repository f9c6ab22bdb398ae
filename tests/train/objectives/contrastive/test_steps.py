"""Steps of each objective are those of plain loops written from the papers' algorithms, momentum encoders included."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch
from headrace.train.models.backbones import BackboneConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.contrastive.byol import ByolConfig
from headrace.train.objectives.contrastive.contrastive import Contrastive
from headrace.train.objectives.contrastive.moco import MocoConfig
from headrace.train.objectives.contrastive.simclr import SimclrConfig
from headrace.train.objectives.contrastive.swav import Swav, SwavConfig

BACKBONE = BackboneConfig(model="tiny", patch=8, width=16, depth=2, heads=2)
STEPS, LR = 4, 0.5
CONFIGS: dict[str, Any] = {
    "moco": MocoConfig(kind="moco", backbone=BACKBONE, hidden_width=12, feature_width=6, momentum=0.9),
    "byol": ByolConfig(kind="byol", backbone=BACKBONE, hidden_width=12, feature_width=6, momentum=0.9),
    "simclr": SimclrConfig(kind="simclr", backbone=BACKBONE, hidden_width=12, feature_width=6),
    "swav": SwavConfig(
        kind="swav", backbone=BACKBONE, hidden_width=12, feature_width=6, prototypes=5, frozen_steps=2, queue_images=12
    ),
}


def built(kind: str) -> Contrastive:
    objective = build_objective(CONFIGS[kind], image_size=16, seed=1).double()
    assert isinstance(objective, Contrastive)
    objective.follow_weights()  # prototypes of length 1 in float64 too
    return objective


def batches(make_batch: Callable[..., Batch], *, small: int = 0) -> list[Batch]:
    """Return a batch of 6 pictures for each step, of two views and `small` smaller ones."""
    found = []
    for step in range(STEPS):
        views = [make_batch(6, first=10 * step + 100 * number).images for number in range(2)]
        views += [make_batch(6, side=8, first=10 * step + 1000 * number).images for number in range(1, small + 1)]
        found.append(dataclasses.replace(make_batch(6, first=10 * step), images=views[0], other_views=tuple(views[1:])))
    return found


def trained(objective: Contrastive, given: Sequence[Batch]) -> list[float]:
    """Take the steps as `take_step` does, by plain gradient descent, and return the losses."""
    losses = []
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR)
    for step, batch in enumerate(given):
        objective.before_step(step, STEPS)
        objective.before_step(step, STEPS)  # a step that is done again
        loss = objective(batch)[0] / objective.num_terms(batch)
        loss.backward()
        objective.before_update()
        optimizer.step()
        objective.after_step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def head(head: nn.Module, x: Tensor) -> Tensor:
    """Return a head's output, its norms by the formula over the rows of this call."""
    for layer in head.children():
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
        else:
            x = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + layer.eps).sqrt()
            x = x if layer.weight is None else x * layer.weight + layer.bias
    return x


def length_1(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


@torch.no_grad()
def descend(modules: Sequence[nn.Module], loss: Tensor, *, but: Sequence[Tensor] = ()) -> None:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if not any(parameter is one for one in but):
            parameter -= LR * gradient


@torch.no_grad()
def move(own: nn.Module, towards: nn.Module, kept: float) -> None:
    for parameter, other in zip(own.parameters(), towards.parameters(), strict=True):
        parameter.copy_(parameter * kept + other * (1 - kept))


def kept_at(step: int, first: float) -> float:
    return 1 - (1 - first) * (1 + math.cos(math.pi * step / STEPS)) / 2


@pytest.mark.parametrize("kind", ["moco", "byol"])
def test_a_momentum_encoder_and_its_loss_are_those_of_the_papers_loop(
    make_batch: Callable[..., Batch], kind: str
) -> None:
    """MoCo v3 moves it inside step t, before the keys, with the weights before the step; BYOL behind the step."""
    objective, given = built(kind), batches(make_batch)
    encoder, projector, predictor = (
        copy.deepcopy(getattr(objective, n)) for n in ("encoder", "projector", "predictor")
    )
    slow, slow_projector = copy.deepcopy(encoder), copy.deepcopy(projector)
    expected = []
    for step, batch in enumerate(given):
        views = [objective.normalise(view).double() for view in batch.views]
        q = [length_1(head(predictor, head(projector, encoder.pooled(view)))) for view in views]
        if kind == "moco":
            move(slow, encoder, kept_at(step, 0.9))
            move(slow_projector, projector, kept_at(step, 0.9))
        with torch.no_grad():
            k = [length_1(head(slow_projector, slow.pooled(view))) for view in views]
        if kind == "moco":
            right = torch.arange(6)
            loss = sum(functional.cross_entropy(q[v] @ k[1 - v].T / 0.2, right) * 2 * 0.2 for v in (0, 1))
        else:
            loss = sum((2 - 2 * (q[v] * k[1 - v]).sum(dim=1)).mean() for v in (0, 1))
        descend([encoder, projector, predictor], loss)
        if kind == "byol":
            move(slow, encoder, kept_at(step, 0.9))
            move(slow_projector, projector, kept_at(step, 0.9))
        expected.append(float(loss.detach()))
    if kind == "moco":  # ours has done the move of the next step, were there one: it keeps all of itself
        move(slow, encoder, kept_at(STEPS, 0.9))
    assert trained(objective, given) == pytest.approx(expected, rel=1e-9)
    moved: Any = objective.momentum
    same_parameters(moved.encoder, slow)
    same_parameters(moved.projector, slow_projector)
    same_parameters(objective.encoder, encoder)
    assert not any(parameter.requires_grad for parameter in moved.parameters())
    assert moved.projector[1].num_batches_tracked == 2 * STEPS, "statistics are its own"
    assert not torch.equal(moved.projector[1].running_mean, objective.projector[1].running_mean)  # type: ignore[index, union-attr]


def same_parameters(found: nn.Module, wanted: nn.Module) -> None:
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


def test_simclr_is_its_papers_loop(make_batch: Callable[..., Batch]) -> None:
    objective, given = built("simclr"), batches(make_batch)
    encoder, projector = copy.deepcopy(objective.encoder), copy.deepcopy(objective.projector)
    expected = []
    for batch in given:
        images = torch.cat([objective.normalise(view).double() for view in batch.views])
        z = length_1(head(projector, encoder.pooled(images)))
        total = torch.zeros((), dtype=torch.float64)
        for i in range(12):
            others = torch.stack([z[i] @ z[k] / 0.1 for k in range(12) if k != i])
            total = total + others.exp().sum().log() - z[i] @ z[(i + 6) % 12] / 0.1
        descend([encoder, projector], total / 12)
        expected.append(float(total.detach()) / 12)
    assert trained(objective, given) == pytest.approx(expected, rel=1e-9)
    same_parameters(objective.encoder, encoder)


def test_swav_is_its_papers_loop(make_batch: Callable[..., Batch]) -> None:
    """Two views, two small ones; prototypes at rest for two steps; a queue of two batches, which then counts."""
    objective, given = built("swav"), batches(make_batch, small=2)
    assert isinstance(objective, Swav)
    objective.expect_views([16, 16, 8, 8], global_batch=6)
    encoder, projector, prototypes = (
        copy.deepcopy(module) for module in (objective.encoder, objective.projector, objective.prototypes)
    )
    queue: list[list[Tensor]] = [[], []]
    expected = []
    for step, batch in enumerate(given):
        views = [encoder.pooled(objective.normalise(view).double()) for view in batch.views]
        z = length_1(head(projector, torch.cat(views))).chunk(4)
        cosines = [one @ prototypes.weight.T for one in z]
        terms = []
        for a in (0, 1):
            held = torch.cat([z[a], *queue[a]]) if len(queue[a]) == 2 else z[a]
            q = ((held @ prototypes.weight.T) / 0.05).exp().detach()
            for _ in range(3):
                q = q / q.sum(dim=0) / 5
                q = q / q.sum(dim=1, keepdim=True) / len(q)
            code = q[:6] * len(q)
            terms += [-(code * functional.log_softmax(cosines[v] / 0.1, dim=1)).sum(dim=1) for v in range(4) if v != a]
            queue[a] = [z[a].detach(), *queue[a]][:2]
        loss = torch.stack(terms).mean()
        descend([encoder, projector, prototypes], loss, but=[prototypes.weight] if step < 2 else [])
        with torch.no_grad():
            prototypes.weight.copy_(length_1(prototypes.weight))
        expected.append(float(loss.detach()))
    first = objective.prototypes.weight.detach().clone()
    assert trained(objective, given) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(objective.prototypes.weight, prototypes.weight)
    assert float((first - prototypes.weight.detach()).abs().max()) > 1e-3, "they moved once they might"
    torch.testing.assert_close(objective.queue_AQD, torch.stack([torch.cat(one) for one in queue]))


def test_the_prototypes_rest_to_the_bit_in_their_first_steps(make_batch: Callable[..., Batch]) -> None:
    objective = built("swav")
    objective.expect_views([16, 16, 8, 8], global_batch=6)
    first, (batch, *_) = objective.prototypes.weight.detach().clone(), batches(make_batch, small=2)  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(2):
        objective.before_step(step, STEPS)
        objective(batch)[0].backward()
        objective.before_update()
        optimizer.step()
        objective.after_step()
        optimizer.zero_grad()
    assert torch.equal(objective.prototypes.weight, first)
    assert not optimizer.state[objective.prototypes.weight]  # type: ignore[index]


def test_weights_from_elsewhere_are_those_of_the_momentum_encoder_too() -> None:
    objective: Any = built("moco")
    with torch.no_grad():
        objective.encoder.norm.bias.fill_(0.25)
    objective.follow_weights()
    assert objective.momentum.encoder.norm.bias.tolist() == [0.25] * 16

"""One optimizer step, on this process's share of the global batch.

The loss is divided by the number of terms of the *global* batch before backward; averaging means per rank or
micro-batch would weigh patches unequally.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.shards.permutation import make_key
from headrace.text import shown
from headrace.train.batches import micro_batches
from headrace.train.config import RunConfig
from headrace.train.objectives.objective import RowError
from headrace.train.optim import set_groups
from headrace.train.parallel.layout import whole
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.signals import Interrupted
from headrace.train.parallel.strategy import reducing
from headrace.train.state import TrainState
from headrace.train.steady.bad_steps import Norms, Skipped, first_layer_norm
from headrace.train.steady.layer_norms import LayerNorms, is_due, own_norms
from headrace.train.steady.skipping import StepValues, stop_or_skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one optimizer step gave, the same on all ranks."""

    loss: float
    grad_norm: float
    lr: float
    stop: bool
    """True if any rank was asked to stop."""
    report: Mapping[str, Tensor]
    """Scalars of this rank's last micro-batch, not losses; still on the device."""
    first_layer_norm: float = math.nan
    """Norm of the first layer's gradient, before clipping."""
    skipped: Skipped | None = None
    """What is recorded of it, if it did not move the weights."""
    layer_norms: LayerNorms | None = None
    """Norms of the gradients of each layer, before clipping; None where they are not logged."""


def next_batch(state: TrainState, ranks: Ranks) -> Batch | None:
    """Return the next batch; None where a signal broke off the wait for it, and the stream stands before it again."""
    ranks.enters("data", state.step)
    if ranks.size > 1:
        return next(state.stream)  # the others need this rank in their step
    before = state.stream.state_dict()
    try:
        with ranks.stop.interrupting():
            return next(state.stream)
    except Interrupted:
        state.stream.load_state_dict(before)  # the signal may have come when the batch was already taken
        return None


def take_step(config: RunConfig, state: TrainState, batch: Batch, *, ranks: Ranks, stopping: bool) -> Step:
    """Do one optimizer step on this rank's share of the global batch. Raises BadStepError before the weights move."""
    # No objective here draws from torch's generator; one that did (dropout) would still resume exactly.
    torch.manual_seed(make_key(config.seed, "step", state.step, ranks.rank))
    state.objective.before_step(state.step, config.steps)
    lr = config.rate(state.step)
    set_groups(config.optimizer, state.optimizer, lr=lr)

    ranks.enters("forward")
    state.buffers.keep()
    terms, missing = ranks.sum(_counts(config, state, batch), f"step {state.step}")
    terms = max(terms, 1.0)  # a step of nothing but rows without captions has a loss of 0
    total, report = torch.zeros((), device=ranks.device), {}
    parts = micro_batches(state.objective.before_cut(batch), config.images_per_micro_batch)
    with autocast(config.precision, ranks.device):
        state.objective.prepare(parts)
    for part in parts:
        ranks.enters("forward")
        with reducing(state.model, last=part is parts[-1]):
            with autocast(config.precision, ranks.device):
                loss, report = state.model(part)
            ranks.enters("backward")
            # Gradients are averaged over ranks; times their number, that is the sum.
            (loss * (ranks.size / terms)).backward()
        total += loss.detach()
    ranks.enters("update")
    state.objective.before_update()
    first = first_layer_norm(state.objective, ranks.device)
    logged = is_due(config, state.step + 1)
    layers, of_layers = own_norms(state.objective, ranks.device) if logged else ([], first.new_empty(0))
    norm = whole(torch.nn.utils.clip_grad_norm_(state.objective.parameters(), config.clip_grad_norm))

    # The one place of a step that waits for the device: the verdict must be known before the weights move.
    own_loss, grad_norm, own_first, *by_layer = torch.cat(
        [torch.stack([total / terms, norm, first]), of_layers]
    ).tolist()
    sums = ranks.sum([own_loss, grad_norm, own_first, stopping], f"step {state.step}")
    loss_value, stops = sums[0], sums[3]
    norms = Norms(total=sums[1] / ranks.size, first_layer=sums[2] / ranks.size)  # so the verdict is the same everywhere
    fault = state.watch.judge(config, loss=loss_value, norms=norms)
    skipped = None
    if fault is None:
        state.optimizer.step()
        state.objective.after_step()
        if state.average is not None and config.ema is not None:
            state.average.update(state.objective, config.ema, step=state.step)
        state.watch.accept(config, norms)
    else:
        state.buffers.put_back()
        values = StepValues(own_loss, grad_norm, loss_value, norms.total, int(missing))
        skipped = stop_or_skip(config, state.watch, fault, batch, step=state.step, values=values, ranks=ranks)
    state.optimizer.zero_grad(set_to_none=True)
    _count(state, missing, skipped)
    return Step(
        loss=loss_value,
        grad_norm=grad_norm,
        first_layer_norm=norms.first_layer,
        lr=lr,
        stop=stops > 0,
        report=report,
        skipped=skipped,
        layer_norms=LayerNorms(layers, by_layer) if logged else None,
    )


def skip_again(config: RunConfig, state: TrainState, skipped: Skipped, *, ranks: Ranks, stopping: bool) -> Step:
    """Pass over a step that was skipped before a kill."""
    lr = config.rate(state.step)
    stops = ranks.sum([stopping], f"step {state.step}")[0]
    _count(state, skipped.missing, skipped)
    loss, norm = (math.nan if value is None else value for value in (skipped.loss, skipped.grad_norm))
    return Step(loss=loss, grad_norm=norm, lr=lr, stop=stops > 0, report={}, skipped=skipped)


def _count(state: TrainState, missing: float, skipped: Skipped | None) -> None:
    state.step += 1
    state.missing += int(missing)
    if skipped is not None:
        state.watch.skipped.append(skipped)


def _counts(config: RunConfig, state: TrainState, batch: Batch) -> list[float]:
    """Return terms and rows left out of this rank's share. Raises ValueError naming a sample that is never right."""
    try:
        return [state.objective.num_terms(batch), state.objective.num_missing(batch)]
    except RowError as error:
        source = config.mixture.sources[int(batch.source[error.row])]
        where = f"source {source.name!r} ({source.url}), sample {shown(batch.key[error.row])}"
        raise ValueError(f"step {state.step}: {where}: {error}") from error

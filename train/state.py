"""What one process holds during a run, and how it comes to hold it.

After `open_state`, weights, moments and stream stand at the same step. A checkpoint of other settings is refused, not
adapted, except for the free fields that change no result.
"""

import contextlib
import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headrace.pipeline import open_stream
from headrace.torch import DeviceBatches
from headrace.train.config import RunConfig
from headrace.train.evaluate.monitors import check_monitors
from headrace.train.model import first_weights, place_model
from headrace.train.objectives.objective import Objective
from headrace.train.optim.ema import WeightAverage
from headrace.train.parallel.layout import Layout
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.strategy import is_spread, wrapped
from headrace.train.runs.background import BackgroundSaver
from headrace.train.runs.branch import branch
from headrace.train.runs.checkpoint import (
    Checkpoint,
    Progress,
    newest_checkpoint,
    refuse_other_config,
    remove_old,
    restore,
    save_checkpoint,
    warn_of_other_arithmetic,
)
from headrace.train.runs.saving import NO_AVERAGE
from headrace.train.sources import check_length, check_size, check_sources
from headrace.train.steady.bad_steps import StepWatch
from headrace.train.steady.buffers import StepBuffers
from headrace.train.steady.changes import Period, averaged_since, periods, planned_mixture
from headrace.train.steady.skipping import Journal, open_journal
from headrace.train.steady.start import check_room, check_validation

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainState:
    """Weights, moments, `step` and the stream's state go into a checkpoint; `model` is runtime."""

    objective: Objective
    model: nn.Module
    """What forward is called on: the objective, or its wrapper that reduces gradients over ranks."""
    optimizer: torch.optim.Optimizer
    stream: DeviceBatches
    """Batches on this rank's device, copied there while it computes."""
    step: int
    """Optimizer steps done."""
    missing: int
    """Samples that were left out so far, over all ranks, for want of what the objective needs of their columns."""
    resumed: bool
    """True if a checkpoint was found."""
    layout: Layout
    """Which part of weights and moments this process holds."""
    saver: BackgroundSaver | None = None
    """Writes checkpoints while training goes on; None = a save ends before the next step."""
    watch: StepWatch = field(default_factory=StepWatch)
    """Steps that were skipped, and norms of the latest ones."""
    initial: dict[str, Any] | None = None
    """What the weights were started from; None = they were drawn, or come from a checkpoint."""
    average: WeightAverage | None = None
    """The average of the weights, where the run has one at this step."""
    journal: Journal = field(default_factory=dict)
    """Steps that earlier starts of this run skipped behind the checkpoint: they are skipped again."""
    buffers: StepBuffers = field(init=False)
    """What a forward pass changes beside the weights."""

    def __post_init__(self) -> None:
        self.buffers = StepBuffers(self.objective)


@contextlib.contextmanager
def open_state(config: RunConfig, ranks: Ranks) -> Iterator[TrainState]:
    """Build model, optimizer and stream, and bring them to the newest whole checkpoint if there is one."""
    objective, layout = place_model(config, ranks)
    optimizer = config.optimizer.build(objective)
    average: WeightAverage | None = None

    def resume(checkpoint: Checkpoint) -> None:
        nonlocal average
        refuse_other_config(checkpoint, config)
        began, step = time.perf_counter(), checkpoint.progress.step
        if step > config.total_steps:
            raise ValueError(f"{checkpoint.path} holds step {step}, beyond the {config.total_steps} of its own config")
        since = averaged_since(periods(config), step)
        average = None if since in (None, step) else WeightAverage(objective, first_step=since)
        averages = average.tensors if average is not None else NO_AVERAGE
        size = restore(checkpoint, objective, optimizer, ranks=ranks, layout=layout, average=averages)
        if ranks.is_first:
            warn_of_other_arithmetic(checkpoint)
            seconds, path = time.perf_counter() - began, checkpoint.path
            log.info("resumed from %s: %d steps are done", path, step)
            log.info("rank 0 read %d bytes of it in %.1f s", size, seconds)

    checkpoint = newest_checkpoint(checkpoints_of(config), use=resume, ranks=ranks)
    if checkpoint is None:
        checkpoint = branch(config, use=resume, ranks=ranks)
    step = 0 if checkpoint is None else checkpoint.progress.step
    initial = first_weights(config, objective, ranks) if checkpoint is None else None
    mixture = planned_mixture(config)
    opened = open_stream(
        mixture,
        global_batch=config.global_batch,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=objective.columns,
        map=objective.sample_map(mixture),
        device=str(ranks.device),
    )
    stream = DeviceBatches(opened, ranks.device)
    with contextlib.closing(stream), _saver(config, objective, optimizer, ranks=ranks, layout=layout) as saver:
        check_validation(config)
        check_monitors(objective, config)
        check_sources(objective, config)
        check_length(opened, config)
        check_size(opened, objective)
        if checkpoint is not None:
            stream.load_state_dict(checkpoint.progress.stream)
        if stream.position != step * config.global_batch:
            raise ValueError(
                f"{checkpoints_of(config)}: step {step} does not belong to position {stream.position} of the stream"
            )
        if step < config.total_steps:
            check_room(config, objective, ranks)
        yield TrainState(
            objective=objective,
            model=objective if is_spread(objective) else wrapped(objective, ranks),
            optimizer=optimizer,
            stream=stream,
            step=step,
            missing=0 if checkpoint is None else checkpoint.progress.missing,
            resumed=checkpoint is not None,
            layout=layout,
            saver=saver,
            watch=StepWatch() if checkpoint is None else checkpoint.progress.watch,
            average=average,
            journal=open_journal(config, ranks),
            initial=initial,
        )


@contextlib.contextmanager
def _saver(
    config: RunConfig, objective: Objective, optimizer: torch.optim.Optimizer, *, ranks: Ranks, layout: Layout
) -> Iterator[BackgroundSaver | None]:
    """Yield who writes checkpoints beside the steps, where the run wants that."""
    if not config.checkpoint.asynchronous:
        yield None
        return
    saver = BackgroundSaver(checkpoints_of(config), objective, optimizer, ranks=ranks, layout=layout)
    with contextlib.closing(saver):
        yield saver


def save_state(config: RunConfig, state: TrainState, ranks: Ranks, *, stream: dict[str, Any] | None = None) -> None:
    """Write the checkpoint of this step and remove old ones; called on all ranks.

    `stream` is the state of the stream at this step, where the stream itself is ahead of it. With a saver a thread
    still writes when this returns.
    """
    folder, step = checkpoints_of(config), state.step
    progress = Progress(
        step=step,
        stream=copy.deepcopy(stream or state.stream.state_dict()),
        missing=state.missing,
        watch=copy.deepcopy(state.watch),
    )

    def tidy() -> None:
        remove_old(folder, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every, step=step)

    average = state.average.tensors if state.average is not None else NO_AVERAGE
    if state.saver is not None:
        state.saver.save(progress=progress, config=config, average=average, then=tidy)
        return
    save_checkpoint(
        folder,
        state.objective,
        state.optimizer,
        progress=progress,
        config=config,
        ranks=ranks,
        layout=state.layout,
        average=average,
    )
    if ranks.is_first:
        tidy()


def follow_average(state: TrainState, plan: Sequence[Period], ranks: Ranks) -> None:
    """Begin the average of the weights at the step where the plan does, or drop it where the plan does."""
    since = averaged_since(plan, state.step)
    if since is None:
        state.average = None
    elif state.average is None:
        assert since == state.step, "an average that began before comes from the checkpoint"
        state.average = WeightAverage(state.objective, first_step=since)
        if ranks.is_first:
            log.info("the average of the weights begins at step %d, with the weights of that step", since)


def checkpoints_of(config: RunConfig) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(config.out) / "checkpoints"

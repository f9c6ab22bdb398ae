"""What a run does between two steps: it saves, looks at the weights, and writes down what the step gave.

Nothing here changes what the next step computes: a run that saves, validates and logs more often ends with the same
weights.
"""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headrace.pipeline import Batch
from headrace.pipeline.seen import StepRecord
from headrace.train.config import RunConfig
from headrace.train.evaluate.monitor_config import MonitorConfig
from headrace.train.evaluate.monitors import SharedSets, monitor_values
from headrace.train.evaluate.validation import losses_by_place, validation_values
from headrace.train.parallel.presence import Phase
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.export import export_model
from headrace.train.runs.folder import passing_full_disk
from headrace.train.runs.meter import Meter
from headrace.train.runs.metrics import Metrics, MetricsFile
from headrace.train.runs.state_file import AVERAGE
from headrace.train.state import TrainState, save_state
from headrace.train.steady.bad_steps import all_finite
from headrace.train.steady.changes import Period
from headrace.train.step import Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """Something that looks at the weights every so many steps, on all ranks, and leaves them as they are."""

    event: str
    """The `event` of its lines in `metrics.jsonl`; there is one line a step."""
    every: int
    values: Callable[[], Mapping[str, Any] | None]
    """Called on all ranks; what the line says, None = it was broken off and says nothing."""


def monitors_of(config: RunConfig, state: TrainState, ranks: Ranks) -> list[Monitor]:
    """Return what looks at the weights between steps, in this order: the one place where it is entered."""
    found = []
    if config.validation is not None:
        every = config.validation.every
        found.append(Monitor(event="validation", every=every, values=lambda: _validation(config, state, ranks)))
        if config.validation.by_place:
            by_place = partial(losses_by_place, state.objective, config, ranks)
            found.append(Monitor(event="loss_by_place", every=every, values=by_place))
    shared = SharedSets()
    for monitor in config.monitors:
        look = partial(_look, monitor, config, state, shared=shared, ranks=ranks)
        found.append(Monitor(event=f"monitor/{monitor.called}", every=monitor.every, values=look))
    return found


def _validation(config: RunConfig, state: TrainState, ranks: Ranks) -> dict[str, float]:
    """Return the values of the weights, and under `ema_NAME` those of their average where the run has one."""
    assert config.validation is not None
    averaged: dict[str, float] = {}
    if state.average is not None and config.validation.of_average:
        with state.average.in_place_of(state.objective):
            averaged = validation_values(state.objective, config, ranks)
    # The weights last: `losses_by_place` takes what the newest pass left.
    values = validation_values(state.objective, config, ranks)
    left_out = state.objective.missing
    return values | {f"{AVERAGE}_{name}": value for name, value in averaged.items() if name != left_out}


def _look(
    monitor: MonitorConfig, config: RunConfig, state: TrainState, *, shared: SharedSets, ranks: Ranks
) -> Mapping[str, Any] | None:
    return monitor_values(monitor, config, state.objective, step=state.step, shared=shared, ranks=ranks)


@dataclass(slots=True, kw_only=True)
class Boundary:
    """The place between two steps of a run."""

    config: RunConfig
    state: TrainState
    ranks: Ranks
    metrics: MetricsFile
    record: StepRecord
    write: Callable[[Metrics], None]
    """Takes a line of metrics; on rank 0 it is written."""
    monitors: list[Monitor]
    saved_step: int
    """Steps done at the newest checkpoint."""
    meter: Meter = field(default_factory=Meter)

    def save_if_due(self, *, must: bool) -> None:
        """Write a checkpoint if one is due here, or `must` be."""
        if must or self.state.step % self.config.checkpoint.every == 0:
            self._save(must=must)

    def look_if_due(self, *, last: bool) -> None:
        """Let each monitor look that is due here, or all of them behind the `last` step; each looks once a step."""
        step = self.state.step
        for monitor in self.monitors:
            if not last and step % monitor.every:
                continue
            if self.ranks.from_first(self.metrics.has(monitor.event, step), f"{monitor.event} at {step}"):
                continue
            with self._apart("looking"):
                values = monitor.values()
            if values is not None:
                self.write({"event": monitor.event, "step": step, **values})

    def export(self) -> None:
        """Write the finished weights."""
        out, config, objective, average = Path(self.config.out), self.config, self.state.objective, self.state.average
        with self.ranks.first_writes("the exported weights") as writes:
            export_model(out, config, objective, writes=writes)
        if average is not None:
            with average.in_place_of(objective), self.ranks.first_writes("the exported average") as writes:
                export_model(out / AVERAGE, config, objective, writes=writes)

    def tell_changes(self, period: Period) -> None:
        """Record what changes before this step; once, also where the run was stopped just here."""
        if not period.changes or self.state.step != period.first_step:
            return
        if self.ranks.is_first and not self.metrics.has("change", period.first_step):
            log.info("from step %d on: %s", period.first_step, "; ".join(filter(None, (str(period), period.jump))))
            self.write({"event": "change", "step": period.first_step, "changes": period.changes})

    def poll_save(self) -> None:
        """Ask how far a checkpoint is that is written beside the steps."""
        if self.state.saver is not None:
            with passing_full_disk(self.config):
                self.state.saver.poll()

    def note(self, step: Step, batch: Batch) -> None:
        """Count the step that was just done, and write its line of metrics if one is due."""
        config, state, ranks = self.config, self.state, self.ranks
        self.record.add(batch)
        self.meter.add(images=config.global_batch, waited=batch.waited_seconds)
        if state.step % config.log_every == 0 or state.step == config.total_steps:
            line = train_line(config, state, step) | self.meter.read(state.objective, batch, ranks)
            line["data_bound_by"] = state.stream.stats().bound_by or None
            self.record.flush(ranks.sum)
            self.write(line)
        if step.layer_norms is not None:
            self.write(step.layer_norms.line(state.objective, layout=state.layout, ranks=ranks, step=state.step))

    def keep_good_weights(self, stream: dict[str, Any], cure: str) -> str:
        """Save the weights before a bad step, if they are good, and say how the run can go on."""
        step, finite = self.state.step, all_finite(self.state.objective.parameters())
        if self.ranks.sum([not finite], "the check of the weights")[0]:
            return (
                "they are not finite since a step before: remove the checkpoints from there on, and start again with a "
                "lower optimizer.lr"
            )
        self._save(must=True, stream=stream)
        return (
            f"the run is saved at step {step}: start it again with {cure} to leave such steps out, or with "
            f"changes_at: {{{step}: {{optimizer.lr: ...}}}}"
        )

    def _save(self, *, must: bool, stream: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, if this step has none; on a full disk let it be, unless it `must` be."""
        if self.state.step > self.saved_step:
            self._save_this_step(must=must, stream=stream)
        if must and self.state.saver is not None:
            with self._apart("saving"):
                self.state.saver.finish()

    @contextlib.contextmanager
    def _apart(self, phase: Phase) -> Iterator[None]:
        """Leave the time of this context out of the rates, and let it last as long as it takes."""
        self.ranks.enters(phase)
        with self.meter.paused():
            yield
        self.ranks.enters("")

    def _save_this_step(self, *, must: bool, stream: dict[str, Any] | None) -> None:
        with self._apart("saving"):
            self.record.flush(self.ranks.sum)  # a run that goes on from here must not lack the steps before
            with contextlib.nullcontext() if must else passing_full_disk(self.config):
                save_state(self.config, self.state, self.ranks, stream=stream)
                self.saved_step = self.state.step
            self.record.retry()
            self.metrics.retry()
            gc.collect()


def train_line(config: RunConfig, state: TrainState, step: Step) -> Metrics:
    """Return what a line of metrics says of the step itself."""
    line: Metrics = {"event": "train", "step": state.step, "samples": state.step * config.global_batch}
    line |= {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}
    line["first_layer_grad_norm"] = step.first_layer_norm
    if state.watch.skipped:
        line["skipped_steps"] = len(state.watch.skipped)
    line |= {name: float(value) for name, value in step.report.items()}
    return line | ({state.objective.missing: state.missing} if state.objective.missing else {})

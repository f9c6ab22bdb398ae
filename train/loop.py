"""The training loop, read from top to bottom.

What step t computes is a function of (config, t): weights of step t, the stream's batch t, prefixes of its positions.
So a killed run, started again, goes on as if nothing had happened. The loss is divided by the number of terms of the
*global* batch before backward; averaging means per rank or micro-batch would weigh patches unequally.
"""

import contextlib
import gc
import logging
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.pipeline import Batch
from headrace.pipeline.seen import FILE as SEEN_FILE
from headrace.pipeline.seen import StepRecord
from headrace.shards.permutation import make_key
from headrace.text import shown
from headrace.train.batches import micro_batches
from headrace.train.collector import collect_young, collecting_at_boundaries
from headrace.train.config import RunConfig
from headrace.train.evaluate.validation import validation_values
from headrace.train.objectives.objective import RowError
from headrace.train.optim import set_groups
from headrace.train.parallel.layout import whole
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.parallel.signals import Interrupted, watch_signals
from headrace.train.parallel.strategy import reducing
from headrace.train.profiling import profiling
from headrace.train.runs.export import export_model
from headrace.train.runs.folder import BadStepError, own_run, passing_full_disk, write_records
from headrace.train.runs.initial import write_report
from headrace.train.runs.meter import Meter
from headrace.train.runs.metrics import Metrics, MetricsFile
from headrace.train.state import TrainState, open_state, save_state
from headrace.train.steady.bad_steps import Norms, Skipped, all_finite, first_layer_norm
from headrace.train.steady.changes import Period, period_at, periods
from headrace.train.steady.skipping import StepValues, record_skipped, skipped_before, stop_or_skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended."""

    out: Path
    step: int
    """Optimizer steps done."""
    is_first: bool
    """True in the one process that speaks to the user."""
    has_trunk: bool
    """True if a probe can read what was trained."""
    stopped_by: int = 0
    """The signal that stopped the run before its last step; the same command continues it. 0 = it is finished."""

    @property
    def finished(self) -> bool:
        """True if the last step is done."""
        return not self.stopped_by


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


def train(config: RunConfig, *, on_metrics: Callable[[Metrics], None] = lambda _: None) -> TrainResult:
    """Run, or continue, the run in `config.out`; under torchrun, as one of its processes.

    `on_metrics` is called on rank 0 with each line of metrics. Raises ValueError for a config that cannot run or
    differs from the checkpoint's, and BadStepError (a ValueError) before a step that would spoil the weights.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(config.device, timeout_seconds=config.timeout_seconds))
        stack.enter_context(own_run(config, ranks))
        state = stack.enter_context(open_state(config, ranks))
        metrics = stack.enter_context(contextlib.closing(_open_metrics(config, state, ranks)))
        record = stack.enter_context(contextlib.closing(_open_record(config, state, ranks)))
        stack.enter_context(watch_signals(ranks.stop))
        stack.enter_context(collecting_at_boundaries())
        profiled = stack.enter_context(
            profiling(
                config.profile, Path(config.out) / "profile", step=state.step, rank=ranks.rank, device=ranks.device
            )
        )
        if ranks.is_first:
            _log_start(config, state, ranks)

        def write(line: Metrics) -> None:
            if ranks.is_first:
                metrics.write(line)
                on_metrics(line)

        if state.initial is not None:
            _tell_initial(config, state.initial, ranks, write)
        run = _Run(
            config=config,
            state=state,
            ranks=ranks,
            metrics=metrics,
            record=record,
            write=write,
            plan=periods(config),
            saved_step=state.step,
            profiled=profiled,
        )
        return run.to_its_end()


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run under way."""

    config: RunConfig
    state: TrainState
    ranks: Ranks
    metrics: MetricsFile
    record: StepRecord
    write: Callable[[Metrics], None]
    plan: list[Period]
    saved_step: int
    """Steps done at the newest checkpoint."""
    profiled: Callable[[], None]
    """Called after each step."""
    meter: Meter = field(default_factory=Meter)

    def to_its_end(self) -> TrainResult:
        """Step, save and validate until the last step is done or a signal asks to stop."""
        stop, config, state = False, self.config, self.state
        while True:
            last = state.step == config.total_steps
            # Before the validation: a fault of that must not cost the steps that led to it.
            if last or stop or state.step % config.checkpoint.every == 0:
                self._save(must=last or stop)
            if stop and not last:
                numbers = self.ranks.gathered(str(self.ranks.stop.number), "the end")
                return self._result(stopped_by=max(map(int, numbers)) or int(signal.SIGTERM))
            if config.validation is not None and (last or state.step % config.validation.every == 0):
                self._validate()
            if last:
                with self.ranks.first_writes("the exported weights") as writes:
                    export_model(Path(config.out), config, state.objective, writes=writes)
                return self._result()
            stop = self._step()

    def _save(self, *, must: bool, stream: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, if this step has none; on a full disk let it be, unless it `must` be."""
        if self.state.step > self.saved_step:
            self._save_this_step(must=must, stream=stream)
        if must and self.state.saver is not None:
            with self.meter.paused():
                self.state.saver.finish()

    def _save_this_step(self, *, must: bool, stream: dict[str, Any] | None) -> None:
        with self.meter.paused():
            self.record.flush(self.ranks.sum)  # a run that goes on from here must not lack the steps before
            with contextlib.nullcontext() if must else passing_full_disk(self.config):
                save_state(self.config, self.state, self.ranks, stream=stream)
                self.saved_step = self.state.step
            self.record.retry()
            self.metrics.retry()
            gc.collect()

    def _validate(self) -> None:
        step, ranks = self.state.step, self.ranks
        if ranks.from_first(self.metrics.has("validation", step), f"validation at {step}"):
            return
        with self.meter.paused():
            values = validation_values(self.state.objective, self.config, ranks)
        self.write({"event": "validation", "step": step, **values})

    def _step(self) -> bool:
        """Do the next step, and return True if the run is asked to stop."""
        config, state, ranks = self.config, self.state, self.ranks
        period = period_at(self.plan, state.step)
        if period.changes and state.step == period.first_step:
            self._tell_changes(period)
        before = state.stream.state_dict()
        batch = _next_batch(state, ranks)
        if batch is None:
            return True
        again = skipped_before(config, state.journal, batch, step=state.step, ranks=ranks)
        try:
            if again is not None:
                step = skip_again(period.config, state, again, ranks=ranks, stopping=bool(ranks.stop))
            else:
                step = take_step(period.config, state, batch, ranks=ranks, stopping=bool(ranks.stop))
        except BadStepError as error:
            raise type(error)(f"{error}; {self._keep_good_weights(before, error.cure)}") from None
        if step.skipped is not None:
            self.write(record_skipped(config, step.skipped, batch, ranks, again=again is not None))
        if state.saver is not None:
            with passing_full_disk(config):
                state.saver.poll()
        self.profiled()
        collect_young(state.step)
        self.record.add(batch)
        self.meter.add(images=config.global_batch, waited=batch.waited_seconds)
        if state.step % config.log_every == 0 or state.step == config.total_steps:
            line = _train_line(config, state, step) | self.meter.read(state.objective, batch, ranks)
            line["data_bound_by"] = state.stream.stats().bound_by or None
            self.record.flush(ranks.sum)
            self.write(line)
        return step.stop

    def _tell_changes(self, period: Period) -> None:
        """Record what changes before this step; once, also where the run was stopped just here."""
        if self.ranks.is_first and not self.metrics.has("change", period.first_step):
            told = ", ".join(f"{path} {was} -> {now}" for path, (was, now) in period.changes.items())
            log.info("from step %d on: %s", period.first_step, told)
            self.write({"event": "change", "step": period.first_step, "changes": period.changes})

    def _keep_good_weights(self, stream: dict[str, Any], cure: str) -> str:
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

    def _result(self, stopped_by: int = 0) -> TrainResult:
        return TrainResult(
            out=Path(self.config.out),
            step=self.state.step,
            is_first=self.ranks.is_first,
            has_trunk=self.state.objective.trunk is not None,
            stopped_by=stopped_by,
        )


def _tell_initial(config: RunConfig, initial: dict[str, Any], ranks: Ranks, write: Callable[[Metrics], None]) -> None:
    """Record what the weights of step 0 were taken from."""
    if ranks.is_first:
        write_report(Path(config.out), initial)
    counts = {name: len(initial[name]) for name in ("taken", "left_out", "fresh")}
    write({"event": "init", "step": 0, "summary": initial["summary"], **counts})


def _next_batch(state: TrainState, ranks: Ranks) -> Batch | None:
    """Return the next batch; None where a signal broke off the wait for it, and the stream stands before it again."""
    if ranks.size > 1:
        return next(state.stream)  # the others need this rank in their step
    before = state.stream.state_dict()
    try:
        with ranks.stop.interrupting():
            return next(state.stream)
    except Interrupted:
        state.stream.load_state_dict(before)  # the signal may have come when the batch was already taken
        return None


def _train_line(config: RunConfig, state: TrainState, step: Step) -> Metrics:
    line: Metrics = {"event": "train", "step": state.step, "samples": state.step * config.global_batch}
    line |= {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}
    line["first_layer_grad_norm"] = step.first_layer_norm
    if state.watch.skipped:
        line["skipped_steps"] = len(state.watch.skipped)
    line |= {name: float(value) for name, value in step.report.items()}
    return line | ({state.objective.missing: state.missing} if state.objective.missing else {})


def _log_start(config: RunConfig, state: TrainState, ranks: Ranks) -> None:
    log.info(
        "run %s: objective %s, %d parameters, %d processes, rank 0 on %s, %d images a step, step %d of %d",
        config.out,
        config.objective.kind,
        sum(parameter.numel() for parameter in state.objective.parameters()),
        ranks.size,
        ranks.device,
        config.global_batch,
        state.step,
        config.total_steps,
    )


def take_step(config: RunConfig, state: TrainState, batch: Batch, *, ranks: Ranks, stopping: bool) -> Step:
    """Do one optimizer step on this rank's share of the global batch. Raises BadStepError before the weights move."""
    # No objective here draws from torch's generator; one that did (dropout) would still resume exactly.
    torch.manual_seed(make_key(config.seed, "step", state.step, ranks.rank))
    state.objective.before_step(state.step, config.steps)
    lr = config.schedule.rate(state.step, steps=config.steps, peak=config.optimizer.lr)
    set_groups(config.optimizer, state.optimizer, lr=lr)

    terms, missing = ranks.sum(_counts(config, state, batch), f"step {state.step}")
    terms = max(terms, 1.0)  # a step of nothing but rows without captions has a loss of 0
    total, report = torch.zeros((), device=ranks.device), {}
    parts = micro_batches(batch, config.images_per_micro_batch)
    for part in parts:
        with reducing(state.model, last=part is parts[-1]):
            with autocast(config.precision, ranks.device):
                loss, report = state.model(part)
            # Gradients are averaged over ranks; times their number, that is the sum.
            (loss * (ranks.size / terms)).backward()
        total += loss.detach()
    first = first_layer_norm(state.objective, ranks.device)
    norm = whole(torch.nn.utils.clip_grad_norm_(state.objective.parameters(), config.clip_grad_norm))

    # The one place of a step that waits for the device: the verdict must be known before the weights move.
    own_loss, grad_norm, own_first = torch.stack([total / terms, norm, first]).tolist()
    sums = ranks.sum([own_loss, grad_norm, own_first, stopping], f"step {state.step}")
    loss_value, stops = sums[0], sums[3]
    norms = Norms(total=sums[1] / ranks.size, first_layer=sums[2] / ranks.size)  # so the verdict is the same everywhere
    fault = state.watch.judge(config, loss=loss_value, norms=norms)
    skipped = None
    if fault is None:
        state.optimizer.step()
        state.objective.after_step()
        state.watch.accept(config, norms)
    else:
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
    )


def skip_again(config: RunConfig, state: TrainState, skipped: Skipped, *, ranks: Ranks, stopping: bool) -> Step:
    """Pass over a step that was skipped before a kill."""
    lr = config.schedule.rate(state.step, steps=config.steps, peak=config.optimizer.lr)
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


def _open_record(config: RunConfig, state: TrainState, ranks: Ranks) -> StepRecord:
    path = Path(config.out) / SEEN_FILE if ranks.is_first else None
    return StepRecord(path, global_batch=config.global_batch, step=state.step, patient=_is_patient(config))


def _open_metrics(config: RunConfig, state: TrainState, ranks: Ranks) -> MetricsFile:
    if not ranks.is_first:
        return MetricsFile(None, step=-1)
    if state.step < config.total_steps:
        write_records(config, step=state.step, processes=ranks.size)
    step = state.step if state.resumed else -1
    path = Path(config.out) / "metrics.jsonl"
    return MetricsFile(path, step=step, patient=_is_patient(config), tensorboard=config.tensorboard)


def _is_patient(config: RunConfig) -> bool:
    return config.checkpoint.on_full_disk == "keep_training"

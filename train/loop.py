"""The training loop, read from top to bottom.

What step t computes is a function of (config, t): weights of step t, the stream's batch t, prefixes of its positions.
So a killed run, started again, goes on as if nothing had happened. The step itself is in `train/step.py`, what comes
between two steps in `train/boundary.py`.
"""

import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.pipeline.seen import FILE as SEEN_FILE
from headrace.pipeline.seen import StepRecord
from headrace.train.boundary import Boundary, monitors_of
from headrace.train.collector import collect_young, collecting_at_boundaries
from headrace.train.config import RunConfig
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.parallel.signals import watch_signals
from headrace.train.parallel.watchdog import watching
from headrace.train.profiling import profiling
from headrace.train.runs.branch import take_records
from headrace.train.runs.folder import BadStepError, own_run, write_records
from headrace.train.runs.initial import write_report
from headrace.train.runs.metrics import Metrics, MetricsFile
from headrace.train.state import TrainState, follow_average, open_state
from headrace.train.steady.alarms import Alarms
from headrace.train.steady.changes import Period, period_at, periods
from headrace.train.steady.skipping import record_skipped, skipped_before
from headrace.train.step import next_batch, skip_again, take_step

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


def train(config: RunConfig, *, on_metrics: Callable[[Metrics], None] = lambda _: None) -> TrainResult:
    """Run, or continue, the run in `config.out`; under torchrun, as one of its processes.

    `on_metrics` is called on rank 0 with each line of metrics. Raises ValueError for a config that cannot run or
    differs from the checkpoint's, and BadStepError (a ValueError) before a step that would spoil the weights.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(
            join_ranks(
                config.device,
                timeout_seconds=config.timeout_seconds,
                alone_is_watched=config.hang_seconds is not None,
            )
        )
        stack.enter_context(own_run(config, ranks))
        stack.enter_context(watching(ranks.presence, config.hang_limits, Path(config.out)))
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

        alarms = Alarms(config.alarms, metrics.lines)

        def write(line: Metrics) -> None:
            if ranks.is_first:
                for told in (line, *alarms.take(line)):
                    metrics.write(told)
                    on_metrics(told)

        for line in alarms.missed:
            write(line)
        if state.initial is not None:
            _tell_initial(config, state.initial, ranks, write)
        boundary = Boundary(
            config=config,
            state=state,
            ranks=ranks,
            metrics=metrics,
            record=record,
            write=write,
            monitors=monitors_of(config, state, ranks),
            saved_step=state.step,
        )
        run = _Run(config=config, state=state, ranks=ranks, boundary=boundary, plan=periods(config), profiled=profiled)
        return run.to_its_end()


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run under way."""

    config: RunConfig
    state: TrainState
    ranks: Ranks
    boundary: Boundary
    plan: list[Period]
    profiled: Callable[[], None]
    """Called after each step."""

    def to_its_end(self) -> TrainResult:
        """Step, save and look until the last step is done or a signal asks to stop."""
        stop, boundary = False, self.boundary
        while True:
            last = self.state.step == self.config.total_steps
            follow_average(self.state, self.plan, self.ranks)
            # Before the monitors: a fault of one must not cost the steps that led to it.
            boundary.save_if_due(must=last or stop)
            if stop and not last:
                numbers = self.ranks.gathered(str(self.ranks.stop.number), "the end")
                return self._result(stopped_by=max(map(int, numbers)) or int(signal.SIGTERM))
            boundary.look_if_due(last=last)
            if last:
                boundary.export()
                return self._result()
            stop = self._step()

    def _step(self) -> bool:
        """Do the next step, and return True if the run is asked to stop."""
        config, state, ranks, boundary = self.config, self.state, self.ranks, self.boundary
        period = period_at(self.plan, state.step)
        boundary.tell_changes(period)
        before = state.stream.state_dict()
        batch = next_batch(state, ranks)
        if batch is None:
            return True
        again = skipped_before(config, state.journal, batch, step=state.step, ranks=ranks)
        try:
            if again is not None:
                step = skip_again(period.config, state, again, ranks=ranks, stopping=bool(ranks.stop))
            else:
                step = take_step(period.config, state, batch, ranks=ranks, stopping=bool(ranks.stop))
        except BadStepError as error:
            raise type(error)(f"{error}; {boundary.keep_good_weights(before, error.cure)}") from None
        ranks.enters("")
        if step.skipped is not None:
            boundary.write(record_skipped(config, step.skipped, batch, ranks, again=again is not None))
        boundary.poll_save()
        self.profiled()
        collect_young(state.step)
        boundary.note(step, batch)
        return step.stop

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


def _open_record(config: RunConfig, state: TrainState, ranks: Ranks) -> StepRecord:
    path = Path(config.out) / SEEN_FILE if ranks.is_first else None
    return StepRecord(path, global_batch=config.global_batch, step=state.step, patient=_is_patient(config))


def _open_metrics(config: RunConfig, state: TrainState, ranks: Ranks) -> MetricsFile:
    if not ranks.is_first:
        return MetricsFile(None, step=-1)
    if config.continue_from is not None:
        take_records(config)
    if state.step < config.total_steps:
        write_records(config, step=state.step, processes=ranks.size)
    step = state.step if state.resumed else -1
    path = Path(config.out) / "metrics.jsonl"
    return MetricsFile(path, step=step, patient=_is_patient(config), tensorboard=config.tensorboard)


def _is_patient(config: RunConfig) -> bool:
    return config.checkpoint.on_full_disk == "keep_training"

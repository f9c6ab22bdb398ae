"""What becomes of a bad step: the run stops with its good weights saved, or goes on without the step."""

import logging
import math
import shlex
from pathlib import Path
from typing import NamedTuple

from headrace.pipeline import Batch
from headrace.train.config import RunConfig, run_digest
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.branch import record_of
from headrace.train.runs.folder import BadStepError, NonFiniteError, SpikeError, passing_full_disk, write_bad_step
from headrace.train.runs.meter import batch_digest
from headrace.train.runs.metrics import Metrics
from headrace.train.steady.bad_steps import BUDGET_STEPS, Fault, Skipped, StepWatch, skipped_to_dict
from headrace.train.steady.journal import FILE, Entry, append_entry, read_journal

log = logging.getLogger(__name__)

Journal = dict[tuple[int, str], Skipped]


def open_journal(config: RunConfig, ranks: Ranks) -> Journal:
    """Return the steps that earlier starts of this run skipped, the same on all ranks."""
    path = record_of(config, FILE)
    text = path.read_text(encoding="utf-8", errors="replace") if ranks.is_first and path.is_file() else ""
    return read_journal(ranks.gathered(text, "the journal of skipped steps")[0])


def skipped_before(config: RunConfig, journal: Journal, batch: Batch, *, step: int, ranks: Ranks) -> Skipped | None:
    """Return the record of step `step` (0-based) if it was skipped before a kill: it is skipped again."""
    if all(number != step + 1 for number, _ in journal):
        return None  # the digest of a config takes its time
    one = journal.get((step + 1, run_digest(config, step)))
    if one is None or (config.on_non_finite if one.reason == "non_finite" else config.on_spike) != "skip":
        return None
    return one if ranks.sum([batch_digest(batch)], f"step {step}")[0] == one.batch_digest else None


class StepValues(NamedTuple):
    """What a step gave."""

    own_loss: float
    """Of this rank's share."""
    own_norm: float
    loss: float
    """Of the global batch."""
    norm: float
    """Of the global batch, the same on all ranks."""
    missing: int
    """Samples left out of the global batch."""


def stop_or_skip(
    config: RunConfig, watch: StepWatch, fault: Fault, batch: Batch, *, step: int, values: StepValues, ranks: Ranks
) -> Skipped:
    """Return the record of step `step` (0-based), which is skipped. Raises BadStepError if it stops the run.

    Writes the samples of the step in either case.
    """
    non_finite = fault.reason == "non_finite"
    name = f"{'nonfinite' if non_finite else 'spike'}-{step:08d}"
    path = write_bad_step(
        config, batch, ranks, name=name, values={"step": step, "loss": values.own_loss, "grad_norm": values.own_norm}
    )
    policy = config.on_non_finite if non_finite else config.on_spike
    spent = policy == "skip" and not watch.within_budget(config, step)
    if policy == "stop" or spent:
        kind: type[BadStepError] = NonFiniteError if non_finite else SpikeError
        why = f"; max_skipped_steps={config.max_skipped_steps} of the latest {BUDGET_STEPS} are spent" if spent else ""
        setting = "max_skipped_steps=N, N a larger number," if spent else f"on_{fault.reason}=skip"
        raise kind(
            f"step {step}: {fault.text}{why}; the weights were not changed; the samples of this step are in {path}, "
            f"its pictures: headrace trace {shlex.quote(config.out)} --step {step + 1}",  # which counts from 1
            cure=setting,
        )
    if ranks.is_first:
        log.warning("step %d: %s; it is skipped; its samples are in %s", step, fault.text, path)
    return Skipped(
        step=step + 1,
        reason=fault.reason,
        loss=values.loss if math.isfinite(values.loss) else None,
        grad_norm=values.norm if math.isfinite(values.norm) else None,
        positions=(step * config.global_batch, (step + 1) * config.global_batch),
        batch_digest=int(ranks.sum([batch_digest(batch)], f"step {step}")[0]),
        missing=values.missing,
    )


def record_skipped(config: RunConfig, one: Skipped, batch: Batch, ranks: Ranks, *, again: bool) -> Metrics:
    """Return the line of metrics of a skipped step, and keep the step in the journal if it is new."""
    rows = zip(batch.position.tolist(), batch.source.tolist(), batch.key, strict=True)
    names = [source.name for source in config.mixture.sources]
    mine = "\n".join(f"{position} {names[source]}/{key}" for position, source, key in rows)
    parts = ranks.gathered(mine, f"step {one.step - 1}")
    rows_of_all = sorted(
        (int(place), name) for part in parts for place, _, name in (row.partition(" ") for row in part.split("\n"))
    )
    samples = [name for _, name in rows_of_all]
    if not again:
        entry = Entry(skipped=one, config=run_digest(config, one.step - 1))
        with ranks.first_writes(f"the skipped step in {FILE}") as writes:
            if writes:
                with passing_full_disk(config):
                    append_entry(Path(config.out) / FILE, entry, samples)
    return {"event": "skipped", **skipped_to_dict(one), "samples": samples}

"""What a run of select would take and keep, told before it starts: from the sizes of all tables and the rows of some.

Steps that look at each row alone, and `top_fraction`, are run on the rows of some raw shards. Duplicates are not looked
for; what other distances of near_duplicates would drop is known where a ledger of the job has searched before.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.curation.job import Job
from headrace.curation.ledger import StepSummary, list_ledgers, read_summary
from headrace.curation.select.database import Limits, insert, open_memory
from headrace.curation.select.expression import Checker, Expression
from headrace.curation.select.load import Inputs, known_columns, part_rows, sql_types
from headrace.curation.select.near.tables import cost_of
from headrace.curation.select.parts import Part, fields_of
from headrace.curation.select.run import Selection, prepare_steps
from headrace.curation.select.sieve import Sieve
from headrace.curation.select.step import Bench, ReadyStep, Step, read_column, stored_columns
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.select.steps.top_fraction import TopFraction
from headrace.shards.units import EngineConfig

SAMPLE_ROWS = 200_000
"""Rows that are looked at, about; of fewer all."""
SECONDS_A_ROW = 1e-5
"""Of a processor, without the search for near pairs (benchmarks/select_rows.py)."""
LEDGER_BYTES, WORK_BYTES, WORK_HASH_BYTES = 40, 70, 32
"""Bytes a row: of the ledger; of the work folder, and there for each hash that is compared."""
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)


def forecast(
    inputs: Inputs, selection: Selection, *, limits: Limits, engine: EngineConfig, hints: Mapping[str, str]
) -> list[str]:
    """Return lines for a terminal. Raises NotReadyError for a table that is not there."""
    sizes = inputs.sizes()
    lines = [_cost_line(sum(sizes), selection.steps, engine)]
    if sum(sizes):
        lines += _sample_lines(inputs, sizes, selection, limits, hints)
    return lines + list(_known_distances(inputs.job, selection.steps))


def _cost_line(num_rows: int, steps: Sequence[Step], engine: EngineConfig) -> str:
    hashes = [len(step.compared()) for step in steps if isinstance(step, NearDuplicates)]
    near = sum(cost_of(num_rows, step.distance) for step in steps if isinstance(step, NearDuplicates))
    seconds = num_rows * SECONDS_A_ROW + near / 1e9
    cores = engine.workers or len(os.sched_getaffinity(0))
    work = num_rows * (WORK_BYTES + WORK_HASH_BYTES * max(hashes, default=0))
    others = [step.name for step in steps if not _is_estimated(step)]
    beside = f", beside {', '.join(others)}" if others else ""
    return (
        f"about {num_rows} rows; the ledger takes {_size(num_rows * LEDGER_BYTES)}, the work folder beside it "
        f"{_size(work)} until the end; {seconds / 3600:.2g} hours of one core{beside}, so {seconds / cores / 3600:.2g} "
        f"hours on {cores}"
    )


def _is_estimated(step: Step) -> bool:
    return step.each_row or step.step in ("top_fraction", "exact_duplicates", "near_duplicates", "placeholders")


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _sample_lines(
    inputs: Inputs, sizes: Sequence[int], selection: Selection, limits: Limits, hints: Mapping[str, str]
) -> list[str]:
    part = _some_shards(inputs.shards, sizes)
    known = known_columns(inputs)
    with open_memory(limits) as connection:
        checker = Checker(connection, sql_types(connection, known), hints)
        steps = [
            (step, ready, [checker.check_number(cut.expression, step.name) for cut in step.cuts(None)])
            for step, ready in prepare_steps(selection.steps, checker)
            if _runs_on_some_rows(step)
        ]
        columns = [
            name
            for _, ready, cuts in steps
            for name in (*ready.columns, *(name for cut in cuts for name in cut.columns))
        ]
        read = dict.fromkeys(map(read_column, columns))
        rows = part_rows(inputs.narrowed(read), part.shards, part.sizes, 0, fields_of(read, known))
        insert(connection, "rows", rows.select(["__row", *stored_columns(columns)]))
        sieve = Sieve(connection, np.ones(rows.num_rows, bool))
        whole = len(part.shards) == len(inputs.shards)
        some = (
            "all rows"
            if whole
            else f"the {rows.num_rows} rows of {len(part.shards)} of {len(inputs.shards)} raw shards"
        )
        skipped = [step.name for step in selection.steps if not _runs_on_some_rows(step)]
        without = f", without {', '.join(skipped)}" if skipped else ""
        return [f"on {some}{without}:", *(f"  {line}" for line in _try_steps(sieve, steps, limits))]


def _some_shards(shards: Sequence[str], sizes: Sequence[int]) -> Part:
    """Return raw shards spread evenly over the job."""
    wanted = max(1, min(len(shards), round(len(shards) * SAMPLE_ROWS / sum(sizes))))
    places = np.unique(np.linspace(0, len(shards) - 1, wanted).round().astype(int)).tolist()
    return Part(0, tuple(shards[place] for place in places), 0, tuple(sizes[place] for place in places))


def _runs_on_some_rows(step: Step) -> bool:
    return step.each_row or isinstance(step, TopFraction)


def _try_steps(
    sieve: Sieve, steps: Sequence[tuple[Step, ReadyStep, Sequence[Expression]]], limits: Limits
) -> Iterator[str]:
    num_here = num_input = int(sieve.left.sum())
    for step, ready, cuts in steps:
        values = [sieve.values(cut) for cut in cuts]
        line = sieve.run(step, ready, Bench(sieve.connection, limits, num_input, num_here, {}))
        share = 100 * line.rows_out / num_here if num_here else 100.0
        yield f"{step.name} keeps {line.rows_out} of {num_here} ({share:.1f} %)"
        for cut, found in zip(cuts, values, strict=True):
            if found.size:
                yield f"  {cut.text}: {_cut_of_fractions(found) if isinstance(step, TopFraction) else _below(found)}"
        num_here = line.rows_out
        if step.step == "decode":
            num_input = num_here


def _below(values: NDArray[np.float64]) -> str:
    found = np.quantile(values, SHARES, method="lower")
    return ", ".join(f"{share:.0%} below {value:.6g}" for share, value in zip(SHARES, found, strict=True))


def _cut_of_fractions(scores: NDArray[np.float64]) -> str:
    found = np.quantile(scores, [1 - fraction for fraction in FRACTIONS], method="higher")
    return ", ".join(f"the best {share:.0%} from {score:.6g}" for share, score in zip(FRACTIONS, found, strict=True))


def _known_distances(job: Job, steps: Sequence[Step]) -> Iterator[str]:
    """Say what other distances would have dropped in the ledgers of the job, where those say it."""
    if not any(isinstance(step, NearDuplicates) for step in steps):
        return
    for ledger in list_ledgers(job):
        for line in read_summary(ledger).steps:
            links = line.details.get("links_within", {}) if line.step == "near_duplicates" else {}
            if links and line.settings.get("chains", "join") == "join":
                yield f"{line.name} in ledger {ledger.name} dropped {_at_distances(line, links)}"


def _at_distances(line: StepSummary, links: Mapping[str, int]) -> str:
    dropped = sum(line.dropped.values())
    asked, *others = sorted(map(int, links), reverse=True)
    # A link less leaves one group more, which keeps one row more.
    less = [f"about {max(0, dropped - links[str(asked)] + links[str(bits)])} at {bits}" for bits in others]
    return ", ".join([f"{dropped} at distance {asked}", *less])

"""Which samples a run saw, how often, and from which hosts: computed from the order, shard after shard.

Nothing was logged and nothing is walked: how often a sample came follows from the inverse of the order. Memory is that
of a few shards, of the distinct hosts (Arrow tables, some 50 bytes each) and of the damaged samples, however many
samples there are.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.curation.report.sketch import hosts
from headrace.pipeline.order.inverse import times_given
from headrace.shards.progress import OnProgress, Progress, no_progress
from headrace.text import without_secrets
from headrace.trace.lookup import Opened
from headrace.trace.replaced import Replaced, Replacements

IntArray = NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("times", pa.int64()),
    ]
)
"""One row a sample that was seen."""
AT_ONCE = 32
"""Shards between two reports of progress."""
MERGE_ROWS = 1 << 20
"""So many rows of partial counts of hosts are summed up at once."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One shard of one source."""

    source: int
    times: IntArray
    """How often each sample that the run uses was seen."""
    seen: pa.Table
    """SCHEMA: the samples that were seen, if texts were asked for."""


@dataclass(slots=True)
class SourceTally:
    """How often the samples of one source were seen."""

    num_samples: int
    """Samples of the dataset, or of the part of it that the run uses."""
    num_seen: int = 0
    """Distinct samples that were seen."""
    times: int = 0
    """Rows of batches that held one."""
    by_times: dict[int, int] = field(default_factory=dict)
    """How often -> samples that were seen so often; under 0 those that never were."""
    num_damaged: int = 0
    """Rows whose own sample was damaged, so that another was seen there."""


@dataclass(slots=True)
class Tally:
    """What the steps of a run saw, by source and by host."""

    sources: dict[str, SourceTally]
    _hosts: pa.Table = field(default_factory=lambda: _no_hosts())

    @property
    def num_hosts(self) -> int:
        """Distinct hosts; samples without one count as one."""
        return int(_summed(self._hosts).num_rows)

    def add(self, name: str, counted: Counted) -> None:
        """Count a shard of the source of that name."""
        tally = self.sources[name]
        tally.num_seen += int(np.count_nonzero(counted.times))
        tally.times += int(counted.times.sum())
        for often, samples in zip(*np.unique(counted.times, return_counts=True), strict=True):
            tally.by_times[int(often)] = tally.by_times.get(int(often), 0) + int(samples)
        if counted.seen.num_rows:
            ones = pa.array(np.ones(counted.seen.num_rows, np.int64))
            table = pa.table({"host": hosts(counted.seen["url"]), "samples": ones, "times": counted.seen["times"]})
            self._hosts = pa.concat_tables([self._hosts, _summed(table)])
            if self._hosts.num_rows > MERGE_ROWS:
                self._hosts = _summed(self._hosts)

    def hosts(self, most: int) -> list[dict[str, str | int]]:
        """Return the hosts that were seen most often: `host` (empty = none), `samples` (distinct), `times`."""
        table = _summed(self._hosts).sort_by([("times", "descending"), ("host", "ascending")])
        rows: list[dict[str, str | int]] = table.slice(0, most).to_pylist()
        return rows


def count_samples(
    opened: Opened,
    replacements: Replacements,
    *,
    last: int,
    texts: bool,
    threads: int = 8,
    on_progress: OnProgress = no_progress,
) -> Iterator[Counted]:
    """Yield how often the samples of each shard were seen in the steps up to `last`, in the order of the sources.

    With `texts` the tables tell of each sample that was seen, for which the index of its shard is read; else none is.
    """
    changes = _changes(replacements, last)
    jobs = [
        (number, shard) for number, source in enumerate(opened.sources) for shard in range(len(source.dataset.shards))
    ]

    def count(job: tuple[int, int]) -> Counted:
        return _count_shard(opened, *job, last=last, changes=changes[job[0]], texts=texts)

    waiting, done = iter(jobs), 0
    with ThreadPoolExecutor(threads) as pool:
        while part := list(itertools.islice(waiting, AT_ONCE)):
            yield from pool.map(count, part)
            done += len(part)
            on_progress(Progress(done=done, total=len(jobs), noun="indexes"))


def new_tally(opened: Opened, replacements: Replacements, *, last: int) -> Tally:
    """Return a tally to which shards are added; damaged samples are counted in it."""
    tally = Tally({source.config.name: SourceTally(source.num_samples) for source in opened.sources})
    for one in _replaced(replacements, last):
        tally.sources[opened.sources[one.source].config.name].num_damaged += 1
    return tally


def without_secret_urls(seen: pa.Table) -> pa.Table:
    """Return a table of SCHEMA whose URLs may be shown to others."""
    urls = seen["url"].combine_chunks()
    doubtful = pc.fill_null(pc.match_substring_regex(urls, "[@?&;]"), False)
    shown = pa.array(map(without_secrets, urls.filter(doubtful).to_pylist()), pa.string())
    return seen.set_column(SCHEMA.get_field_index("url"), "url", pc.replace_with_mask(urls, doubtful, shown))


def _count_shard(
    opened: Opened, source: int, shard: int, *, last: int, changes: tuple[IntArray, IntArray], texts: bool
) -> Counted:
    of = opened.sources[source]
    first, end = int(of.starts[shard]), int(of.starts[shard + 1])
    sample = np.arange(first, end, dtype=np.int64)
    times = times_given(opened.plan.timeline, source, sample, end=last * opened.history.global_batch)
    samples, change = changes
    here = slice(*np.searchsorted(samples, [first, end]))
    np.add.at(times, samples[here] - first, change[here])
    used = np.ones(len(sample), np.bool_) if of.subset is None else of.subset.ordinals(sample) >= 0
    seen = np.flatnonzero(times)
    return Counted(source, times[used], _seen_table(opened, source, shard, seen, times[seen], texts=texts))


def _seen_table(opened: Opened, source: int, shard: int, rows: IntArray, times: IntArray, *, texts: bool) -> pa.Table:
    if not rows.size or not texts:
        return SCHEMA.empty_table()
    of = opened.sources[source]
    table = opened.column(source, shard, ["uid", "url"]).take(pa.array(rows))
    table = table.append_column("times", pa.array(times))
    for name, text in (("source", of.config.name), ("shard", of.dataset.shards.name(shard))):
        table = table.append_column(name, pa.repeat(text, len(rows)))
    return table.select(SCHEMA.names)


def _replaced(replacements: Replacements, last: int) -> Iterator[Replaced]:
    steps = [step for step in replacements.steps if step <= last]
    replacements.look_up(steps)
    for step in steps:
        yield from replacements.of_step(step) or ()


def _changes(replacements: Replacements, last: int) -> list[tuple[IntArray, IntArray]]:
    """Return for each source (samples, ascending; what to add to how often the order has them)."""
    by_source: list[list[tuple[int, int]]] = [[] for _ in replacements.opened.sources]
    for one in _replaced(replacements, last):
        by_source[one.source] += [(one.planned, -1), (one.given, 1)]
    arrays = [np.array(sorted(changes), np.int64).reshape(-1, 2) for changes in by_source]
    return [(array[:, 0], array[:, 1]) for array in arrays]


def _no_hosts() -> pa.Table:
    return pa.table(
        {"host": pa.array([], pa.string()), "samples": pa.array([], pa.int64()), "times": pa.array([], pa.int64())}
    )


def _summed(table: pa.Table) -> pa.Table:
    summed = table.group_by("host").aggregate([("samples", "sum"), ("times", "sum")])
    return summed.rename_columns(["host", "samples", "times"])

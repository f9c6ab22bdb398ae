"""One unit of work: the rows that become one raw shard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from headrace import atomic, urlpath
from headrace.curation.fetch.config import RESIZING, FetchConfig
from headrace.curation.fetch.lists.spill import SpilledList
from headrace.curation.fetch.reuse.join import Reuse
from headrace.curation.raw.write import Outcome, RawShard, write_raw_shard
from headrace.shards.commit import commit


@dataclass(frozen=True, slots=True)
class FetchUnit:
    """The rows [start, stop) of a spilled list, and the raw shard they become."""

    shard: RawShard
    rows: SpilledList
    start: int
    stop: int
    config: FetchConfig
    resizing: int = RESIZING
    """How images are changed: as when the job began."""
    reuse: Reuse | None = None
    """What of earlier jobs the rows take."""
    spool: str = ""
    """Folder of what has come of unfinished shards; empty: it has no name and ends with the process."""
    only_successes: bool = False
    """A retry: the failures are in an earlier shard already. Without any success no shard is written."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"raw/{self.shard.name}"

    @property
    def job_url(self) -> str:
        """The job that the raw shard is of."""
        return urlpath.parent(self.shard.folder)

    @property
    def permissions(self) -> str:
        """Folder of the job where what the sites allow is kept."""
        return urlpath.join(self.job_url, "input", "permissions")

    @property
    def spool_folder(self) -> Path | None:
        """The folder `spool` where it is on this machine's file systems, else None."""
        return urlpath.local_path(self.spool) if self.spool and urlpath.is_local(self.spool) else None


def write_unit(
    unit: FetchUnit, rows: pa.Table, outcomes: Sequence[Outcome], payload: Callable[[Outcome], bytes]
) -> None:
    """Write and commit the raw shard of a unit; `payload` returns the image of an outcome."""
    if unit.only_successes:
        kept = [row for row, outcome in enumerate(outcomes) if outcome.header is not None]
        if not kept:
            _record_nothing(unit)
            return
        rows, outcomes = rows.take(pa.array(kept, pa.int64())), [outcomes[row] for row in kept]
    write_raw_shard(unit.shard, rows, outcomes, payload)


def _record_nothing(unit: FetchUnit) -> None:
    """Commit a retry without a success beside its rows, so that the raw shards stay what they were."""
    name = unit.shard.name
    for path in (f"{name}.tar", f"{name}.parquet", f"{name}_stats.json", f"images/{name}.parquet"):
        atomic.remove(urlpath.join(unit.shard.folder, path))  # of a killed run that had successes
    atomic.remove_all(urlpath.join(unit.shard.folder, name))
    commit(unit.rows.folder, unit.shard.name, {"successes": 0})

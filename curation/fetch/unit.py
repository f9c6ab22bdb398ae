"""One unit of work: the rows of one raw shard, fetched and committed.

The loop lives and dies with the unit, so units may run in any process. Bodies go to a spool on disk as they arrive, in
any order, and from there into the tar in the order of the rows: memory is what is in flight. Limits for a host
hold within one process: N workers make N times as many requests.
"""

import asyncio
import hashlib
import os
import resource
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from headrace import files
from headrace.curation.fetch.check import check_image, check_sha256
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.lists.spill import SpilledList, read_places
from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.raw.write import Outcome, RawShard, write_raw_shard
from headrace.shards.commit import commit, is_committed
from headrace.shards.heartbeat import beat, beating, expect

TASKS_PER_SLOT = 32
FILES_BESIDE_SOCKETS = 512


@dataclass(frozen=True, slots=True)
class FetchUnit:
    """The rows [start, stop) of a spilled list, and the raw shard they become."""

    shard: RawShard
    rows: SpilledList
    start: int
    stop: int
    config: FetchConfig
    only_successes: bool = False
    """A retry: the failures are in an earlier shard already. Without any success no shard is written."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"raw/{self.shard.name}"


def fetch_shard(unit: FetchUnit) -> None:
    """Fetch the rows of one raw shard and commit it; nothing happens if it is committed."""
    if is_committed(unit.shard.folder, unit.shard.name) or is_committed(unit.rows.folder, unit.shard.name):
        return
    rows = read_places(unit.rows, unit.start, unit.stop)
    expect(rows=rows.num_rows)
    _raise_file_limit(unit.config)
    # The spool has no name: the kernel drops it with the process, however that ends.
    folder = files.local_path(unit.shard.folder) if files.is_local(unit.shard.folder) else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with files.naming_full_disk(unit.shard.folder), tempfile.TemporaryFile(dir=folder) as spool:
        outcomes = asyncio.run(_fetch_rows(rows, unit, spool))
        spool.flush()
        if unit.only_successes:
            kept = [row for row, outcome in enumerate(outcomes) if outcome.header is not None]
            if not kept:
                _record_nothing(unit)
                return
            rows, outcomes = rows.take(pa.array(kept, pa.int64())), [outcomes[row] for row in kept]
        write_raw_shard(
            unit.shard, rows, outcomes, lambda outcome: os.pread(spool.fileno(), outcome.size, outcome.offset)
        )


def _record_nothing(unit: FetchUnit) -> None:
    """Commit a retry without a success beside its rows, so that the raw shards stay what they were."""
    for suffix in (".tar", ".parquet", "_stats.json"):  # of a killed run that had successes
        files.remove(files.join(unit.shard.folder, unit.shard.name + suffix))
    commit(unit.rows.folder, unit.shard.name, {"successes": 0})


def _raise_file_limit(config: FetchConfig) -> None:
    """Let this process open enough sockets: those in flight, and as many that wait to be used again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4 * config.concurrency + FILES_BESIDE_SOCKETS)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _fetch_rows(rows: pa.Table, unit: FetchUnit, spool: Any) -> list[Outcome]:
    config = unit.config
    outcomes: list[Outcome] = [Outcome()] * rows.num_rows
    names = [name for name in ("url", "problem", "expected_sha256") if name in rows.column_names]
    waiting = asyncio.Semaphore(config.concurrency * TASKS_PER_SLOT)

    async def work(row: int, record: dict[str, str | None]) -> None:
        try:
            outcomes[row] = await fetch_row(fetcher, record, config, spool)
        finally:
            waiting.release()

    try:
        async with beating(), Fetcher(config) as fetcher, asyncio.TaskGroup() as tasks:
            for row, record in enumerate(rows.select(names).to_pylist()):
                await waiting.acquire()
                tasks.create_task(work(row, record))
    except* OSError as group:
        # The group has one meaning for the user: this machine failed, not a URL.
        raise _first(group) from None
    if not unit.only_successes:  # a retry commits no failure
        fetcher.health.check_anyone_answered()
    return outcomes


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def fetch_row(fetcher: Fetcher, record: dict[str, str | None], config: FetchConfig, spool: Any) -> Outcome:
    """Fetch and check the image of one row; its bytes are appended to the spool."""
    try:
        if record["problem"] is not None:
            raise FetchError("bad-url", record["problem"])
        body, header = await fetcher.fetch(record["url"], partial(check_image, max_pixels=config.max_pixels))
        sha256 = check_sha256(body, record.get("expected_sha256"))
        original, stored_sha256 = header, None
        if config.resize != "none":
            from headrace.curation.fetch.resize import resize_image  # OpenCV, which few fetches need

            stored, header = await asyncio.to_thread(resize_image, body, header, config)
            if stored is not body:
                body, stored_sha256 = stored, hashlib.sha256(stored).hexdigest()
    except FetchError as error:
        beat(rows=1, failed=error.error_class)
        return Outcome(error.error_class, error.message)
    offset = spool.tell()
    spool.write(body)
    beat(rows=1, bytes=len(body))
    return Outcome(
        header=header, original=original, sha256=sha256, stored_sha256=stored_sha256, offset=offset, size=len(body)
    )

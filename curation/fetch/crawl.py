"""The loop of one process: several raw shards under way, one client for all of them.

The next shard begins when the last one's rows are all under way and there is room for more requests, so a straggler
holds up its own shard and nothing else. What is known of hosts, names and connections lives as long as the process.
Every outcome is appended to the spool of its shard as it comes; the raw shard is written from it, in the order of the
rows, when the last one has come.
"""

import asyncio
import contextlib
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from headrace import atomic
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.lists.spill import read_places
from headrace.curation.fetch.net.address import parse_allowed
from headrace.curation.fetch.net.board import HostBoard
from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.fetch.net.health import UNREACHED
from headrace.curation.fetch.reuse.join import add_hits
from headrace.curation.fetch.row import Record, fetch_row, records_of, refused
from headrace.curation.fetch.spool import BOARD, Spool, identity
from headrace.curation.fetch.unit import FetchUnit, write_unit
from headrace.curation.forgotten import tombstones_digest
from headrace.curation.raw.write import Outcome
from headrace.shards.commit import is_committed
from headrace.shards.desk import Desk, Streaming, Taken
from headrace.shards.heartbeat import beat, beating, expect

log = logging.getLogger(__name__)

T = TypeVar("T")

TASKS_PER_SLOT = 32
FILES_BESIDE_SOCKETS = 512
OPEN_ROWS = 40_000
"""Of all shards under way in a process, about: four of the default size."""
MOST_OPEN_SHARDS = 64
LOOK_SECONDS = 0.05


def crawl(desk: Desk[FetchUnit, None], **parts: Any) -> None:
    """Fetch and commit raw shards until the desk has no more. `parts` are those of `Fetcher`, for tests."""
    first = desk.take()
    if first is None:
        return
    _raise_file_limit(first.unit.config)
    try:
        with _one_thread_an_image(first.unit.config):
            asyncio.run(_crawl(desk, first, parts))
    except ExceptionGroup as group:
        # The group has one meaning for the user: the first of its errors.
        raise _first(group) from None


fetch_shards: Streaming[FetchUnit, None] = Streaming(crawl)


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


@contextlib.contextmanager
def _one_thread_an_image(config: FetchConfig) -> Iterator[None]:
    """Resize each image in its own thread alone: OpenCV's pool took 1.4 CPU ms for what one thread does in 1.0."""
    if config.resize == "none":
        yield
        return
    from headrace.shards.images.opencv import one_opencv_thread  # few fetches need OpenCV

    with one_opencv_thread():
        yield


def _raise_file_limit(config: FetchConfig) -> None:
    """Let this process open enough sockets: those in flight, and as many that wait to be used again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4 * config.concurrency + FILES_BESIDE_SOCKETS)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _crawl(desk: Desk[FetchUnit, None], first: Taken[FetchUnit, None], parts: dict[str, Any]) -> None:
    config, folder = first.unit.config, first.unit.spool_folder
    board = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        board = HostBoard(folder / BOARD)
    unit = first.unit
    async with Fetcher(config, permissions=unit.permissions, job_url=unit.job_url, board=board, **parts) as fetcher:
        await _Crawl(desk, fetcher, config).run(first)


async def in_thread(function: Callable[[], T]) -> T:
    """Return `function()` of a thread; where this is cancelled, after it has ended: it may use open files."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Crawl:
    """The shards under way in this process."""

    def __init__(self, desk: Desk[FetchUnit, None], fetcher: Fetcher, config: FetchConfig) -> None:
        self._desk = desk
        self._fetcher = fetcher
        self._config = config
        self._room = asyncio.Semaphore(config.concurrency * TASKS_PER_SLOT)
        self._asked: dict[Record, _Asked] = {}
        self._most_open = max(2, min(MOST_OPEN_SHARDS, OPEN_ROWS // config.samples_per_shard))
        self._num_open = 0
        self._num_beginning = 0
        """Shards of which not all rows are under way."""

    async def run(self, first: Taken[FetchUnit, None]) -> None:
        """Take shards while there are any."""
        taken: Taken[FetchUnit, None] | None = first
        async with asyncio.TaskGroup() as tasks:
            while taken is not None:
                self._num_open += 1
                self._num_beginning += 1
                tasks.create_task(self._attend(taken), context=taken.context)
                while self._num_beginning or self._num_open >= self._most_open or not self._fetcher.slots.is_hungry:
                    await asyncio.sleep(LOOK_SECONDS)
                taken = await in_thread(self._desk.take)

    async def _attend(self, taken: Taken[FetchUnit, None]) -> None:
        shard = _Shard(taken.unit)
        try:
            async with beating():
                await self._fetch(shard)
        except Exception as error:  # whatever it is; it goes on
            error.add_note(f"in unit {taken.unit.name}")
            raise
        finally:
            shard.close()
            self._num_beginning -= not shard.is_begun
            self._num_open -= 1
        taken.ended(None)

    async def _fetch(self, shard: "_Shard") -> None:
        unit = shard.unit
        if is_committed(unit.shard.folder, unit.shard.name) or is_committed(unit.rows.folder, unit.shard.name):
            return
        with atomic.naming_full_disk(unit.shard.folder):
            await in_thread(shard.open)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for record, rows in shard.groups.items():
                        await self._room.acquire()
                        tasks.create_task(self._settle(shard, record, rows, may_wait=True))
                    shard.is_begun = True
                    self._num_beginning -= 1
                await self._settle_later(shard)
                if not unit.only_successes:  # a retry commits no failure
                    self._fetcher.health.check_anyone_answered()
                await in_thread(shard.write)
                shard.spool.remove()  # in this thread, in which other shards read it
            finally:
                for record in shard.asked:
                    self._asked.pop(record, None)

    async def _settle_later(self, shard: "_Shard") -> None:
        """Once more, what was put off because its host did not answer: by now it may."""
        later, shard.later = shard.later, []
        async with asyncio.TaskGroup() as tasks:
            for record, rows in later:
                await self._room.acquire()
                tasks.create_task(self._settle(shard, record, rows, may_wait=False))

    async def _settle(self, shard: "_Shard", record: Record, rows: Sequence[int], *, may_wait: bool) -> None:
        """Find out what becomes of rows with one record; `may_wait`: they may be put off."""
        try:
            known = self._asked.get(record)
            if known is not None and known.shard is not shard:
                await known.wait()
                if known.outcome is not None and known.shard.spool.is_open:
                    image = None if known.outcome.header is None else known.shard.spool.read(known.outcome)
                    shard.settle(rows, known.outcome, image, spooled=self._is_sure(known.outcome))
                    return
            asked = self._asked[record] = _Asked(shard)
            shard.asked.append(record)
            try:
                outcome, image = await fetch_row(self._fetcher, record, self._config, shard.unit.resizing)
                asked.outcome = shard.settle(rows, outcome, image, spooled=self._is_sure(outcome))
            except FetchError as error:
                if may_wait:
                    shard.later.append((record, rows))
                else:
                    shard.settle(rows, Outcome(error.error_class, error.message), None)
            finally:
                asked.done.set()
        finally:
            self._room.release()

    def _is_sure(self, outcome: Outcome) -> bool:
        """False while nobody has answered: a silent host may be this machine's own fault, and is asked again."""
        return outcome.error_class not in UNREACHED or self._fetcher.health.has_heard


def _identity(unit: FetchUnit, records: Sequence[Record]) -> str:
    return identity(records, unit.config, tombstones_digest(unit.job_url), resizing=unit.resizing)


class _Asked:
    """A record that some shard under way asks for, or has asked for."""

    def __init__(self, shard: "_Shard") -> None:
        self.shard = shard
        self.outcome: Outcome | None = None
        self.done = asyncio.Event()

    async def wait(self) -> None:
        """Wait for its end, with an outcome or without."""
        await self.done.wait()


class _Shard:
    """One raw shard under way: its rows, what has become of them, its spool."""

    spool: Spool

    def __init__(self, unit: FetchUnit) -> None:
        self.unit = unit
        self.is_begun = False
        self.later: list[tuple[Record, Sequence[int]]] = []
        self.asked: list[Record] = []
        self.groups: dict[Record, list[int]] = {}
        self._rows: pa.Table
        self._outcomes: list[Outcome | None] = []

    def open(self) -> None:
        """Read the rows and what is known of them; `groups` are the others, by what is asked for."""
        unit = self.unit
        self._rows = add_hits(read_places(unit.rows, unit.start, unit.stop), unit.rows, unit.reuse)
        records = records_of(self._rows)
        expect(rows=len(records))
        folder = unit.spool_folder
        path = None if folder is None else folder / f"{unit.shard.name}.rows"
        self.spool = Spool(path, _identity(unit, records))
        self._outcomes = [self.spool.known.get(row) for row in range(len(records))]
        allowed = parse_allowed(unit.config.allow_private)
        for row, record in enumerate(records):
            outcome = self._outcomes[row] = self._outcomes[row] or refused(record, allowed)
            if outcome is None:
                self.groups.setdefault(record, []).append(row)
            else:
                beat(rows=1, bytes=outcome.size, failed=outcome.error_class)
        if self.spool.known:
            log.info("%s: %d rows were fetched before the run was cut short", unit.name, len(self.spool.known))

    def settle(self, rows: Sequence[int], outcome: Outcome, image: bytes | None, *, spooled: bool = True) -> Outcome:
        """Keep what became of some rows. Raises OSError if the disk is full."""
        if spooled:
            outcome = self.spool.add(rows, outcome, image)
        for row in rows:
            self._outcomes[row] = outcome
            if outcome.error_class is None:
                beat(rows=1, bytes=outcome.size)
            else:
                beat(rows=1, failed=outcome.error_class)
        return outcome

    def write(self) -> None:
        """Write and commit the raw shard."""
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        assert len(outcomes) == self._rows.num_rows, "a row without an outcome"
        write_unit(self.unit, self._rows, outcomes, self.spool.read)

    def close(self) -> None:
        """Let go of the spool; it stays, unless all of it is committed."""
        if hasattr(self, "spool"):
            self.spool.close()

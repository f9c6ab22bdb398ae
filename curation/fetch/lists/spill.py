"""The shuffled list on disk: sorted runs, from which any raw shard reads its rows.

Row r of the list goes to place permute(r); raw shard i holds places [i * S, (i + 1) * S). One pass cuts the list into
runs of `RUN_ROWS`, each sorted by place and written at once (an external merge sort), so memory is one run and a kill
costs one run. A shard reads from every run; row groups are sized so that it needs about two of each, see docs/fetch.md
for the arithmetic.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.fetch.config import FetchConfig, InputConfig
from headrace.curation.fetch.lists.plan import READER, Agreed, Plan, PlannedSegment, agree, planned_file
from headrace.curation.fetch.lists.rows import Odd, Tally
from headrace.curation.fetch.lists.seam import check_seam, check_types
from headrace.curation.fetch.lists.table import Scan, scan, tables
from headrace.shards.parquet import ParquetReader, open_parquet, write_parquet
from headrace.shards.permutation import make_key, permute

log = logging.getLogger(__name__)

RUN_ROWS = 1 << 17
MIN_GROUP_ROWS = 256


@dataclass(frozen=True, slots=True)
class SpilledList:
    """Where the rows lie: `num_runs` files `folder/00000.parquet`, sorted by `place`."""

    folder: str
    num_runs: int
    num_rows: int

    def run_url(self, number: int) -> str:
        """Return the URL of one run."""
        return urlpath.join(self.folder, f"{number:05d}.parquet")


@dataclass(frozen=True, slots=True)
class SpilledSegment:
    """The shuffled rows of one segment, and the first of the raw shards that they become."""

    rows: SpilledList
    first_shard: int


def spill(
    config: InputConfig, folder: str, *, seed: int, fetch: FetchConfig, next_shard: int = 0
) -> tuple[SpilledSegment, ...]:
    """Plan what is new in the lists as one more segment and write the runs that are not there yet.

    `next_shard` is the first number that no raw shard outside of the list has. Raises ValueError if a list that was
    planned is not what it was.
    """
    plan_url = urlpath.join(folder, "plan.json")
    atomic.remove_leftovers(folder)
    agreed = agree(config, plan_url, seed=seed, fetch=fetch)
    found = None
    if agreed.new:
        found = _scan_new(agreed, config, folder)
        if sum(found.rows):
            first = max([next_shard, *(place.first_shard + place.num_shards for place in agreed.plan.places)])
            agreed = _with_segment(agreed, found, first)
            agreed.plan.write(plan_url)
        elif not agreed.segments:
            raise ValueError(f"input.urls: the lists hold no rows: {', '.join(file.url for file in agreed.new)}")
    spilled = spilled_segments(agreed.plan, folder)
    for number, segment in enumerate(spilled):
        if len(files.list_names(segment.rows.folder, ".parquet")) < segment.rows.num_runs:
            fresh = found if number + 1 == len(agreed.segments) else None
            schema = None if number == 0 else _schema(agreed, config, folder)
            _spill_segment(agreed, number, segment.rows, config, scanned=fresh, schema=schema)
    return spilled


def spilled_segments(plan: Plan, folder: str) -> tuple[SpilledSegment, ...]:
    """Return where the rows of each planned segment are, or will be."""
    return tuple(
        SpilledSegment(
            SpilledList(_runs_folder(folder, number), -(-place.num_rows // RUN_ROWS), place.num_rows), place.first_shard
        )
        for number, place in enumerate(plan.places)
    )


def _scan_new(agreed: Agreed, config: InputConfig, folder: str) -> Scan:
    """Count what is new. Raises ValueError where it does not go on from what was planned."""
    for file in agreed.new:
        if file.start_row:
            check_seam(file, agreed.plan, config)
    found = scan(agreed.new, config)
    if agreed.segments:
        check_types(found.schema, _schema(agreed, config, folder), agreed.new[0].url)
    return found


def _with_segment(agreed: Agreed, found: Scan, first_shard: int) -> Agreed:
    planned = tuple(planned_file(file, rows) for file, rows in zip(agreed.new, found.rows, strict=True))
    plan = replace(agreed.plan, segments=(*agreed.plan.segments, PlannedSegment(planned, first_shard, READER)))
    if agreed.segments:
        log.info("%d new rows in %d lists: segment %d", sum(found.rows), len(planned), len(agreed.segments))
    return Agreed(plan, (*agreed.segments, agreed.new), ())


def _schema(agreed: Agreed, config: InputConfig, folder: str) -> pa.Schema:
    """Return the schema of the first segment, which all others take over."""
    first = urlpath.join(_runs_folder(folder, 0), "00000.parquet")
    if not files.exists(first):
        return scan(agreed.segments[0], config).schema
    with open_parquet(first) as run:
        return pa.schema([field for field in run.schema if field.name != "place"])


def _runs_folder(folder: str, segment: int) -> str:
    """Return where the runs of a segment are; what is recorded of its lists lies beside that folder."""
    return urlpath.join(_segment_folder(folder, segment), "runs")


def _segment_folder(folder: str, segment: int) -> str:
    return urlpath.join(folder, "segments", f"{segment:05d}") if segment else folder


def _spill_segment(
    agreed: Agreed,
    number: int,
    rows: SpilledList,
    config: InputConfig,
    *,
    scanned: Scan | None,
    schema: pa.Schema | None,
) -> None:
    """Write the runs of one segment that are missing.

    `scanned` is there if its lists were scanned just now, `schema` is that of the first segment for all others.
    """
    segment, lists = agreed.plan.segments[number], agreed.segments[number]
    folder = urlpath.parent(rows.folder)
    if segment.reader != READER:
        raise ValueError(
            f"{rows.folder}: an older headrace began this job, which cut this list into other rows, and some of "
            "its runs are missing; give the list a new job folder, or finish this fetch with the older version"
        )
    atomic.remove_leftovers(folder)
    atomic.remove_leftovers(rows.folder)
    found = scanned or scan(lists, config)
    if found.rows != tuple(file.rows for file in segment.files):
        told = sum(file.rows for file in segment.files)
        raise ValueError(f"input.urls: {told} rows at first, {sum(found.rows)} now; the list was changed")
    tally = Tally()
    key = make_key("fetch order", agreed.plan.seed, *([number] if number else []))
    blocks = tables(lists, config, found.schema if schema is None else schema, tally)
    _write_runs(blocks, tally, rows, key=key, samples_per_shard=agreed.plan.samples_per_shard)


def check_begun(config: InputConfig, folder: str, *, seed: int, fetch: FetchConfig) -> Agreed:
    """Compare the lists with those this job began with. Raises ValueError where something planned has changed.

    Nothing is written.
    """
    agreed = agree(config, urlpath.join(folder, "plan.json"), seed=seed, fetch=fetch)
    for file in agreed.new:
        if file.start_row:
            check_seam(file, agreed.plan, config)
    return agreed


def check_carried(agreed: Agreed, carried: pa.Schema, config: InputConfig, folder: str) -> None:
    """Raise ValueError if carried columns of what is new do not go with those that this job has."""
    if agreed.segments and agreed.new:
        check_types(carried, _schema(agreed, config, folder), agreed.new[0].url)


def read_tallies(folder: str, num_segments: int) -> Tally:
    """Return what was odd in the lists of all segments."""
    found = Tally()
    for number in range(max(1, num_segments)):
        found.add(read_tally(_runs_folder(folder, number)))
    return found


def _write_runs(
    blocks: Iterator[pa.Table], tally: Tally, spilled: SpilledList, *, key: int, samples_per_shard: int
) -> None:
    group = max(MIN_GROUP_ROWS, min(RUN_ROWS, samples_per_shard * RUN_ROWS // spilled.num_rows))
    done = set(files.list_names(spilled.folder, ".parquet"))
    start = 0
    for number, run in enumerate(_cut(blocks)):
        if number == spilled.num_runs - 1:  # all rows are read; before the run that ends this work
            _write_tally(spilled.folder, tally)
        if urlpath.basename(spilled.run_url(number)) not in done:
            place = permute(np.arange(start, start + run.num_rows, dtype=np.int64), spilled.num_rows, key)
            table = run.add_column(0, "place", pa.array(place)).sort_by("place")
            write_parquet(spilled.run_url(number), table, group_rows=group)
        start += run.num_rows


def _write_tally(runs_folder: str, tally: Tally) -> None:
    for title, counts in (("not fetched", tally.rejected), ("not taken as they stand", tally.repaired)):
        for reason, odd in counts.items():
            log.warning("input.urls: %d rows %s: %s; first: %s", odd.rows, title, reason, odd.first)
    atomic.write_atomic(_tally_url(runs_folder), (canonical_json(asdict(tally)) + "\n").encode())


def read_tally(runs_folder: str) -> Tally:
    """Return what was odd in the lists of a job; nothing, if an older headrace read them."""
    url = _tally_url(runs_folder)
    try:
        told = json.loads(files.read_bytes(url))
        return Tally(*({reason: Odd(**odd) for reason, odd in told[name].items()} for name in ("rejected", "repaired")))
    except FileNotFoundError:
        return Tally()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{url}: damaged: {error}; remove it, only the summary needs it") from error


def _tally_url(runs_folder: str) -> str:
    return urlpath.join(urlpath.parent(runs_folder), "lists.json")


def _cut(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables of RUN_ROWS rows; the last is shorter."""
    held: list[pa.Table] = []
    rows = 0
    for block in blocks:
        held.append(block)
        rows += block.num_rows
        while rows >= RUN_ROWS:
            whole = pa.concat_tables(held)
            yield whole.slice(0, RUN_ROWS).combine_chunks()
            held, rows = [whole.slice(RUN_ROWS)], rows - RUN_ROWS
    if rows:
        yield pa.concat_tables(held).combine_chunks()


def read_places(spilled: SpilledList, start: int, stop: int) -> pa.Table:
    """Return the rows of places [start, stop), sorted by place. Raises ValueError if one is missing."""
    parts = []
    for number in range(spilled.num_runs):
        with open_parquet(spilled.run_url(number)) as run:
            parts.append(read_range(run, start, stop))
    table = pa.concat_tables(parts).sort_by("place")
    place = table.column("place").to_numpy()
    if not np.array_equal(place, np.arange(start, stop)):
        raise ValueError(
            f"{spilled.folder}: {table.num_rows} rows for places {start} to {stop}; the folder is damaged, remove it"
        )
    return table


def read_range(run: ParquetReader, start: int, stop: int) -> pa.Table:
    """Return the rows of one run whose place is in [start, stop)."""
    bounds = [run.bounds(group, "place") or (start, start) for group in range(len(run.group_rows))]
    groups = [group for group, (least, greatest) in enumerate(bounds) if least < stop and greatest >= start]
    table = run.read(groups=groups)
    place = table.column("place")
    return table.filter(pc.and_(pc.greater_equal(place, start), pc.less(place, stop)))

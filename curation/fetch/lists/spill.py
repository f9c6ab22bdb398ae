"""The shuffled list on disk: sorted runs, from which any raw shard reads its rows.

Row r of the list goes to place permute(r); raw shard i holds places [i * S, (i + 1) * S). One pass cuts the list into
runs of `RUN_ROWS`, each sorted by place and written at once (an external merge sort), so memory is one run and a kill
costs one run. A shard reads from every run; row groups are sized so that it needs about two of each, see docs/fetch.md
for the arithmetic.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.config import canonical_json, config_to_dict
from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.inputs import fingerprint, list_files
from headrace.curation.fetch.lists.rows import Odd, Tally
from headrace.curation.fetch.lists.table import scan, tables
from headrace.shards.parquet import ParquetReader, open_parquet, write_parquet
from headrace.shards.permutation import make_key, permute

log = logging.getLogger(__name__)

# Raised whenever the same list would give other rows. 1: until quotes of tsv became letters.
READER = 2
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
        return files.join(self.folder, f"{number:05d}.parquet")


def describe_input(config: InputConfig, *, seed: int, samples_per_shard: int) -> dict[str, Any]:
    """Return what fixes the rows of every raw shard."""
    return {
        "files": [fingerprint(file) for file in list_files(config)],
        "input": {name: value for name, value in config_to_dict(config).items() if name != "urls"},
        "samples_per_shard": samples_per_shard,
        "seed": seed,
    }


def spill(config: InputConfig, folder: str, *, seed: int, samples_per_shard: int) -> SpilledList:
    """Write the runs that are not there yet. Raises ValueError if the list is not the one this job began with."""
    lists = list_files(config)
    told = describe_input(config, seed=seed, samples_per_shard=samples_per_shard)
    plan_url = _plan_url(folder)
    runs_folder = files.join(folder, "runs")
    files.remove_leftovers(folder)
    found = None
    if not files.exists(plan_url):
        found = scan(lists, config)
        if sum(found.rows) == 0:
            raise ValueError(f"input.urls: the lists hold no rows: {', '.join(file.url for file in lists)}")
        plan = {**told, "reader": READER, "rows": list(found.rows)}
        files.put_if_absent(plan_url, (canonical_json(plan) + "\n").encode())
    plan = _read_plan(plan_url)
    _check_same(plan_url, plan, told)
    num_rows = sum(plan["rows"])
    spilled = SpilledList(runs_folder, -(-num_rows // RUN_ROWS), num_rows)
    if len(files.list_names(runs_folder, ".parquet")) < spilled.num_runs:
        if plan.get("reader", 1) != READER:
            raise ValueError(
                f"{plan_url}: an older headrace began this job, which cut this list into other rows, and some of "
                f"{runs_folder} is missing; give the list a new job folder, or finish this fetch with the older version"
            )
        files.remove_leftovers(runs_folder)
        found = found or scan(lists, config)
        if sum(found.rows) != num_rows:
            raise ValueError(f"input.urls: {num_rows} rows at first, {sum(found.rows)} now; the list was changed")
        tally = Tally()
        blocks = tables(lists, config, found.schema, tally)
        _write_runs(blocks, tally, spilled, seed=seed, samples_per_shard=samples_per_shard)
    return spilled


def check_begun(config: InputConfig, folder: str, *, seed: int, samples_per_shard: int) -> int | None:
    """Return the rows of the list this job began with; None if it did not. Raises ValueError if that is another list.

    Nothing is written.
    """
    plan_url = _plan_url(folder)
    if not files.exists(plan_url):
        return None
    plan = _read_plan(plan_url)
    _check_same(plan_url, plan, describe_input(config, seed=seed, samples_per_shard=samples_per_shard))
    return int(sum(plan["rows"]))


def _plan_url(folder: str) -> str:
    return files.join(folder, "plan.json")


def _read_plan(url: str) -> dict[str, Any]:
    try:
        plan = json.loads(files.read_bytes(url))
        if all(isinstance(rows, int) and rows >= 0 for rows in plan["rows"]):
            return dict(plan)
        raise ValueError("rows are no counts")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}: damaged: {error}; give the list a new job folder") from error


def _check_same(plan_url: str, plan: dict[str, Any], told: dict[str, Any]) -> None:
    names = {"files": "the files of input.urls", "input": "the settings of input"}
    changed = [names.get(name, name) for name in told if plan.get(name) != told[name]]
    if changed:
        raise ValueError(
            f"{plan_url}: this job began with another input; changed: {', '.join(changed)}. "
            "Give the new list a job folder of its own, or restore the old one"
        )


def _write_runs(
    blocks: Iterator[pa.Table], tally: Tally, spilled: SpilledList, *, seed: int, samples_per_shard: int
) -> None:
    key = make_key("fetch order", seed)
    group = max(MIN_GROUP_ROWS, min(RUN_ROWS, samples_per_shard * RUN_ROWS // spilled.num_rows))
    done = set(files.list_names(spilled.folder, ".parquet"))
    start = 0
    for number, run in enumerate(_cut(blocks)):
        if number == spilled.num_runs - 1:  # all rows are read; before the run that ends this work
            _write_tally(spilled.folder, tally)
        if files.basename(spilled.run_url(number)) not in done:
            place = permute(np.arange(start, start + run.num_rows, dtype=np.int64), spilled.num_rows, key)
            table = run.add_column(0, "place", pa.array(place)).sort_by("place")
            write_parquet(spilled.run_url(number), table, group_rows=group)
        start += run.num_rows


def _write_tally(runs_folder: str, tally: Tally) -> None:
    for title, counts in (("not fetched", tally.rejected), ("not taken as they stand", tally.repaired)):
        for reason, odd in counts.items():
            log.warning("input.urls: %d rows %s: %s; first: %s", odd.rows, title, reason, odd.first)
    files.write_atomic(_tally_url(runs_folder), (canonical_json(asdict(tally)) + "\n").encode())


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
    return files.join(runs_folder.removesuffix("/runs"), "lists.json")


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
            parts.append(_read_run(run, start, stop))
    table = pa.concat_tables(parts).sort_by("place")
    place = table.column("place").to_numpy()
    if not np.array_equal(place, np.arange(start, stop)):
        raise ValueError(
            f"{spilled.folder}: {table.num_rows} rows for places {start} to {stop}; the folder is damaged, remove it"
        )
    return table


def _read_run(run: ParquetReader, start: int, stop: int) -> pa.Table:
    bounds = [run.bounds(group, "place") or (start, start) for group in range(len(run.group_rows))]
    groups = [group for group, (least, greatest) in enumerate(bounds) if least < stop and greatest >= start]
    table = run.read(groups=groups)
    place = table.column("place")
    return table.filter(pc.and_(pc.greater_equal(place, start), pc.less(place, stop)))

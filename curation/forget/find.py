"""Which rows and samples are meant: raw tables, ledgers, the spilled list and indexes of datasets are walked through.

Raw tables name most; where they are gone, ledgers and indexes still name what they hold. Copies are rows with the same
URL or the same bytes; near copies those that a step of select has put into one group with one of them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.job import Job
from headrace.curation.ledger import CAPTION_COLUMNS, Ledger, list_ledgers
from headrace.curation.raw.img2dataset import adopted
from headrace.curation.raw.read import read_raw
from headrace.shards.commit import committed
from headrace.shards.parquet import open_parquet

log = logging.getLogger(__name__)

Copies = Literal["none", "same", "near"]
Masker = Callable[[pa.Table], Any]
NUM_READERS = 8
PLACE = ("input_file", "input_row")
_IDENTITY = ("key", "uid", "url", "sha256", *PLACE)


@dataclass(frozen=True, slots=True)
class Texts:
    """What rows are named by, in clear: only while the command runs."""

    urls: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)

    def size(self) -> int:
        """Return how many there are."""
        return len(self.urls) + len(self.uids) + len(self.images)

    def masker(self) -> Masker:
        """Return a function: which rows of a table have one of the texts, as they are now."""
        named = (("url", self.urls), ("uid", self.uids), ("sha256", self.images))
        sets = {name: pa.array(sorted(texts), pa.string()) for name, texts in named if texts}

        def mask(table: pa.Table) -> Any:
            found: Any = pa.array([False] * table.num_rows)
            for name, texts in sets.items():
                if name in table.column_names:
                    found = pc.or_(found, pc.is_in(table[name], value_set=texts.cast(table[name].type)))
            return found

        return mask


class RowSet:
    """Rows by (raw shard, key), as a mask over tables; what tables are compared with is made once."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        self._rows = frozenset(rows)
        self._keys = pa.array(sorted({key for _, key in self._rows}), pa.string())

    def mask(self, table: pa.Table) -> pa.Array:
        """Return which rows of a table with `raw_shard` and `key` are among them."""
        near = pc.indices_nonzero(pc.is_in(table["key"], value_set=self._keys))
        mask = [False] * table.num_rows
        for place, row in zip(near.to_pylist(), table.select(["raw_shard", "key"]).take(near).to_pylist(), strict=True):
            mask[place] = (row["raw_shard"], row["key"]) in self._rows
        return pa.array(mask, pa.bool_())


@dataclass(slots=True)
class Found:
    """What was found of the texts."""

    texts: Texts
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(raw shard, key) -> what the row is known by."""
    samples: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = field(default_factory=dict)
    """Dataset -> shard -> (row of the index, what it is known by)."""
    listed: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """(input file, row) of the list as fetch has spilled it -> its URL: a raw shard of it may not be there yet."""
    unread: set[str] = field(default_factory=set)
    """Raw shards that cannot be read."""

    def known(self) -> Iterator[dict[str, Any]]:
        """Yield what each row and sample is known by."""
        yield from self.rows.values()
        for shards in self.samples.values():
            for found in shards.values():
                yield from (facts for _, facts in found)
        yield from self.listed.values()


def find(job: Job, asked: Texts, copies: Copies) -> Found:
    """Return the rows and samples that `asked` names, and their copies."""
    texts = Texts(set(asked.urls), set(asked.uids), set(asked.images))
    while True:
        size, found = texts.size(), Found(texts)
        mask = texts.masker()
        _in_raw(job, mask, found)
        _in_ledgers(job, mask, found)
        _in_list(job, mask, found)
        _in_datasets(job, mask, found)
        for facts in found.known():
            texts.uids.update(filter(None, [facts.get("uid")]))
            if copies != "none":
                texts.urls.update(filter(None, [facts.get("url")]))
                texts.images.update(filter(None, [facts.get("sha256")]))
        if copies == "near":
            texts.uids.update(near_copies(job, texts.uids))
        if copies == "none" or texts.size() == size:
            return found


def _in_raw(job: Job, mask: Masker, found: Found) -> None:
    foreign = adopted(job)
    names = committed(job.raw) if foreign is None else list(foreign.shards)
    for shard, rows in _mapped(lambda shard: _raw_hits(job, shard, mask), names):
        if rows is None:
            found.unread.add(shard)
        found.rows |= {(shard, row["key"]): row for row in rows or ()}


def _raw_hits(job: Job, shard: str, mask: Masker) -> list[dict[str, Any]] | None:
    try:
        table = read_raw(job, shard).select(_IDENTITY)
    except (ValueError, OSError) as error:
        log.warning("raw shard %s is not looked at: %s", shard, error)
        return None
    return list(table.filter(mask(table)).to_pylist())


def _in_ledgers(job: Job, mask: Masker, found: Found) -> None:
    """Add the rows that a ledger names and no raw table: of raw shards that are gone."""
    for ledger in list_ledgers(job):
        for table in ledger_groups(ledger, ["raw_shard", "key", "uid", "url", "input_file", "input_row"]):
            for row in table.filter(mask(table)).to_pylist():
                found.rows.setdefault((row.pop("raw_shard"), row["key"]), row)


def _in_list(job: Job, mask: Masker, found: Found) -> None:
    for url in spilled_tables(job):
        with open_parquet(url) as file:
            if "url" in file.schema.names:
                for group in range(len(file.group_rows)):
                    table = file.read(["url", *PLACE], groups=[group])
                    for row in table.filter(mask(table)).to_pylist():
                        found.listed[row["input_file"], row["input_row"]] = {"url": row["url"]}


def spilled_tables(job: Job) -> Iterator[str]:
    """Yield the tables of the list as fetch has spilled it, and of its retries."""
    for url in _tables_in(urlpath.join(job.url, "input")):
        with open_parquet(url) as file:
            named = set(PLACE) <= set(file.schema.names)
        if named:
            yield url


def _tables_in(url: str, depth: int = 4) -> Iterator[str]:
    for name in files.list_names(url):
        if name.endswith(".parquet"):
            yield urlpath.join(url, name)
        elif "." not in name and depth:
            yield from _tables_in(urlpath.join(url, name), depth - 1)


def ledger_groups(ledger: Ledger, columns: Iterable[str]) -> Iterator[pa.Table]:
    """Yield columns of a ledger's table, row group by row group, without those that it lacks."""
    with open_parquet(ledger.table) as file:
        names = [name for name in columns if name in file.schema.names]
        for group in range(len(file.group_rows)):
            yield file.read(names, groups=[group])


def holds_any(column: pa.ChunkedArray, uids: pa.Array) -> pa.Array:
    """Return which rows of a column of uids, or of lists of them, have one of `uids`."""
    column = column.combine_chunks()
    if not pa.types.is_list(column.type):
        return pc.is_in(column, value_set=uids)
    rows = pc.list_parent_indices(column).filter(pc.is_in(pc.list_flatten(column), value_set=uids))
    return pc.is_in(pa.array(range(len(column)), rows.type), value_set=rows)


def takes_captions_of(table: pa.Table, uids: pa.Array) -> pa.Array:
    """Return which rows of a ledger or an index have the caption of one of `uids`."""
    found = pa.array([False] * table.num_rows)
    for name in CAPTION_COLUMNS:
        if name in table.column_names:
            found = pc.or_(found, holds_any(table[name], uids))
    return found


def near_copies(job: Job, uids: set[str]) -> set[str]:
    """Return the uids of rows that a step of select has put into a group with one of `uids`, other than these."""
    near: set[str] = set()
    for ledger in list_ledgers(job):
        wanted = pa.array(sorted(uids), pa.string())
        roots: set[str] = set()
        for table in ledger_groups(ledger, ["uid", "duplicate_of"]):
            mine = table.filter(pc.is_in(table["uid"], value_set=wanted))
            roots.update(filter(None, mine["duplicate_of"].to_pylist()))
        heads = pa.array(sorted(roots | uids), pa.string())
        for table in ledger_groups(ledger, ["uid", "duplicate_of"]):
            mask = pc.or_(
                pc.is_in(table["uid"], value_set=heads),
                pc.is_in(table["duplicate_of"], value_set=heads, skip_nulls=True),
            )
            near.update(table.filter(mask)["uid"].to_pylist())
    return near - uids


def _in_datasets(job: Job, mask: Masker, found: Found) -> None:
    for name in dataset_names(job):
        url = job.dataset_named(name)
        for shard, hits in _mapped(lambda shard, url=url: _index_hits(url, shard, mask), committed(url)):
            if hits:
                found.samples.setdefault(name, {})[shard] = hits


def dataset_names(job: Job) -> list[str]:
    """Return the datasets of a job that hold a shard, finished or not; the published one first."""
    return [name for name in ("", *files.list_names(job.datasets)) if committed(job.dataset_named(name))]


def _index_hits(dataset: str, shard: str, mask: Masker) -> list[tuple[int, dict[str, Any]]]:
    with open_parquet(index_url(dataset, shard)) as file:
        table = file.read(["key", "uid", "url", "sha256"])
    places = pc.indices_nonzero(pc.fill_null(mask(table), False))
    return list(zip(places.to_pylist(), table.take(places).to_pylist(), strict=True))


def index_url(dataset: str, shard: str) -> str:
    """Return where the index of a shard of a dataset lies."""
    return urlpath.join(dataset, "shards", f"{shard}.parquet")


def _mapped(function: Any, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, result) in order, computed by a few threads."""
    with ThreadPoolExecutor(NUM_READERS) as readers:
        yield from zip(names, readers.map(function, names), strict=True)

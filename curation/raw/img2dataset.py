"""Raw shards of someone's img2dataset, used where they lie and read with our columns.

A foreign shard has no input list: a row's origin is the raw parquet itself (`input_file`) and its place there
(`input_row`).
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.job import Job
from headrace.curation.raw.record import RECORD_SCHEMA, Recorded, parse_record, read_json
from headrace.curation.raw.schema import OWN_SCHEMA, uid_of
from headrace.shards.commit import committed
from headrace.shards.errors import ShardError
from headrace.shards.parquet import ParquetReader
from headrace.text import shown

log = logging.getLogger(__name__)

FOREIGN = "foreign.json"
"""In `JOB/raw`: where the raw shards of others are, and which of them are used."""
FOREIGN_RECORDS = "foreign"
"""Beside it: the folder of what was recorded of each of them."""

NUM_READERS = 16
MAX_NAMED = 20

_FOREIGN_REQUIRED = ("key", "url", "status")

# What urllib, OpenCV and img2dataset 1.47 say, first match wins.
_FOREIGN_ERRORS = (
    (r"HTTP Error 429", "http-429"),
    (r"HTTP Error 4\d\d", "http-4xx"),
    (r"HTTP Error 5\d\d", "http-5xx"),
    (r"HTTP Error 30\d", "redirects"),
    (r"X-Robots-Tag", "opted-out"),
    (r"hash mismatch", "sha256-mismatch"),
    (r"certificate|SSL|TLS", "tls"),
    (r"timed out|timeout", "timeout"),
    (r"[Nn]ame or service|name resolution|getaddrinfo|No address associated|nodename", "dns"),
    (r"refused|reset|unreachable|closed connection|No route", "connect"),
    (r"unknown url type|no host given|unknown uri|URL can't contain", "bad-url"),
    (r"IncompleteRead", "truncated"),
    (r"image too small", "image-too-small"),
    (r"image area too large", "image-too-large"),
    (r"aspect ratio too large", "image-too-long"),
    (r"decoding error|cannot identify", "not-image"),
)


@dataclass(frozen=True, slots=True)
class Adopted:
    """The raw shards of others that a job uses instead of its own."""

    url: str
    """Their folder."""
    shards: tuple[str, ...]
    """Their names, sorted."""
    records: str | None
    """The folder of what was recorded of each shard's files; None in jobs of before 2026-12."""

    def recorded(self, shard: str) -> Recorded:
        """Return what was recorded of one shard. Raises ValueError if the record is damaged."""
        advice = "put back the file that this job began with, or give the new one a job folder of its own"
        if self.records is None:
            return Recorded(place=self.url, advice=advice, folder=self.url, own=False)
        place = urlpath.join(self.records, f"{shard}.json")
        return parse_record(read_json(place), place=place, advice=advice, folder=self.url, own=False)


def adopt_raw(job: Job, url: str) -> list[str]:
    """Make the finished shards of an img2dataset folder this job's raw shards; return their names.

    Nothing is copied; the sums of the tables are recorded. Raises ValueError if the folder holds no shard or a damaged
    one, or if the job began with other raw shards.
    """
    shards = check_adoptable(job, url)
    if adopted(job) is None:
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for _ in readers.map(partial(_record, job, url), shards):
                pass
        record = {"schema": RECORD_SCHEMA, "shards": shards, "url": url}
        atomic.put_if_absent(urlpath.join(job.raw, FOREIGN), (canonical_json(record) + "\n").encode())
        log.info("%s: took over %s raw shards of %s", job.raw, len(shards), url)
    return check_adoptable(job, url)


def check_adoptable(job: Job, url: str) -> list[str]:
    """Return the finished shards of an img2dataset folder; raise ValueError if the job cannot take them.

    Nothing is written.
    """
    _adopted_elsewhere.cache_clear()
    shards = foreign_shards(url)
    if committed(job.raw):
        raise ValueError(f"{job.raw} holds fetched shards already; give input.raw a job folder of its own")
    known = adopted(job)
    if known is not None and (known.url, list(known.shards)) != (url, shards):
        raise ValueError(
            f"{job.raw}/{FOREIGN}: this job began with other raw shards; give the new ones a job folder of their own"
        )
    return shards


def _record(job: Job, url: str, shard: str) -> None:
    """Look at one shard and record what it holds. Raises ValueError that names a damaged file."""
    data, table = _checked(url, shard)
    record = {
        "schema": RECORD_SCHEMA,
        "count": table.num_rows,
        "successes": _successes(table),
        "table": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "tar": {"bytes": files.size_of(urlpath.join(url, f"{shard}.tar"))},
    }
    # Written over, as a killed run may have recorded other files before the job began with them.
    atomic.write_atomic(
        urlpath.join(job.raw, FOREIGN_RECORDS, f"{shard}.json"), (canonical_json(record) + "\n").encode()
    )


def recorded_foreign_table(url: str, shard: str) -> pa.Table:
    """Return the table of a finished shard with our columns. Raises ShardError where its stats say otherwise."""
    return foreign_table(_checked(url, shard)[1], urlpath.join(url, f"{shard}.parquet"))


def _checked(url: str, shard: str) -> tuple[bytes, pa.Table]:
    """Return the bytes and the table of one shard; its rows and images are those that its stats tell of."""
    table_url = urlpath.join(url, f"{shard}.parquet")
    data = files.read_bytes(table_url)
    table = ParquetReader(data, table_url).read()
    foreign_table(table, table_url)
    stats_url = urlpath.join(url, f"{shard}_stats.json")
    stats = _stats(stats_url)
    for name, found in (("count", table.num_rows), ("successes", _successes(table))):
        counted = stats.get(name, found)
        if counted != found:
            what = "rows" if name == "count" else "images"
            raise ShardError(
                f"{found} {what}, {stats_url} says {shown(counted)}; copy both files again from where they were made",
                shard=table_url,
            )
    return data, table


def _successes(table: pa.Table) -> int:
    return int(pc.sum(pc.equal(table["status"], "success")).as_py() or 0)


def _stats(url: str) -> dict[str, Any]:
    return read_json(url) if files.exists(url) else {}  # a published copy may have none


def foreign_shards(url: str) -> list[str]:
    """Return the shards that img2dataset has finished (tar, parquet and stats are there).

    Raises ValueError if there are none, or if a file of a finished shard is missing.
    """
    names = {suffix: _numbered(url, suffix) for suffix in (".tar", ".parquet", "_stats.json")}
    tars, tables, stats = names.values()
    # A published copy may lack every stats file; a run that was killed lacks those of its unfinished shards only.
    finished = stats or tars | tables
    missing = sorted(f"{name}{suffix}" for suffix in (".tar", ".parquet") for name in finished - names[suffix])
    if tars & tables and missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise ValueError(
            f"input.raw: {url}: {missing[0]} is missing{more}, while other files of that shard are there; copy it again"
        )
    shards = sorted(finished & tars & tables)
    if not shards:
        raise ValueError(
            f"input.raw: {url}: no finished shard (00000.tar, 00000.parquet, 00000_stats.json); "
            "img2dataset writes these with --output_format webdataset"
        )
    unfinished = sorted((tars | tables) - finished)
    if unfinished:
        log.warning("%s: not finished by img2dataset, left out: %s", url, ", ".join(unfinished[:MAX_NAMED]))
    return shards


def _numbered(url: str, suffix: str) -> set[str]:
    names = {name.removesuffix(suffix) for name in files.list_names(url, suffix)}
    return {name for name in names if re.fullmatch(r"[0-9]+", name)}


def foreign_table(table: pa.Table, url: str) -> pa.Table:
    """Return img2dataset's parquet with our columns: what it lacks is filled, what it has besides is carried."""
    missing = [name for name in _FOREIGN_REQUIRED if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{url}: no column {missing[0]!r}; not a parquet of img2dataset: {', '.join(table.schema.names)}"
        )
    columns = {name: _filled(name, table, url) for name in OWN_SCHEMA.names}
    try:
        own = [columns[field.name].cast(field.type) for field in OWN_SCHEMA]
    except pa.ArrowException as error:
        raise ValueError(f"{url}: {error}") from error
    if len(pc.unique(columns["key"])) != table.num_rows:
        raise ValueError(f"{url}: a key comes twice; rows and images cannot be told apart")
    extra = [field for field in table.schema.remove_metadata() if field.name not in OWN_SCHEMA.names]
    return pa.table([*own, *(table.column(field.name) for field in extra)], schema=pa.schema([*OWN_SCHEMA, *extra]))


def _filled(name: str, table: pa.Table, url: str) -> Any:
    own: dict[str, Callable[[], Any]] = {
        "input_file": lambda: pa.repeat(pa.scalar(urlpath.basename(url)), table.num_rows),
        "input_row": lambda: pa.array(range(table.num_rows), pa.int64()),
        "error_class": lambda: pa.array(_classes(table), pa.string()),
    }
    if name in own:
        return own[name]()
    if name in table.column_names:
        return table.column(name)
    if name == "uid":
        captions = table.column("caption").to_pylist() if "caption" in table.column_names else [None] * table.num_rows
        pairs = zip(captions, table.column("url").to_pylist(), strict=True)
        return pa.array([uid_of(caption, link) for caption, link in pairs], pa.string())
    return pa.nulls(table.num_rows, OWN_SCHEMA.field(name).type)


def _classes(table: pa.Table) -> list[str | None]:
    count = table.num_rows
    messages = table.column("error_message").to_pylist() if "error_message" in table.column_names else [None] * count
    return [
        None if status == "success" else foreign_error_class(str(status), message or "")
        for status, message in zip(table.column("status").to_pylist(), messages, strict=True)
    ]


def foreign_error_class(status: str, message: str) -> str:
    """Return our class for what img2dataset says about a failure."""
    for pattern, name in _FOREIGN_ERRORS:
        if re.search(pattern, message):
            return name
    return "resize" if status == "failed_to_resize" else "protocol"


def adopted(job: Job) -> Adopted | None:
    """Return the raw shards that this job uses instead of its own; None if it fetched. Raises ValueError if damaged."""
    try:
        return _adopted(job) if urlpath.is_local(job.raw) else _adopted_elsewhere(job)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=4)
def _adopted_elsewhere(job: Job) -> Adopted:
    """Read it once of a job in a bucket: what a job has adopted never changes."""
    return _adopted(job)


def _adopted(job: Job) -> Adopted:
    place = urlpath.join(job.raw, FOREIGN)
    try:
        record = json.loads(files.read_bytes(place))
        records = None if record.get("schema") is None else urlpath.join(job.raw, FOREIGN_RECORDS)
        return Adopted(str(record["url"]), tuple(sorted(str(name) for name in record["shards"])), records)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place}: damaged: {error}; restore it, or begin again in another job folder") from error

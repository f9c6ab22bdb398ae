"""Raw shards of someone's img2dataset, used where they lie and read with our columns.

A foreign shard has no input list: a row's origin is the raw parquet itself (`input_file`) and its place there
(`input_row`).
"""

import json
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files
from headrace.config import canonical_json
from headrace.curation.job import Job
from headrace.curation.raw.schema import OWN_SCHEMA, uid_of
from headrace.shards.commit import committed

FOREIGN = "foreign.json"
"""In `JOB/raw`: where the raw shards of others are, and which of them are used."""

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
    (r"decoding error|cannot identify", "not-image"),
)


def adopt_raw(job: Job, url: str) -> list[str]:
    """Make the finished shards of an img2dataset folder this job's raw shards; return their names.

    Nothing is copied. Raises ValueError if the folder holds none, or if the job began with other raw shards.
    """
    shards = foreign_shards(url)
    record = (canonical_json({"shards": shards, "url": url}) + "\n").encode()
    target = files.join(job.raw, FOREIGN)
    if committed(job.raw):
        raise ValueError(f"{job.raw} holds fetched shards already; give input.raw a job folder of its own")
    if not files.put_if_absent(target, record) and files.read_bytes(target) != record:
        raise ValueError(f"{target}: this job began with other raw shards; give the new ones a job folder of their own")
    return shards


def foreign_shards(url: str) -> list[str]:
    """Return the shards that img2dataset has finished (tar, parquet and stats are there)."""
    names = set(files.list_names(url))
    tars = sorted(name.removesuffix(".tar") for name in names if re.fullmatch(r"[0-9]+\.tar", name))
    # A published copy may lack every stats file; a run that was killed lacks those of its unfinished shards only.
    with_stats = any(name.endswith("_stats.json") for name in names)
    shards = [name for name in tars if f"{name}.parquet" in names and (not with_stats or f"{name}_stats.json" in names)]
    if not shards:
        raise ValueError(
            f"input.raw: {url}: no finished shard (00000.tar, 00000.parquet, 00000_stats.json); "
            "img2dataset writes these with --output_format webdataset"
        )
    return shards


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
        "input_file": lambda: pa.repeat(pa.scalar(files.basename(url)), table.num_rows),
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


def adopted(job: Job) -> dict[str, Any] | None:
    """Return the folder and the shards that this job uses instead of its own; None if it fetched."""
    url = files.join(job.raw, FOREIGN)
    try:
        record = json.loads(files.read_bytes(url))
        return {"url": str(record["url"]), "shards": list(record["shards"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}: damaged: {error}") from error

"""Write a dataset: tar, then index, then commit record; at the end the manifest from the records.

Equal samples give equal bytes, and a shard counts only once its record is there, so a killed writer is simply run
again. `columns` hold what only the caller knows; place, size, crc32 and the image's header are measured here.
"""

import hashlib
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headrace import atomic, urlpath
from headrace.config import canonical_json
from headrace.lease import NO_FENCE, Fence
from headrace.shards.commit import SHARD_FIELDS, check_name, commit, committed, read_commit
from headrace.shards.dataset import SCHEMA_VERSION
from headrace.shards.errors import ShardError
from headrace.shards.images.formats import IMAGE_EXTENSIONS
from headrace.shards.index import INDEX_SCHEMA, sample_uid
from headrace.shards.manifest import MANIFEST_NAME, MANIFEST_SCHEMA, OWN_LAYOUT, SUMMARY_NAME
from headrace.shards.members import header_columns
from headrace.shards.parquet import parquet_bytes
from headrace.shards.tar import ShardWriter, TarMember, check_key

_MEASURED = ("key", "offset", "size", "crc32", "width", "height", "orientation", "format")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample to write; `extension` is the image's without a dot, `columns` become columns of the index."""

    key: str
    image: bytes
    extension: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    in_json: tuple[str, ...] = ()
    """Columns of lists that stand in the `.json` too."""


def write_shard(
    dataset_url: str, name: str, samples: Iterable[Sample], schema: pa.Schema = INDEX_SCHEMA
) -> dict[str, Any]:
    """Write one shard whole and commit it; return its record.

    `schema` names the extra columns of the index (fields of INDEX_SCHEMA in it are ignored: they always come first).
    Raises ShardError if the shard is already committed with other bytes.
    """
    record = write_shard_files(dataset_url, name, samples, schema)
    commit_shard(dataset_url, name, record)
    return record


def write_shard_files(
    dataset_url: str, name: str, samples: Iterable[Sample], schema: pa.Schema = INDEX_SCHEMA, *, fence: Fence = NO_FENCE
) -> dict[str, Any]:
    """Write tar and index of one shard without committing; return the record to commit.

    Raises OSError if another process writes the dataset by now, as `fence` tells.
    """
    check_name(name)
    full_schema = index_schema(schema)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    tar_url = urlpath.join(dataset_url, "shards", f"{name}.tar")
    with atomic.atomic_file(tar_url) as path:
        with ShardWriter(path) as writer:
            for sample in samples:
                if sample.key in seen:
                    raise ShardError("the key comes twice", shard=name, key=sample.key)
                seen.add(sample.key)
                rows.append(_write_sample(writer, name, sample, full_schema))
        fence.check()
        record: dict[str, Any] = {"num_samples": len(rows), "num_bytes": writer.num_bytes, "sha256": writer.sha256}
    index = parquet_bytes(_table(rows, full_schema, name))
    fence.check()
    atomic.write_atomic(urlpath.join(dataset_url, "shards", f"{name}.parquet"), index)
    return {**record, "index_sha256": hashlib.sha256(index).hexdigest()}


def commit_shard(dataset_url: str, name: str, record: Mapping[str, Any]) -> None:
    """Commit a shard's record. Raises ShardError if another record is there: equal input must give equal bytes."""
    if not commit(dataset_url, name, record) and read_commit(dataset_url, name) != dict(record):
        raise ShardError(
            "already committed with another content; was the input, a setting or a package changed since?",
            shard=urlpath.join(dataset_url, "shards", f"{name}.tar"),
        )


def index_schema(extra: pa.Schema) -> pa.Schema:
    """Return INDEX_SCHEMA followed by the other fields of `extra`."""
    return pa.schema([*INDEX_SCHEMA, *(item for item in extra if item.name not in INDEX_SCHEMA.names)])


def finish_dataset(dataset_url: str, *, recipe_digest: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write `shards.parquet` and `dataset.json` from the commit records.

    `facts` are more entries of dataset.json, such as `classes`. Raises ValueError if nothing is committed.
    """
    clear_leftovers(dataset_url, "shards", "commits")
    names = committed(dataset_url)
    if not names:
        raise ValueError(f"{dataset_url}: no shard is committed, nothing to finish")
    records = [{**read_commit(dataset_url, name, fields=SHARD_FIELDS), "name": name} for name in names]
    write_manifest(dataset_url, records, {"recipe_digest": recipe_digest, "layout": OWN_LAYOUT, **(facts or {})})


def clear_leftovers(url: str, *folders: str) -> None:
    """Remove what killed writers left in `url` and in its `folders`; whoever finishes knows that no writer is left."""
    for folder in (url, *(urlpath.join(url, name) for name in folders)):
        atomic.remove_leftovers(folder)


def write_manifest(url: str, records: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the two files that make a folder a dataset; dataset.json last, as `open_dataset` looks for it."""
    table = _manifest_table(records)
    manifest = parquet_bytes(table)
    summary = {
        "schema": SCHEMA_VERSION,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "num_shards": table.num_rows,
        "num_samples": sum(table["num_samples"].to_pylist()),
        "num_bytes": sum(table["num_bytes"].to_pylist()),
        **facts,
    }
    atomic.write_atomic(urlpath.join(url, MANIFEST_NAME), manifest)
    atomic.write_atomic(urlpath.join(url, SUMMARY_NAME), (canonical_json(summary) + "\n").encode())


def manifest_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return `shards.parquet` of a dataset with these records."""
    return parquet_bytes(_manifest_table(records))


def _manifest_table(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    rows = [{name: record[name] for name in MANIFEST_SCHEMA.names} for record in records]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def _write_sample(writer: ShardWriter, name: str, sample: Sample, schema: pa.Schema) -> dict[str, Any]:
    unknown = [column for column in sample.columns if column not in schema.names]
    if unknown:
        raise ValueError(f"{name}: sample {sample.key!r}: columns {', '.join(unknown)} are not in the schema")
    try:
        check_key(sample.key)
        if sample.extension not in IMAGE_EXTENSIONS:
            raise ValueError(f"extension {sample.extension!r} is none of {', '.join(IMAGE_EXTENSIONS)}")
        header = header_columns(sample.image)
    except ValueError as error:
        raise ShardError(str(error), shard=name, key=sample.key) from error
    row = {column: value for column, value in sample.columns.items() if column not in _MEASURED}
    row.update(header)
    if sample.columns.get("orientation") is not None:
        # A writer that cut the metadata has taken the orientation out of the image; only it still knows.
        row["orientation"] = sample.columns["orientation"]
    if row.get("sha256") is None:
        row["sha256"] = hashlib.sha256(sample.image).hexdigest()
    caption, url = row.get("caption"), row.get("url")
    row["uid"] = row.get("uid") or sample_uid(caption, url, shard=name, key=sample.key)
    placed = writer.write(sample.key, _members(sample, row))[sample.extension]
    return {"key": sample.key, **_place(placed), "crc32": zlib.crc32(sample.image), **row}


def _place(member: TarMember) -> dict[str, int]:
    return {"offset": member.offset, "size": member.size}


def _members(sample: Sample, row: Mapping[str, Any]) -> dict[str, bytes]:
    """The tar members of a sample: image, `.json` with the plain columns, `.txt` caption, `.cls` label."""
    plain = {
        column: value
        for column, value in row.items()
        if _is_plain(value) or (column in sample.in_json and value is not None)
    }
    members = {sample.extension: sample.image, "json": canonical_json(plain).encode()}
    if row.get("caption") is not None:
        members["txt"] = str(row["caption"]).encode()
    if row.get("label") is not None:
        members["cls"] = str(row["label"]).encode()
    return members


def _is_plain(value: Any) -> bool:
    # Embeddings and boxes would swell the tar; the index has them. NaN is not JSON.
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _table(rows: list[dict[str, Any]], schema: pa.Schema, name: str) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: a column's value does not fit its type: {error}") from error

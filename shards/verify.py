"""Check every byte of a dataset against its index and manifest, and name each damaged sample.

One forward pass over each tar. The one thing a reader would get wrong: a cut tar does not end the check of that
shard; rows whose bytes are still whole are still checked, so the answer is exactly the samples that are lost.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headrace import files
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.group import SampleMembers, group_members, read_columns
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.header import check_complete, read_header
from headrace.shards.index import INDEX_SCHEMA
from headrace.shards.payloads import check_crc
from headrace.shards.tar import iterate_members
from headrace.shards.windows import Windows

# Columns of the index that the small members of the tar repeat.
_TEXT_COLUMNS = ("caption", "label", "url")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong; `key` and `offset` are null where it concerns a whole shard."""

    shard: str
    key: str | None
    offset: int | None
    message: str

    def __str__(self) -> str:
        place = f" sample {self.key!r}" if self.key is not None else ""
        return f"{self.shard}{place}{'' if self.offset is None else f' at byte {self.offset}'}: {self.message}"


def verify_dataset(url: str, *, index_dir: str | None = None, decode: bool = False) -> Iterator[Damage]:
    """Yield what is damaged, shard by shard, in the order of the manifest.

    `decode` also decodes every image. Raises ValueError if there is no dataset at `url`.
    """
    dataset = open_dataset(url, index_dir=index_dir)
    for shard in range(len(dataset.shards)):
        yield from verify_shard(dataset, shard, decode=decode)


def verify_shard(dataset: Dataset, shard: int, *, decode: bool = False) -> Iterator[Damage]:
    """Yield what is damaged in one shard."""
    entry = dataset.shards[shard]
    rows: dict[int, dict[str, Any]] = {}
    try:
        if entry.index_sha256 is not None:
            got = hashlib.sha256(files.read_bytes(dataset.index_url(shard))).hexdigest()
            if got != entry.index_sha256:
                yield Damage(entry.name, None, None, f"sha256 of the index is {got}, expected {entry.index_sha256}")
        table = dataset.index(shard)
        rows = {row["offset"]: row for row in table.select(INDEX_SCHEMA.names).to_pylist()}
        if len(rows) < table.num_rows:
            yield Damage(entry.name, None, None, f"{table.num_rows - len(rows)} rows of the index share an offset")
    except FileNotFoundError:
        yield Damage(entry.name, None, None, f"missing index {dataset.index_url(shard)}")
    except ShardError as error:
        yield Damage(entry.name, None, None, error.detail)
    try:
        windows = Windows(dataset.tar_url(shard), hashing=True)
    except FileNotFoundError:
        yield Damage(entry.name, None, None, f"missing shard {dataset.tar_url(shard)}")
        return
    with windows:
        yield from _check_tar(windows, entry.name, rows, decode)
        if windows.size != entry.num_bytes:
            yield Damage(entry.name, None, None, f"the tar has {windows.size} bytes, expected {entry.num_bytes}")
        elif entry.sha256 is not None and windows.sha256() != entry.sha256:
            yield Damage(entry.name, None, None, f"sha256 of the tar is {windows.sha256()}, expected {entry.sha256}")


def _check_tar(windows: Windows, shard: str, rows: dict[int, dict[str, Any]], decode: bool) -> Iterator[Damage]:
    """Check each indexed sample where the tar has it, then those that the tar's headers no longer reach."""
    left = dict(rows)
    try:
        for sample in group_members(iterate_members(windows), windows.url):
            row = left.pop(sample.image.offset, None) if sample.image is not None else None
            if row is not None:
                yield from _check_sample(windows, shard, sample, row, decode)
    except ShardError as error:
        yield Damage(shard, error.key, error.offset, error.detail)
    for offset, row in sorted(left.items()):
        if offset < 0 or row["size"] is None or row["size"] < 0 or offset + row["size"] > windows.size:
            cut = f"{row['size']} bytes expected, the tar ends at byte {windows.size}"
            yield Damage(shard, row["key"], offset, cut)
            continue
        message = _check_image(windows.read(offset, row["size"]), row, windows.url, decode)
        yield Damage(shard, row["key"], offset, message or "no tar header leads to it any more; its bytes are whole")


def _check_sample(
    windows: Windows, shard: str, sample: SampleMembers, row: dict[str, Any], decode: bool
) -> Iterator[Damage]:
    assert sample.image is not None
    offset, size = sample.image.offset, sample.image.size
    if size != row["size"]:
        yield Damage(shard, row["key"], offset, f"size in the tar is {size}, the index says {row['size']}")
        return
    if sample.key != row["key"]:
        yield Damage(shard, row["key"], offset, f"the tar names it {sample.key!r}")
    columns = read_columns(windows, sample).values if row["crc32"] is not None else {}
    message = _check_image(windows.read(offset, size), row, windows.url, decode)
    if message is not None:
        yield Damage(shard, row["key"], offset, message)
    for name in _TEXT_COLUMNS if columns else ():
        if columns.get(name) != row[name]:
            yield Damage(shard, row["key"], offset, f"{name} in the tar is not the index's")


def _check_image(data: bytes, row: dict[str, Any], url: str, decode: bool) -> str | None:
    """Return what is wrong with one image, or None."""
    try:
        check_crc(data, row["crc32"], url=url, key=row["key"], offset=row["offset"])
        header = read_header(data)
        check_complete(data, header)
        if row["width"] is not None and (header.width, header.height) != (row["width"], row["height"]):
            return f"the image is {header.width} x {header.height}, the index says {row['width']} x {row['height']}"
        if decode:
            decode_rgb(data, header=header)
    except ShardError as error:
        return error.detail
    except ValueError as error:
        return str(error)
    return None

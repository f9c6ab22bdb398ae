"""Read payloads of a shard by ranges.

Spans that lie close together are read in one request, bounded in size. The answer is in the order asked for, whatever
the order on disk.
"""

import os
import zlib
from collections.abc import Sequence

from headrace import files, urlpath
from headrace.shards.dataset import Dataset
from headrace.shards.errors import ShardError
from headrace.web import NoRangesError

LOCAL_GAP_BYTES = 16 * 1024
REMOTE_GAP_BYTES = 256 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024

Span = tuple[int, int]


def read_payloads(url: str, spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each (offset, size), in the order asked for. Raises ShardError on a short read."""
    local = urlpath.is_local(url)
    result: list[bytes] = [b""] * len(spans)
    handle = os.open(urlpath.local_path(url), os.O_RDONLY) if local else None
    try:
        for group in coalesce(spans, LOCAL_GAP_BYTES if local else REMOTE_GAP_BYTES):
            start = spans[group[0]][0]
            size = max(spans[i][0] + spans[i][1] for i in group) - start
            data = os.pread(handle, size, start) if handle is not None else _remote_range(url, start, size)
            if len(data) != size:
                _explain_length(url, [spans[i] for i in group], start, len(data))
            for i in group:
                offset, length = spans[i]
                result[i] = data if length == size else data[offset - start : offset - start + length]
    finally:
        if handle is not None:
            os.close(handle)
    return result


def _remote_range(url: str, offset: int, size: int) -> bytes:
    try:
        return files.read_range(url, offset, size)
    except NoRangesError as error:
        raise ShardError(f"its server ignores ranges: {error.__cause__}", shard=url, offset=offset) from error


def coalesce(spans: Sequence[Span], gap_bytes: int, max_bytes: int = MAX_REQUEST_BYTES) -> list[list[int]]:
    """Group the numbers of `spans` into requests: sorted by offset, gaps up to `gap_bytes`, up to `max_bytes` each."""
    groups: list[list[int]] = []
    start = end = 0
    for number in sorted(range(len(spans)), key=spans.__getitem__):
        offset, size = spans[number]
        if offset < 0 or size < 0:
            raise ValueError(f"a span must not be negative, got offset {offset}, size {size}")
        if groups and offset <= end + gap_bytes and max(end, offset + size) - start <= max_bytes:
            groups[-1].append(number)
            end = max(end, offset + size)
        else:
            groups.append([number])
            start, end = offset, offset + size
    return groups


def read_sample(dataset: Dataset, shard: int, row: int) -> bytes:
    """Return the image of one sample, checked against its crc32. Raises ShardError if the bytes differ."""
    table = dataset.index(shard)
    if not 0 <= row < table.num_rows:
        raise ValueError(f"{dataset.tar_url(shard)}: there is no row {row} of {table.num_rows}")
    record = table.slice(row, 1).select(["key", "offset", "size", "crc32"]).to_pylist()[0]
    url = dataset.tar_url(shard)
    (data,) = read_payloads(url, [(record["offset"], record["size"])])
    check_crc(data, record["crc32"], url=url, key=record["key"], offset=record["offset"])
    return data


def check_crc(data: bytes, expected: int | None, *, url: str, key: str, offset: int) -> None:
    """Check a payload against its crc32; an index made with --fast has none. Raises ShardError."""
    if expected is not None and zlib.crc32(data) != expected:
        raise ShardError(
            f"crc32 is {zlib.crc32(data):#010x}, the index says {expected:#010x}", shard=url, key=key, offset=offset
        )


def _explain_length(url: str, spans: Sequence[Span], start: int, got: int) -> None:
    """Raise for the first of one request's spans that came short, or for an answer that is too long."""
    for offset, size in spans:
        if offset + size > start + got:
            short = max(0, start + got - offset)
            raise ShardError(f"asked for {size} bytes, got {short}: the shard is truncated", shard=url, offset=offset)
    raise ShardError(f"asked for a range, got {got} bytes: its server ignores ranges", shard=url, offset=start)

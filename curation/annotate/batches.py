"""Rows of one raw shard -> batches of decoded images, a bounded number of bytes and pixels at a time.

Where a batch ends depends on the shard alone, so outputs do not depend on workers. A batch may be shorter than
`batch_size` anywhere in a shard, where its images are large.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from headrace import files
from headrace.curation.annotate.annotator import AnnotationBatch
from headrace.curation.annotate.annotators.hashes import sha256_hex
from headrace.curation.annotate.decode import Decoded, decode
from headrace.curation.annotate.threads import map_ahead
from headrace.shards.errors import ShardError
from headrace.shards.group import GroupConfig, group_members
from headrace.shards.images.decode import MAX_PIXELS
from headrace.shards.images.header import read_header
from headrace.shards.members import MAX_IMAGE_BYTES
from headrace.shards.payloads import read_payloads
from headrace.shards.tar import TarMember, scan_tar

MAX_BATCH_BYTES = MAX_IMAGE_BYTES
MAX_BATCH_PIXELS = MAX_PIXELS


@dataclass(frozen=True, slots=True)
class FetchedRow:
    """A row whose fetch succeeded; `sha256` is null where the raw parquet has none."""

    key: str
    caption: str | None
    sha256: str | None
    stored_sha256: str | None = None
    """What the image in the tar must have; None if nobody recorded it."""


@dataclass(slots=True)
class _Pending:
    """The batch being filled."""

    rows: list[FetchedRow] = field(default_factory=list)
    data: list[bytes | None] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    pixels: int = 0

    def add(self, row: FetchedRow, data: bytes | None, decoded: Decoded) -> None:
        self.rows.append(row)
        self.data.append(data)
        self.decoded.append(decoded)
        self.pixels += _num_pixels(decoded)

    def take(self) -> AnnotationBatch:
        batch = _batch(self.rows, self.data, self.decoded)
        self.rows, self.data, self.decoded, self.pixels = [], [], [], 0
        return batch


def batches_without_images(rows: Sequence[FetchedRow], batch_size: int) -> Iterator[AnnotationBatch]:
    """Yield batches for annotators that need no pixels; the tar is not read."""
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield _batch(chosen, [None] * len(chosen), [Decoded()] * len(chosen))


def batches_with_images(
    rows: Sequence[FetchedRow], tar_url: str, batch_size: int, *, threads: int = 1
) -> Iterator[AnnotationBatch]:
    """Yield batches of decoded images in the order of `rows`, decoded ahead where `threads` is over 1.

    Raises ShardError if the tar is damaged.
    """
    pending = _Pending()
    read = ((item, _header_pixels(item.data)) for item in _read_rows(rows, tar_url, batch_size))
    for row, data, decoded in map_ahead(_decoded, read, threads=threads, budget=MAX_BATCH_PIXELS):
        if pending.rows and pending.pixels + _num_pixels(decoded) > MAX_BATCH_PIXELS:
            yield pending.take()
        pending.add(row, data, decoded)
        if len(pending.rows) == batch_size:
            yield pending.take()
    if pending.rows:
        yield pending.take()


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row with its stored bytes, or why there are none."""

    row: FetchedRow
    data: bytes | None
    missing: str = ""


def _read_rows(rows: Sequence[FetchedRow], tar_url: str, batch_size: int) -> Iterator[_ReadRow]:
    members = _images_by_key(tar_url, files.stamp_of(tar_url))
    for group in _readable(rows, members, batch_size):
        spans = [(member.offset, member.size) for _, member in group if member is not None and _fits(member)]
        payloads = iter(read_payloads(tar_url, spans))
        for row, member in group:
            data = next(payloads) if _fits(member) else None
            _check_stored(row, member, data, tar_url)
            yield _ReadRow(row, data, "" if data is not None else _not_read(member))


def _decoded(item: _ReadRow) -> tuple[FetchedRow, bytes | None, Decoded]:
    if item.data is None:
        return item.row, None, Decoded(error=item.missing)
    row = item.row if item.row.sha256 is not None else replace(item.row, sha256=sha256_hex(item.data))
    return row, item.data, decode(item.data)


def _header_pixels(data: bytes | None) -> int:
    """Return how many pixels decoding gives, or would be refused for."""
    try:
        header = read_header(data or b"")
    except ValueError:
        return 0
    return min(header.width * header.height, MAX_BATCH_PIXELS)


@lru_cache(maxsize=1)
def _images_by_key(tar_url: str, _stamp: tuple[int, str]) -> dict[str, TarMember]:
    """Return where each image is. Kept for the next part of the same shard: some 30,000 headers are read for it."""
    # Keys of raw shards hold no dot, so the rule need not be guessed.
    grouped = group_members(scan_tar(tar_url), GroupConfig(keys="first-dot"))
    for item in grouped.unused:
        if item.reason in ("duplicate", "ambiguous-image"):
            message = f"member {item.member.name!r} is a second image of one key"
            raise ShardError(message, shard=tar_url, offset=item.member.offset)
    return {sample.key: sample.image for sample in grouped.samples if sample.image is not None}


def _readable(
    rows: Sequence[FetchedRow], members: dict[str, TarMember], batch_size: int
) -> Iterator[list[tuple[FetchedRow, TarMember | None]]]:
    """Cut rows where `batch_size` or the bytes to read are reached."""
    group: list[tuple[FetchedRow, TarMember | None]] = []
    num_bytes = 0
    for row in rows:
        member = members.get(row.key)
        size = member.size if member is not None and _fits(member) else 0
        if group and (len(group) == batch_size or num_bytes + size > MAX_BATCH_BYTES):
            yield group
            group, num_bytes = [], 0
        group.append((row, member))
        num_bytes += size
    if group:
        yield group


def _check_stored(row: FetchedRow, member: TarMember | None, data: bytes | None, tar_url: str) -> None:
    """Raise ShardError if the tar does not hold the image that fetch put there."""
    if row.stored_sha256 is None or (data is None and member is not None):
        return
    if data is None or member is None:
        raise ShardError("the tar holds no image of this key", shard=tar_url, key=row.key)
    if sha256_hex(data) != row.stored_sha256:
        raise ShardError(
            f"sha256 is {sha256_hex(data)}, the table says {row.stored_sha256}",
            shard=tar_url,
            key=row.key,
            offset=member.offset,
        )


def _fits(member: TarMember | None) -> bool:
    return member is not None and member.size <= MAX_IMAGE_BYTES


def _not_read(member: TarMember | None) -> str:
    if member is None:
        return "missing: the tar holds no image of this key"
    return f"too-large: {member.size} bytes, over {MAX_IMAGE_BYTES}"


def _num_pixels(decoded: Decoded) -> int:
    return 0 if decoded.pixels is None else decoded.pixels.shape[0] * decoded.pixels.shape[1]


def _batch(rows: Sequence[FetchedRow], data: Sequence[bytes | None], decoded: Sequence[Decoded]) -> AnnotationBatch:
    return AnnotationBatch(
        keys=[row.key for row in rows],
        captions=[row.caption for row in rows],
        data=list(data),
        sha256=[row.sha256 for row in rows],
        headers=[item.header for item in decoded],
        images=[item.pixels for item in decoded],
        errors=[item.error for item in decoded],
    )

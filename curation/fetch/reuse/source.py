"""What an earlier job, or an output folder of img2dataset, has of every URL.

Its tables are read under the checks that every stage makes, and every image that a table tells of must stand in its
tar: a damaged source is named and refused before anything of it is used.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import files, urlpath
from headrace.curation.job import Job
from headrace.curation.raw.img2dataset import adopted, foreign_shards, recorded_foreign_table
from headrace.curation.raw.read import check_raw_tar, read_raw
from headrace.curation.raw.schema import ERROR_CLASSES
from headrace.curation.raw.spans import image_spans
from headrace.shards.commit import committed
from headrace.shards.errors import ShardError
from headrace.text import without_secrets

MAX_KEY_BYTES = 32
SUM_BYTES = 32
_SUM = re.compile(r"[0-9A-Fa-f]{64}")

PLACE = np.dtype(
    [
        ("source", "<u2"),
        ("shard", "<u4"),
        ("failure", "u1"),
        ("key", f"S{MAX_KEY_BYTES}"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("sha256", "u1", (SUM_BYTES,)),
        ("stored_sha256", "u1", (SUM_BYTES,)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("original_width", "<i4"),
        ("original_height", "<i4"),
    ]
)
"""What is known of one URL: number of the source and of its shard; 0, or 1 + the place of its class in ERROR_CLASSES;
where its image is. A sum of zeros is one that nobody knows, a width of -1 too."""

Places = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of `input.reuse`."""

    name: str
    """As the recipe names it, without secrets."""
    url: str
    is_job: bool
    is_ours: bool
    """The sums of the tables are of the bytes in the tars; img2dataset encodes them again and does not say so."""
    tars: str
    """Folder of the tars."""
    shards: tuple[str, ...]

    def table(self, shard: str) -> pa.Table:
        """Return the raw table of one shard. Raises ShardError or ValueError that names a damaged file."""
        return read_raw(Job(self.url), shard) if self.is_job else recorded_foreign_table(self.url, shard)

    def tar_url(self, shard: str) -> str:
        """Return where the images of one shard are."""
        return urlpath.join(self.tars, f"{shard}.tar")


def open_source(entry: str, *, own_job: str) -> Source:
    """Look at one entry of `input.reuse`. Raises ValueError if it has no finished raw shard."""
    name = without_secrets(entry)
    if entry.rstrip("/") == own_job.rstrip("/"):
        raise ValueError(f"input.reuse: {name} is this job itself; name earlier jobs only")
    job = Job(entry)
    if files.exists(urlpath.join(entry, "job.json")) or files.exists(urlpath.join(job.raw, "commits")):
        foreign = adopted(job)
        shards = tuple(committed(job.raw)) if foreign is None else foreign.shards
        if not shards:
            raise ValueError(f"input.reuse: the job {name} has no finished raw shard; leave it out")
        if shards and not files.exists(urlpath.join(job.raw, f"{shards[0]}.tar")) and foreign is None:
            raise ValueError(
                f"input.reuse: the images of the job {name} lie in no tars (fetch.output_format); leave it out"
            )
        tars = job.raw if foreign is None else foreign.url
        return Source(name, entry, is_job=True, is_ours=foreign is None, tars=tars, shards=shards)
    try:
        shards = tuple(foreign_shards(entry))
    except ValueError as error:
        told = str(error).removeprefix("input.raw: ")
        raise ValueError(f"input.reuse: no job (no job.json there), and no img2dataset output: {told}") from error
    return Source(name, entry, is_job=False, is_ours=False, tars=entry, shards=shards)


def read_source(source: Source, number: int, failures: Sequence[str]) -> Iterator[tuple[list[str], Places]]:
    """Yield the URLs of each shard with an image, and of failures of the classes named, with what is known of them."""
    for at, shard in enumerate(source.shards):
        table = source.table(shard)
        usable = pc.or_(
            pc.equal(table["status"], "success"), pc.is_in(table["error_class"], pa.array(failures, pa.string()))
        )
        table = table.filter(pc.and_(pc.fill_null(usable, False), pc.is_valid(table["url"])))
        if table.num_rows:
            places = _places(source, shard, table)
            places["source"], places["shard"] = number, at
            yield table["url"].to_pylist(), places


def _places(source: Source, shard: str, table: pa.Table) -> Places:
    if source.is_job:
        check_raw_tar(Job(source.url), shard)
    places = np.zeros(table.num_rows, PLACE)
    classes = [0 if name is None else 1 + ERROR_CLASSES.index(name) for name in table["error_class"].to_pylist()]
    places["failure"] = classes
    keys = [(key or "").encode() for key in table["key"].to_pylist()]
    if any(not 0 < len(key) <= MAX_KEY_BYTES for key in keys):
        raise ShardError(
            f"raw shard {shard}: a key that is null or has over {MAX_KEY_BYTES} bytes; leave it out of input.reuse",
            shard=source.name,
        )
    places["key"] = keys
    for name in ("width", "height", "original_width", "original_height"):
        places[name] = pc.fill_null(table[name], -1).to_numpy()
    places["sha256"] = _sums(table["sha256"].to_pylist())
    places["stored_sha256"] = _sums(table["stored_sha256"].to_pylist())
    _find_images(places, source.tar_url(shard), source.name)
    return places


def _sums(hexes: list[str | None]) -> NDArray[np.uint8]:
    """Return sums as bytes; what is no sha256 counts as unknown."""
    unknown = "0" * (2 * SUM_BYTES)
    text = "".join(value if value is not None and _SUM.fullmatch(value) else unknown for value in hexes)
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, SUM_BYTES)


def _find_images(places: Places, tar_url: str, name: str) -> None:
    advice = f"restore it, or leave {name} out of input.reuse"
    try:
        spans, damage = image_spans(tar_url)
    except FileNotFoundError as error:
        raise ShardError(f"missing, with images that its table tells of; {advice}", shard=tar_url) from error
    for row in np.flatnonzero(places["failure"] == 0).tolist():
        span = spans.get(places["key"][row].decode())
        if span is None:
            raise ShardError(
                f"no image of key {places['key'][row].decode()}, which its table tells of"
                f"{f' ({damage})' if damage else ''}; {advice}",
                shard=tar_url,
            )
        places["offset"][row], places["size"][row] = span

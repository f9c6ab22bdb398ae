"""Who was taken down: tombstones of a job, which fetch, select and build honour for ever.

`forgotten/requests/NNNNN.json` is one take-down: digests of URLs, uids and images, nothing in clear, and what had to be
rewritten. It counts from when it is written; `forgotten/commits/NNNNN.json` says that the rewriting is done. A killed
one is finished by running `headrace forget` again, and until then no other stage of the job starts.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.blocklist import DigestSet
from headrace.shards.commit import committed

FORGOTTEN = "forgotten"
"""Class of a row that was taken down, the step and the reason that the ledger has for it, and the folder in a job."""
TAKEN_DOWN = "taken down"
"""Problem of a row of the spilled list that was taken down before it was fetched."""
SCHEMA = 1


def forgotten_folder(job_url: str) -> str:
    """Return the folder of a job's take-downs."""
    return urlpath.join(job_url, FORGOTTEN)


def requests_in(job_url: str) -> list[str]:
    """Return the names of a job's take-downs, in their order."""
    names = files.list_names(urlpath.join(forgotten_folder(job_url), "requests"), ".json")
    return sorted(name.removesuffix(".json") for name in names)


def open_requests(job_url: str) -> list[str]:
    """Return the take-downs that were begun and are not finished."""
    names = requests_in(job_url)
    return sorted(set(names).difference(committed(forgotten_folder(job_url)))) if names else []


def check_finished(job_url: str) -> None:
    """Raise ValueError if a take-down was begun and is not finished."""
    begun = open_requests(job_url)
    if begun:
        raise ValueError(
            f"{job_url}: take-down {begun[0]} was begun and is not finished; run first: headrace forget {job_url}"
        )


def read_request(job_url: str, name: str) -> dict[str, Any]:
    """Return one take-down. Raises ValueError that names the file if it is damaged."""
    url = urlpath.join(forgotten_folder(job_url), "requests", f"{name}.json")
    try:
        data = json.loads(files.read_bytes(url))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this headrace reads {SCHEMA}")
        for kind in ("urls", "uids", "images"):
            if any(len(bytes.fromhex(text)) != 32 for text in data[kind]):
                raise ValueError(f"{kind} holds what is no sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{url}: damaged: {error}; restore it, as nothing may run without knowing it") from error
    return dict(data)


@dataclass(frozen=True, slots=True)
class Tombstones:
    """What all take-downs of a job name, finished or not."""

    urls: DigestSet
    uids: DigestSet
    images: DigestSet
    digest: str = ""
    """Of all of them; empty where there is none."""

    def __bool__(self) -> bool:
        return bool(self.digest)

    def has_row(self, url: str | None, uid: str | None) -> bool:
        """True if a row of this URL, or this uid, was taken down."""
        return bool(self) and (
            (url is not None and sha256_of_text(url) in self.urls)
            or (uid is not None and sha256_of_text(uid) in self.uids)
        )

    def has_image(self, hexdigest: str | None) -> bool:
        """True if the image of this sha256, as fetched, was taken down."""
        return bool(self) and hexdigest is not None and len(self.images) > 0 and bytes.fromhex(hexdigest) in self.images

    def hits(self, table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows of a table with `url`, `uid` and, if it has one, `sha256` were taken down."""
        columns = [table[name].to_pylist() for name in ("url", "uid")]
        hit = np.fromiter((self.has_row(url, uid) for url, uid in zip(*columns, strict=True)), bool, table.num_rows)
        if "sha256" in table.column_names and len(self.images):
            hit |= np.fromiter(map(self.has_image, table["sha256"].to_pylist()), bool, table.num_rows)
        return hit


NO_TOMBSTONES = Tombstones(DigestSet(b""), DigestSet(b""), DigestSet(b""))


def read_tombstones(job_url: str) -> Tombstones:
    """Return what all take-downs of a job name; unchanged ones are read once in a process."""
    return _read(job_url, tuple(requests_in(job_url)))


@lru_cache(maxsize=4)
def _read(job_url: str, names: tuple[str, ...]) -> Tombstones:
    requests = [read_request(job_url, name) for name in names]
    found = {kind: sorted({text for one in requests for text in one[kind]}) for kind in ("urls", "uids", "images")}
    urls, uids, images = (DigestSet(b"".join(map(bytes.fromhex, texts))) for texts in found.values())
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if any(found.values()) else ""
    return Tombstones(urls, uids, images, digest)


def tombstones_digest(job_url: str) -> str:
    """Return what changes with every take-down of a job; empty where there is none."""
    return read_tombstones(job_url).digest


def sha256_of_text(text: str) -> bytes:
    """Return the digest by which a URL or a uid is known once it is forgotten."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def nameless_uid(input_file: str | None, input_row: int | None, key: str) -> str:
    """Return the uid of a row that may not be named: it follows from its place in the list, or else from its key.

    Several tries of one row of a list stay one row, as they do by its own uid.
    """
    place = key if input_row is None else f"{input_file} {input_row}"
    return hashlib.md5(f"{FORGOTTEN} {place}".encode(), usedforsecurity=False).hexdigest()


def without_names(table: pa.Table, hit: Iterable[bool], *, kept: Iterable[str], of: pa.Table | None = None) -> pa.Table:
    """Return a table of raw rows in which those of `hit` are failures of class `forgotten`: only `kept` stays of them.

    `status` and `error_class` say so, and `uid` follows from the place in the list, which the table has, or the one
    that it was made `of`.
    """
    mask = pa.array(list(hit), pa.bool_())
    if not pc.any(mask, min_count=0).as_py():
        return table
    rows = table if of is None else of
    places = zip(*(rows[name].to_pylist() for name in ("input_file", "input_row", "key")), strict=True)
    made = {
        "uid": pa.array([nameless_uid(*place) for place in places], pa.string()),
        "status": pa.array(["failed_to_download"] * table.num_rows),
        "error_class": pa.array([FORGOTTEN] * table.num_rows),
    }
    columns = []
    for field in table.schema:
        column = table[field.name]
        if field.name not in kept:
            other = made[field.name].cast(field.type) if field.name in made else pa.scalar(None, field.type)
            column = _replaced(column, mask, other)
        columns.append(column)
    return pa.table(columns, schema=table.schema)


def _replaced(column: pa.ChunkedArray, mask: pa.Array, other: pa.Array | pa.Scalar) -> pa.ChunkedArray:
    try:
        return pc.if_else(mask, other, column)
    except pa.ArrowNotImplementedError:  # of some nested types
        values = column.to_pylist()
        return pa.chunked_array(
            [pa.array([None if hit else v for hit, v in zip(mask.to_pylist(), values, strict=True)], column.type)]
        )

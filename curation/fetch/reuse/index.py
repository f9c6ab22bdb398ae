"""URL -> where its image is, on disk: 10^8 URLs are 15 GB there and a few hundred MB in memory.

URLs are known by 128 bits of a hash. Their first byte is the bucket: each bucket is appended to, then sorted by itself,
and looked up through the page cache.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.curation.fetch.reuse.source import PLACE, Places

DIGEST_BYTES = 16
DIGEST = np.dtype(f"S{DIGEST_BYTES}")
NUM_BUCKETS = 256
FLUSH_ROWS = 1 << 20

Digests = NDArray[np.bytes_]


def digests_of(urls: Iterable[str]) -> Digests:
    """Return the digest of each URL, letter by letter as it stands."""
    found = b"".join(
        hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest() for url in urls
    )
    return np.frombuffer(found, DIGEST)


class UrlIndex:
    """The places of URLs, in a folder of this machine. Add everything, `sort`, then look up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[tuple[Digests, Places]] = []
        self._num_held = 0
        folder.mkdir(parents=True)

    def add(self, urls: list[str], places: Places) -> None:
        """Add the places of some URLs; of several places of one URL the first image counts."""
        self._held.append((digests_of(urls), places))
        self._num_held += len(urls)
        if self._num_held >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        digests = np.concatenate([part for part, _ in self._held])
        places = np.concatenate([part for _, part in self._held])
        self._held, self._num_held = [], 0
        buckets = _buckets(digests)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(NUM_BUCKETS + 1))
        for bucket in range(NUM_BUCKETS):
            part = order[bounds[bucket] : bounds[bucket + 1]]
            if len(part):
                for suffix, values in (("digests", digests), ("places", places)):
                    with self._path(bucket, suffix).open("ab") as file:
                        file.write(values[part].tobytes())

    def sort(self) -> int:
        """Sort the buckets; return the number of URLs."""
        self._flush()
        return sum(self._sort_bucket(bucket) for bucket in range(NUM_BUCKETS))

    def _sort_bucket(self, bucket: int) -> int:
        path = self._path(bucket, "digests")
        if not path.exists():
            return 0
        digests = np.fromfile(path, DIGEST)
        places = np.fromfile(self._path(bucket, "places"), PLACE)
        order = np.argsort(places["failure"] != 0, kind="stable")  # an image before a failure, else as they came
        order = order[np.argsort(digests[order], kind="stable")]
        found = digests[order]
        first = np.ones(len(found), np.bool_)
        first[1:] = found[1:] != found[:-1]
        found[first].tofile(path)
        places[order[first]].tofile(self._path(bucket, "places"))
        return int(first.sum())

    def find(self, digests: Digests) -> tuple[NDArray[np.int64], Places]:
        """Return which of `digests` are known, in order, and their places."""
        buckets = _buckets(digests)
        rows, places = [], []
        for bucket in np.unique(buckets).tolist():
            path = self._path(bucket, "digests")
            if not path.exists():
                continue
            known = np.memmap(path, DIGEST, "r")
            asked = np.flatnonzero(buckets == bucket)
            at = np.minimum(np.searchsorted(known, digests[asked]), len(known) - 1)
            hit = known[at] == digests[asked]
            rows.append(asked[hit])
            places.append(np.array(np.memmap(self._path(bucket, "places"), PLACE, "r")[at[hit]]))
        if not rows:
            return np.empty(0, np.int64), np.empty(0, PLACE)
        found = np.concatenate(rows)
        order = np.argsort(found)
        return found[order], np.concatenate(places)[order]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, bucket: int, suffix: str) -> Path:
        return self._folder / f"{bucket:03d}.{suffix}"


def _buckets(digests: Digests) -> NDArray[np.uint8]:
    return np.ascontiguousarray(digests).view(np.uint8).reshape(-1, DIGEST_BYTES)[:, 0]

"""One take-down as a file: who, by digests, and every place that must be rewritten: enough to finish a killed one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace import atomic, files, urlpath
from headrace.config import build_config, canonical_json
from headrace.curation.forgotten import SCHEMA, forgotten_folder, read_request, requests_in, sha256_of_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """A sample of a dataset that was taken down; the digests are null where the index had nothing."""

    row: int
    """Its row in the index of the shard, before."""
    key: str
    url: str | None
    uid: str | None
    image: str | None
    """sha256 of the image as fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldCaption:
    """A sample of a dataset that had the caption of a row that was taken down; digests as in `Gone`."""

    shard: str
    key: str
    url: str | None
    """Of the row, not of the sample; so the next."""
    uid: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPlan:
    """What of one dataset is rewritten."""

    facts: dict[str, Any] | None
    """dataset.json before, without the names of classes that no sample is left of; null: it was not finished."""
    gone: dict[str, tuple[Gone, ...]] = field(default_factory=dict)
    """By shard."""
    captions: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """By shard and key: samples that had the caption of a forgotten row, and (raw shard, key) of their own."""
    held: tuple[HeldCaption, ...] = ()
    """Which sample had whose caption, samples that went themselves among them. Not in requests of older versions."""
    failures: tuple[str, ...] = ()
    """Shards whose failures name forgotten rows."""

    @property
    def shards(self) -> list[str]:
        """The shards that are touched."""
        return sorted({*self.gone, *self.captions, *self.failures})


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One take-down."""

    schema: int = SCHEMA
    name: str
    """Its number in the order of the job's take-downs."""
    date: str
    """As the user gave it; empty: the order alone says when."""
    urls: tuple[str, ...]
    """sha256 of each URL, hex, sorted; so the next two."""
    uids: tuple[str, ...]
    images: tuple[str, ...]
    purge: bool
    """False: raw shards, annotations and the spilled list keep the rows."""
    rows: dict[str, tuple[str, ...]]
    """Raw shard -> keys."""
    listed: tuple[tuple[str, int], ...]
    """(input file, row) of each."""
    new_uids: dict[str, str]
    """sha256 of a uid -> the uid that stands for it from now on."""
    ledgers: dict[str, dict[str, Any]]
    """Folder of a ledger (empty: of schema 1) -> its summary from now on, without the sum of the table."""
    datasets: dict[str, DatasetPlan]

    @property
    def num_rows(self) -> int:
        """Raw rows that are forgotten."""
        return sum(map(len, self.rows.values()))

    @property
    def num_samples(self) -> int:
        """Samples that are forgotten, over all datasets."""
        return sum(len(gone) for plan in self.datasets.values() for gone in plan.gone.values())

    def write(self, job_url: str) -> None:
        """Write it: from here on it counts. Raises ValueError if another driver wrote one of that number."""
        url = urlpath.join(forgotten_folder(job_url), "requests", f"{self.name}.json")
        data = (canonical_json(asdict(self)) + "\n").encode()
        if not atomic.put_if_absent(url, data) and files.read_bytes(url) != data:
            raise ValueError(f"{url} was written by another process; run the command again")


def load_request(job_url: str, name: str) -> Request:
    """Read a take-down. Raises ValueError that names the file if it is damaged."""
    return build_config(Request, read_request(job_url, name))


def next_name(job_url: str) -> str:
    """Return the name of the take-down that comes next."""
    names = requests_in(job_url)
    return f"{int(names[-1]) + 1 if names else 0:05d}"


def hex_of(text: str | None) -> str | None:
    """Return the digest of a URL or a uid, as text."""
    return None if text is None else sha256_of_text(text).hex()


def digests_of(texts: Sequence[str] | Mapping[str, Any] | set[str]) -> tuple[str, ...]:
    """Return the digests of URLs or uids, sorted."""
    return tuple(sorted({hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts}))

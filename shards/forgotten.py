"""The versions that a dataset had before samples were taken down, as far as a run must know that has read them.

`DATASET/forgotten/NNNNN.parquet` is the manifest as it was, `NNNNN.json` says which samples went, by place, key and
digests, and which had the caption of a row that went. The samples are gone: with it, numbers of samples can be counted
as they were, and rows of an index stand where they stood, those of the forgotten without anything but their key.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.shards.dataset import FAST_COLUMNS, Dataset, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.manifest import MANIFEST_NAME, Shards, parse_manifest
from headrace.shards.undo import Undo

FOLDER = "forgotten"
CLASSES = "classes"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that is gone; digests are sha256 in hex, null where the index had nothing."""

    shard: str
    row: int
    key: str
    url: str | None
    uid: str | None
    image: str | None


@dataclass(frozen=True, slots=True)
class HeldCaption:
    """A sample that had the caption of a row that is gone, and the digests of that row."""

    shard: str
    key: str
    url: str | None
    uid: str | None


@dataclass(frozen=True, slots=True)
class Version:
    """A dataset before one take-down."""

    name: str
    date: str
    """As the user gave it, or empty."""
    shards: Shards
    samples: tuple[Sample, ...]
    captions: tuple[HeldCaption, ...] = ()
    """None in records of older versions."""


def keep_version(
    dataset_url: str,
    name: str,
    *,
    facts: Mapping[str, Any],
    date: str,
    samples: Sequence[Sample],
    captions: Sequence[HeldCaption] = (),
) -> None:
    """Write what must be known of a dataset before its shards are rewritten; `facts` are its dataset.json.

    What is there already stays: a rewriting that was killed had the manifest of before. Names of classes are left out,
    as what names only forgotten samples may stay nowhere.
    """
    folder = urlpath.join(dataset_url, FOLDER)
    manifest = urlpath.join(folder, f"{name}.parquet")
    if not files.exists(manifest):
        atomic.write_atomic(manifest, files.read_bytes(urlpath.join(dataset_url, MANIFEST_NAME)))
    data = {
        "schema": SCHEMA,
        "date": date,
        "facts": {name: value for name, value in facts.items() if name != CLASSES},
        "samples": [dataclasses.astuple(one) for one in samples],
        **({"captions": [dataclasses.astuple(one) for one in captions]} if captions else {}),
    }
    atomic.write_atomic(urlpath.join(folder, f"{name}.json"), (canonical_json(data) + "\n").encode())


def without_classes(dataset_url: str) -> None:
    """Take the names of classes out of the versions that an older headrace has kept with them."""
    folder = urlpath.join(dataset_url, FOLDER)
    for name in files.list_names(folder, ".json"):
        data = json.loads(files.read_bytes(urlpath.join(folder, name)))
        if data["facts"].pop(CLASSES, None) is not None:
            atomic.write_atomic(urlpath.join(folder, name), (canonical_json(data) + "\n").encode())


def read_versions(dataset_url: str) -> list[Version]:
    """Return the versions of a dataset, newest first. Raises ShardError that names a damaged one."""
    folder = urlpath.join(dataset_url, FOLDER)
    names = sorted((name.removesuffix(".json") for name in files.list_names(folder, ".json")), reverse=True)
    return [_read(folder, name) for name in names]


def _read(folder: str, name: str) -> Version:
    url = urlpath.join(folder, f"{name}.json")
    try:
        data = json.loads(files.read_bytes(url))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this headrace reads {SCHEMA}")
        facts, manifest = data["facts"], urlpath.join(folder, f"{name}.parquet")
        shards = parse_manifest(files.read_bytes(manifest), manifest, facts, facts["layout"])
        samples, captions = data["samples"], data.get("captions", ())
        return Version(
            *(name, str(data["date"]), shards),
            tuple(Sample(*one) for one in samples),
            tuple(HeldCaption(*one) for one in captions),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"not the record of a take-down: {error}", shard=url) from error


def as_of(dataset: Dataset, digest: str) -> Dataset | None:
    """Return a dataset as it was when its shards had this digest; None if it never had, as far as is kept."""
    if dataset.shards.digest() == digest:
        return dataset
    undone: dict[str, list[tuple[tuple[int, str], ...]]] = {}
    for version in read_versions(dataset.url):
        for shard in sorted({one.shard for one in version.samples}):
            rows = sorted((one.row, one.key) for one in version.samples if one.shard == shard)
            undone.setdefault(shard, []).append(tuple(rows))
        if version.shards.digest() == digest:
            now = {entry.name: entry.index_sha256 for entry in dataset.shards}
            for entry in version.shards:  # rewritten though no sample of them went: a caption was another's
                if now.get(entry.name) != entry.index_sha256:
                    undone.setdefault(entry.name, [])
            undo = Undo({shard: tuple(steps) for shard, steps in undone.items()}, dataset.shards)
            return dataclasses.replace(dataset, shards=version.shards, undo=undo)
    return None


def forgotten_samples(dataset: Dataset) -> Iterator[tuple[int, Sample, str]]:
    """Yield (number in the concatenated index, sample, take-down) of what is gone of a dataset as it was."""
    if dataset.undo is None:
        return
    starts = dict(zip((one.name for one in dataset.shards), _starts(dataset.shards), strict=True))
    for version in read_versions(dataset.url):
        for shard in sorted({one.shard for one in version.samples} & set(dataset.undo.rows)):
            number = dataset.shards.number_of(shard)
            if number is None:
                continue
            keys = dataset.index_part(number, FAST_COLUMNS)[0]["key"].to_pylist()
            places = {key: row for row, key in enumerate(keys)}
            for one in version.samples:
                if one.shard == shard and one.key in places:
                    yield starts[shard] + places[one.key], one, version.name


def forgotten_captions(dataset: Dataset) -> Iterator[tuple[int, HeldCaption]]:
    """Yield (number in the concatenated index, row) of samples that had the caption of a row that is gone.

    Of a dataset as it was: only of take-downs since then.
    """
    if dataset.undo is None:
        return
    starts = dict(zip((one.name for one in dataset.shards), _starts(dataset.shards), strict=True))
    for version in read_versions(dataset.url):
        for shard in sorted({one.shard for one in version.captions}):
            number = dataset.shards.number_of(shard)
            if number is None:
                continue
            keys = dataset.index_part(number, FAST_COLUMNS)[0]["key"].to_pylist()
            places = {key: row for row, key in enumerate(keys)}
            for one in version.captions:
                if one.shard == shard and one.key in places:
                    yield starts[shard] + places[one.key], one
        if version.shards.digest() == dataset.shards.digest():
            return


def _starts(shards: Shards) -> list[int]:
    starts, total = [], 0
    for count in shards.num_samples.tolist():
        starts.append(total)
        total += count
    return starts


def told_of(dataset_url: str, digest: str) -> str:
    """Say that a dataset had this digest before samples were taken down; empty if that is not known of it."""
    try:
        dataset = open_dataset(dataset_url)
        before = as_of(dataset, digest)
    except (ValueError, OSError):
        return ""
    if before is None or before is dataset:
        return ""
    count = before.num_samples - dataset.num_samples
    return f"{count} samples of {dataset_url} were taken down since (headrace forget)"


def sha256_of(text: str) -> str:
    """Return the digest by which a URL or a uid is known once it is forgotten."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

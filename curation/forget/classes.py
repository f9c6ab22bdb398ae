"""Names of classes that only forgotten samples had: they may name a person, so they go; the numbers of others stay.

A class without a sample keeps its place under a neutral name. Names that the recipe itself gives, as
`build.labels.classes`, are no row's, and stay.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.build.card.about import ABOUT_NAME
from headrace.curation.build.labels import CLASSES, LABELS, classes_digest
from headrace.curation.forgotten import forgotten_folder, open_requests, read_request, requests_in
from headrace.lease import Fence
from headrace.shards.commit import committed, read_commit, replace_commit
from headrace.shards.forgotten import without_classes
from headrace.shards.parquet import open_parquet

NUM_READERS = 8


def classes_left(dataset: str, facts: Mapping[str, Any], gone: Mapping[str, Collection[str]]) -> list[str]:
    """Return the classes of a finished dataset, as `facts` (its dataset.json) has them, without the samples of `gone`.

    `gone`: shard -> keys. Those that no sample is left of have a neutral name.
    """
    names: list[str] = list(facts.get("classes") or ())
    if not names or _recipe_names_them(dataset):
        return names

    def numbers(shard: str) -> set[int]:
        return _numbers(dataset, shard, gone.get(shard, ()))

    with ThreadPoolExecutor(NUM_READERS) as readers:
        left = set[int]().union(*readers.map(numbers, committed(dataset)))
    return [name if number in left else f"forgotten {number}" for number, name in enumerate(names)]


def _recipe_names_them(dataset: str) -> bool:
    try:
        about = json.loads(files.read_bytes(urlpath.join(dataset, ABOUT_NAME)))
        return bool(about["build"]["labels"]["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # with a damaged card rather a name too few than one that had to go


def _numbers(dataset: str, shard: str, gone: Collection[str]) -> set[int]:
    with open_parquet(urlpath.join(dataset, "shards", f"{shard}.parquet")) as file:
        columns = [name for name in ("label", LABELS.name) if name in file.schema.names]
        table = file.read(["key", *columns])
    left = table.filter(pc.invert(pc.is_in(table["key"], value_set=pa.array(sorted(gone), table["key"].type))))
    found = set[int]()
    for name in columns:
        values = left[name] if name == "label" else pc.list_flatten(left[name])
        found.update(value for value in pc.unique(values).to_pylist() if value is not None)
    return found


def record_classes(dataset: str, classes: Sequence[str], *, fence: Fence) -> None:
    """Say in the record of each shard that its labels count these classes: build goes on with no others."""
    digest = classes_digest(classes)
    for shard in committed(dataset):
        record = read_commit(dataset, shard)
        if record.get(CLASSES, digest) != digest:
            fence.check()
            replace_commit(dataset, shard, {**record, CLASSES: digest})


def drop_class_names(job_url: str, datasets: Collection[str], *, fence: Fence) -> None:
    """Take the names of classes out of what earlier take-downs have kept: a name that stayed then may go now."""
    for dataset in datasets:
        fence.check()
        without_classes(dataset)
    for name in sorted(set(requests_in(job_url)).difference(open_requests(job_url))):
        data = read_request(job_url, name)
        named = [plan["facts"] for plan in data["datasets"].values() if (plan["facts"] or {}).get("classes")]
        for facts in named:
            del facts["classes"]
        if named:
            url = urlpath.join(forgotten_folder(job_url), "requests", f"{name}.json")
            fence.check()
            atomic.write_atomic(url, (canonical_json(data) + "\n").encode())

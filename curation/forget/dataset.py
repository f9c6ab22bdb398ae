"""A dataset without the samples of a request: the touched shards are written again, all others keep their bytes.

Images are copied, not encoded: what is written is what build would have written without these rows. `dataset.json` goes
first and comes last, so nobody opens half of it. A shard's tar is read by its headers and not by its index, as a killed
run may have left the new tar beside the old index.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.curation.build.captions import CAPTION_OF, CAPTIONS, CAPTIONS_OF, all_captions, says_something
from headrace.curation.build.card.about import write_card_again
from headrace.curation.build.inputs import load_raw_shard
from headrace.curation.build.unit import READ_BYTES, in_json, plain_value
from headrace.curation.datasets import Explained, built_from, explain_ledger
from headrace.curation.forget.classes import record_classes
from headrace.curation.forget.damage import check_records, image_places, of_dataset, of_shard
from headrace.curation.forget.find import RowSet, index_url
from headrace.curation.forget.request import Request, hex_of
from headrace.curation.job import Job
from headrace.curation.ledger import rows_of_keys
from headrace.curation.select.load import caption_columns
from headrace.lease import Fence
from headrace.shards import forgotten
from headrace.shards.commit import (
    SHARD_FIELDS,
    committed,
    is_committed,
    read_commit,
    remove_commit,
    replace_commit,
)
from headrace.shards.manifest import SUMMARY_NAME
from headrace.shards.parquet import ParquetReader, parquet_bytes, read_table
from headrace.shards.payloads import read_payloads
from headrace.shards.write import Sample, write_manifest, write_shard_files

log = logging.getLogger(__name__)

_NOT_FACTS = ("schema", "manifest_sha256", "num_shards", "num_samples", "num_bytes")


def rewrite_dataset(job: Job, name: str, request: Request, *, fence: Fence) -> Iterator[str]:
    """Take the samples out of one dataset; yields the name of each shard that is done."""
    url, plan = job.dataset_named(name), request.datasets[name]
    if not committed(url) and not files.exists(url):
        log.warning("%s is not there any more: nothing of it is rewritten", url)
        return
    if plan.facts is not None:
        samples = [
            forgotten.Sample(shard, one.row, one.key, one.url, one.uid, one.image)
            for shard, gone in sorted(plan.gone.items())
            for one in gone
        ]
        captions = [forgotten.HeldCaption(one.shard, one.key, one.url, one.uid) for one in plan.held]
        fence.check()
        with of_dataset(url):
            forgotten.keep_version(
                url, request.name, facts=plan.facts, date=request.date, samples=samples, captions=captions
            )
        fence.check()
        atomic.remove(urlpath.join(url, SUMMARY_NAME))
    for shard in plan.shards:
        with of_shard(url, shard):
            _rewrite_shard(job, name, shard, request, fence=fence)
        yield shard
    if plan.facts is not None:
        check_records(url)
        explained = explain_ledger(job, str(plan.facts.get("ledger") or ""))
        summary = None if explained is None else explained.decision.summary
        classes = plan.facts.get("classes") or ()
        with of_dataset(url):
            if classes:
                record_classes(url, classes, fence=fence)
            fence.check()
            write_card_again(url, summary, classes)
            fence.check()
            finish_again(url, plan.facts)


def finish_again(url: str, facts: Mapping[str, Any]) -> None:
    """Write manifest and dataset.json from the commit records; what else dataset.json said stays."""
    records = [{**read_commit(url, shard, fields=SHARD_FIELDS), "name": shard} for shard in committed(url)]
    write_manifest(url, records, {name: value for name, value in facts.items() if name not in _NOT_FACTS})


def _rewrite_shard(job: Job, name: str, shard: str, request: Request, *, fence: Fence) -> None:
    url, plan = job.dataset_named(name), request.datasets[name]
    index, tar = index_url(url, shard), urlpath.join(url, "shards", f"{shard}.tar")
    if not is_committed(url, shard):  # a killed run found nothing left of it
        fence.check()
        atomic.remove(tar)
        atomic.remove(index)
        return
    failures = _without_failures(job, name, shard, request, fence=fence) if shard in plan.failures else {}
    gone = {one.key for one in plan.gone.get(shard, ())}
    record = read_commit(url, shard)
    if gone or shard in plan.captions:
        table = ParquetReader(files.read_bytes(index), index).read()
        left = table.filter(pc.invert(pc.is_in(table["key"], value_set=pa.array(sorted(gone), pa.string()))))
        if not left.num_rows:
            fence.check()
            remove_commit(url, shard)
            atomic.remove(tar)
            atomic.remove(index)
            return
        captions = _left_captions(job, url, plan.captions.get(shard, {}), left, set(request.uids))
        record |= write_shard_files(url, shard, _samples(tar, left, captions), left.schema, fence=fence)
    fence.check()
    replace_commit(url, shard, {**record, **failures})


def _samples(tar: str, table: pa.Table, changed: Mapping[str, Mapping[str, Any]]) -> Iterator[Sample]:
    """Yield the samples of an index in order, their images read from the tar wherever they lie in it."""
    places = image_places(tar, table["key"].to_pylist())
    types, lists = {field.name: field.type for field in table.schema}, in_json(merges=CAPTIONS_OF in table.schema.names)
    for rows in _batches(table, places):
        payloads = read_payloads(tar, [places[row["key"]][1:] for row in rows])
        for row, payload in zip(rows, payloads, strict=True):
            columns = {name: plain_value(value, types[name]) for name, value in row.items() if name != "key"}
            columns |= changed.get(row["key"], {})
            yield Sample(row["key"], payload, places[row["key"]][0], columns, in_json=lists)


def _batches(table: pa.Table, places: Mapping[str, tuple[str, int, int]]) -> Iterator[list[dict[str, Any]]]:
    sizes = np.cumsum([places[key][2] for key in table["key"].to_pylist()])
    start = 0
    while start < table.num_rows:
        held = 0 if start == 0 else int(sizes[start - 1])
        stop = max(start + 1, int(np.searchsorted(sizes, held + READ_BYTES, side="right")))
        yield table.slice(start, stop - start).to_pylist()
        start = stop


def _left_captions(
    job: Job, url: str, places: Mapping[str, tuple[str, ...]], table: pa.Table, forgotten: Set[str]
) -> dict[str, dict[str, Any]]:
    """Return the columns of captions of samples that had one of a forgotten row; `forgotten`: digests of the uids.

    The next one that they hold comes first, or else their own; nothing where that is not there any more.
    """
    mine = table.filter(pc.is_in(table["key"], value_set=pa.array(sorted(places), pa.string())))
    rows = {row["key"]: row for row in mine.to_pylist()}
    # Not those that a killed run has done: the raw shards that their own captions lie in may be half rewritten by now.
    gone = {key for key, row in rows.items() if hex_of(row.get(CAPTION_OF.name)) in forgotten}
    explained = explain_ledger(job, built_from(url) or "") if gone else None
    ledger = {} if explained is None else rows_of_keys(explained.decision.ledger, sorted(gone))
    result = {}
    for key, row in sorted(rows.items()):
        pairs = zip(row[CAPTIONS] or (), row[CAPTIONS_OF] or (), strict=True) if CAPTIONS_OF in row else ()
        held = [(text, uid) for text, uid in pairs if hex_of(uid) not in forgotten]
        new: dict[str, Any] = {}
        if key in gone:
            facts = _facts(job, explained, places[key])
            next_facts = ledger.get(key, {}).get("caption_facts")
            facts |= json.loads(next_facts) if next_facts else {}
            if held and key not in ledger:
                facts |= {"caption": held[0][0]}
            new = _first_caption(row, facts, table.schema) | {CAPTION_OF.name: ledger.get(key, {}).get(CAPTION_OF.name)}
        result[key] = new | (all_captions(row | new, held) if CAPTIONS_OF in row else {})
    return result


def _first_caption(row: Mapping[str, Any], facts: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return what follows from a caption in a sample's columns; `facts` has them."""
    names = [name for name in sorted(caption_columns()) if name in schema.names]
    new = {name: plain_value(facts.get(name), schema.field(name).type) for name in names}
    if "caption_from" in schema.names:  # a dataset that chooses among several columns
        new |= {"caption_listed": new["caption"]}
        if row["caption_from"] != "caption":
            new |= {"caption": row["caption"]}
        elif not says_something(new["caption"]):
            new |= {"caption": None, "caption_from": None}
    return new


def _facts(job: Job, explained: Explained | None, place: tuple[str, ...]) -> dict[str, Any]:
    if explained is None or not place:
        return {}
    folders = tuple(sorted(explained.decision.annotation_folders().items()))
    try:
        return load_raw_shard(job, place[0], folders).facts(place[1]) or {}
    except (ValueError, OSError) as error:
        log.warning("row %s has no caption any more: %s", place[1], error)
        return {}


def _without_failures(job: Job, name: str, shard: str, request: Request, *, fence: Fence) -> dict[str, Any]:
    """Take rows out of the failures of an output shard; return what its commit record says of them."""
    url = urlpath.join(job.build_failures(name), f"{shard}.parquet")
    table = read_table(url)
    rows = RowSet((raw, key) for raw, keys in request.rows.items() for key in keys)
    left = table.filter(pc.invert(rows.mask(table)))
    data = parquet_bytes(left)
    fence.check()
    atomic.write_atomic(url, data)
    return {"num_failed": left.num_rows, "failures_sha256": hashlib.sha256(data).hexdigest()}

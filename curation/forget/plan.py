"""What was found -> one request: every digest, and every place that must be rewritten."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import files, urlpath
from headrace.curation.datasets import built_from
from headrace.curation.forget.classes import classes_left
from headrace.curation.forget.find import (
    Found,
    RowSet,
    dataset_names,
    index_url,
    ledger_groups,
    takes_captions_of,
)
from headrace.curation.forget.request import DatasetPlan, Gone, HeldCaption, Request, digests_of, hex_of, next_name
from headrace.curation.forgotten import FORGOTTEN, nameless_uid
from headrace.curation.job import Job
from headrace.curation.ledger import CAPTION_COLUMNS, Ledger, caption_sources, dataset_key, list_ledgers
from headrace.shards.commit import committed
from headrace.shards.manifest import SUMMARY_NAME
from headrace.shards.parquet import open_parquet, read_table

Taken = dict[tuple[str, str], tuple[str, str]]
"""(output shard, key) of samples that have the caption of a forgotten row -> (raw shard, key) of their own row."""


def make_request(job: Job, found: Found, *, date: str, purge: bool, dataset: str | None) -> Request:
    """Return the take-down of what was found; with `dataset` no other dataset is rewritten. Nothing is written."""
    rows: dict[str, list[str]] = {}
    for shard, key in sorted(found.rows):
        rows.setdefault(shard, []).append(key)
    known = [facts for facts in found.rows.values() if facts.get("uid") is not None]
    names = {facts["uid"]: nameless_uid(facts["input_file"], facts["input_row"], facts["key"]) for facts in known}
    ledgers, taken = _ledgers(job, found)
    listed = {(row["input_file"], row["input_row"]) for row in found.rows.values() if row["input_row"] is not None}
    listed |= set(found.listed)
    datasets = {
        name: plan
        for name in dataset_names(job)
        if dataset in (None, name) and (plan := _dataset_plan(job, name, found, taken)).shards
    }
    return Request(
        name=next_name(job.url),
        date=date,
        urls=digests_of(found.texts.urls),
        uids=digests_of(found.texts.uids),
        images=tuple(sorted(found.texts.images)),
        purge=purge,
        rows={shard: tuple(keys) for shard, keys in rows.items()},
        listed=tuple(sorted(listed, key=str)),
        new_uids={str(hex_of(uid)): name for uid, name in sorted(names.items())},
        ledgers=ledgers,
        datasets=datasets,
    )


def _ledgers(job: Job, found: Found) -> tuple[dict[str, dict[str, Any]], dict[str, Taken]]:
    """Return the new summary of each ledger that is touched, and by digest what took the captions of others."""
    summaries, taken = {}, {}
    uids = pa.array(sorted(found.texts.uids), pa.string())
    rows = RowSet(found.rows)
    for ledger in list_ledgers(job):
        summary = json.loads(files.read_bytes(ledger.summary))
        kept, named, shards, captions = 0, 0, set[str](), Taken()
        for table in ledger_groups(
            ledger, ["raw_shard", "key", "uid", "kept", "out_shard", "out_index", "duplicate_of", *CAPTION_COLUMNS]
        ):
            mine = rows.mask(table)
            kept += pc.sum(pc.and_(mine, table["kept"])).as_py() or 0
            others = table.filter(pc.invert(mine))
            shards.update(pc.unique(others.filter(others["kept"])["out_shard"]).to_pylist())
            # Those of an earlier take-down have another uid by now: of them nothing is to be done.
            named += pc.sum(pc.and_(mine, pc.is_in(table["uid"], value_set=uids))).as_py() or 0
            named += pc.sum(pc.is_in(others["duplicate_of"], value_set=uids)).as_py() or 0
            for row in others.filter(takes_captions_of(others, uids)).to_pylist():
                named += 1
                if row["kept"]:
                    key = dataset_key(row["out_shard"], row["out_index"])
                    captions[row["out_shard"], key] = (row["raw_shard"], row["key"])
        if named:
            folder = "" if ledger.url == job.ledgers else ledger.name
            summaries[folder] = _summary(summary, kept, len(shards))
            taken[summary["digest"]] = captions
    return summaries, taken


def _summary(summary: dict[str, Any], kept: int, out_shards: int) -> dict[str, Any]:
    """Return the summary of a ledger after `kept` of its kept rows were forgotten: one more line of the funnel."""
    steps = list(summary["steps"])
    before = {"rows_in": summary["kept"], "dropped": {}}
    if steps and steps[-1]["name"] == FORGOTTEN:
        before = steps.pop()
    dropped = before["dropped"].get(FORGOTTEN, 0) + kept  # absent: only dropped rows were forgotten before
    line = {
        "name": FORGOTTEN,
        "step": FORGOTTEN,
        "settings": {},
        "rows_in": before["rows_in"],
        "dropped": {FORGOTTEN: dropped} if dropped else {},
        "rows_out": before["rows_in"] - dropped,
        "threshold": None,
        "details": {},
    }
    return {**summary, "kept": summary["kept"] - kept, "out_shards": out_shards, "steps": [*steps, line]}


def _dataset_plan(job: Job, name: str, found: Found, taken: dict[str, Taken]) -> DatasetPlan:
    url = job.dataset_named(name)
    gone = {
        shard: tuple(
            Gone(
                row=row,
                key=facts["key"],
                url=hex_of(facts["url"]),
                uid=hex_of(facts["uid"]),
                image=facts["sha256"],
            )
            for row, facts in hits
        )
        for shard, hits in found.samples.get(name, {}).items()
    }
    captions: dict[str, dict[str, tuple[str, ...]]] = {}
    own = taken.get(built_from(url) or "", {})
    urls = {facts["uid"]: facts["url"] for facts in found.known() if facts.get("uid") and facts.get("url")}
    held: list[HeldCaption] = []
    for shard, key, uids in captions_taken(url, found):
        held += [HeldCaption(shard=shard, key=key, url=hex_of(urls.get(uid)), uid=hex_of(uid)) for uid in uids]
        if key not in {one.key for one in gone.get(shard, ())}:
            captions.setdefault(shard, {})[key] = own.get((shard, key), ())
    facts = _facts(url)
    if facts and facts.get("classes"):
        facts["classes"] = classes_left(url, facts, {shard: [one.key for one in ones] for shard, ones in gone.items()})
    return DatasetPlan(
        facts=facts, gone=gone, captions=captions, held=tuple(held), failures=_failures(job, name, found)
    )


def captions_taken(dataset: str, found: Found) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (shard, key, uids of the others) of samples that have the caption of a forgotten row, perhaps their own."""
    uids = pa.array(sorted(found.texts.uids), pa.string())
    for shard in committed(dataset):
        with open_parquet(index_url(dataset, shard)) as file:
            names = [name for name in CAPTION_COLUMNS if name in file.schema.names]
            if not names:
                return
            table = file.read(["key", "uid", *names])
        for row in table.filter(takes_captions_of(table, uids)).to_pylist():
            yield shard, row["key"], sorted((caption_sources(row) & found.texts.uids) - {row["uid"]})


def _failures(job: Job, name: str, found: Found) -> tuple[str, ...]:
    folder, rows = job.build_failures(name), RowSet(found.rows)
    named = []
    for file in files.list_names(folder, ".parquet"):
        table = read_table(urlpath.join(folder, file))
        if pc.any(rows.mask(table), min_count=0).as_py():
            named.append(file.removesuffix(".parquet"))
    return tuple(named)


def _facts(dataset: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(files.read_bytes(urlpath.join(dataset, SUMMARY_NAME))))
    except FileNotFoundError:
        return None


def ledger_of(job: Job, folder: str) -> Ledger:
    """Return the ledger of a folder's name; of the empty one that of schema 1."""
    return Ledger(urlpath.join(job.ledgers, folder) if folder else job.ledgers)

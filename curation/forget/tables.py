"""Ledgers, raw shards, annotations and the spilled list without the rows of a request; each function may be run again.

A killed one has left some files rewritten and others not. So nothing here looks at sums of before: what a file holds
is read, the rows are taken out if they are still in, and what is recorded of the file follows from what is there.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.curation.forget.damage import of_ledger
from headrace.curation.forget.find import PLACE, RowSet, dataset_names, spilled_tables
from headrace.curation.forget.plan import ledger_of
from headrace.curation.forget.request import Request, hex_of
from headrace.curation.forgotten import FORGOTTEN, TAKEN_DOWN, without_names
from headrace.curation.job import Job
from headrace.curation.ledger import MERGED_FIELDS, Ledger
from headrace.curation.raw.img2dataset import adopted
from headrace.curation.raw.record import BEGUN
from headrace.curation.select.database import remove_leftovers
from headrace.lease import Fence
from headrace.shards.commit import committed, is_committed, read_commit, replace_commit
from headrace.shards.parquet import ParquetReader, open_parquet, parquet_bytes, write_groups
from headrace.shards.payloads import read_payloads
from headrace.shards.tar import ShardWriter, scan_tar

log = logging.getLogger(__name__)

KEPT_OF_RAW = ("key", *PLACE)
"""Columns that a forgotten raw row keeps: its place, which names nobody."""
MERGED_NAMES = tuple(field.name for field in MERGED_FIELDS)
_COUNTS = ("count", "successes", "failed_to_download", "status_dict")


def revise_ledger(job: Job, folder: str, request: Request, *, fence: Fence) -> None:
    """Take the rows out of a ledger, which keeps its name: no other row's verdict or place changes."""
    ledger = ledger_of(job, folder)
    fence.check()
    atomic.remove(ledger.summary)
    rows = RowSet((shard, key) for shard, keys in request.rows.items() for key in keys)
    if not files.exists(ledger.table):
        log.warning("%s is not there any more: nothing of it is revised", ledger.table)
        return
    with of_ledger(ledger):
        _rewrite_groups(ledger.table, lambda table: _revised(table, rows, request.new_uids), fence=fence)
    summary = {**request.ledgers[folder], "ledger_sha256": files.sha256_of(ledger.table)}
    fence.check()
    atomic.write_atomic(ledger.summary, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())


def _revised(table: pa.Table, rows: RowSet, new_uids: dict[str, str]) -> pa.Table:
    mine = rows.mask(table)
    kept = pc.and_(mine, table["kept"])
    columns = {name: table[name] for name in table.column_names}
    uids = columns["uid"].to_pylist()
    for place in pc.indices_nonzero(mine).to_pylist():
        uids[place] = new_uids.get(str(hex_of(uids[place])), uids[place])
    columns["uid"] = pa.array(uids, pa.string())
    columns["url"] = pc.if_else(mine, None, columns["url"])
    for name in ("out_shard", "out_index", "value", "threshold", "duplicate_of"):
        columns[name] = pc.if_else(kept, pa.scalar(None, table[name].type), columns[name])
    for name in ("step", "reason"):
        columns[name] = pc.if_else(kept, FORGOTTEN, columns[name])
    columns["kept"] = pc.and_not(columns["kept"], kept)
    columns["duplicate_of"] = _renamed(columns["duplicate_of"], new_uids)
    if "caption_of" in columns:
        taken = _renamed(columns["caption_of"], dict.fromkeys(new_uids, ""))
        gone = pc.or_(mine, pc.fill_null(pc.equal(taken, ""), False))
        for name in ("caption_of", "caption_facts"):
            columns[name] = pc.if_else(gone, pa.scalar(None, pa.string()), columns[name])
    if "captions_of" in columns:
        columns |= _without_captions(columns, mine.to_pylist(), set(new_uids))
    return pa.table([columns[field.name] for field in table.schema], schema=table.schema)


def _without_captions(columns: dict[str, Any], mine: list[bool], forgotten: set[str]) -> dict[str, pa.Array]:
    """Return the columns of whose captions rows hold without those of forgotten rows: the next one comes first."""
    rows = {name: columns[name].to_pylist() for name in ("caption_of", "caption_facts", *MERGED_NAMES)}
    uids = columns["uid"].to_pylist()
    for place, held in enumerate(rows["captions_of"]):
        if held is None:
            continue
        pairs = zip(held, rows["captions_facts"][place], strict=True)
        left = [(uid, facts) for uid, facts in pairs if not mine[place] and hex_of(uid) not in forgotten]
        if len(left) == len(held):
            continue
        first = left[0] if left and left[0][0] != uids[place] else (None, None)
        rows["caption_of"][place], rows["caption_facts"][place] = first
        for at, name in enumerate(MERGED_NAMES):
            rows[name][place] = [one[at] for one in left] if len(left) > 1 else None
    return {name: pa.array(values, columns[name].type) for name, values in rows.items()}


def _renamed(column: pa.ChunkedArray, new_uids: dict[str, str]) -> pa.ChunkedArray:
    """Return a column of uids with the forgotten ones replaced."""
    new = {uid: new_uids.get(str(hex_of(uid)), uid) for uid in column.unique().to_pylist() if uid is not None}
    if all(uid == name for uid, name in new.items()):
        return column
    return pa.chunked_array([pa.array([new.get(uid) for uid in column.to_pylist()], pa.string())])


def _rewrite_groups(url: str, change: Callable[[pa.Table], pa.Table], *, fence: Fence) -> None:
    """Rewrite a table row group by row group, cut as it was."""
    with open_parquet(url) as file, atomic.atomic_file(url) as path:
        groups = (change(file.read(groups=[group])) for group in range(len(file.group_rows)))
        write_groups(path, file.schema, groups)
        fence.check()


def purge_raw(job: Job, shard: str, keys: tuple[str, ...], *, fence: Fence) -> None:
    """Take images, captions and URLs of rows out of a raw shard; the rows stay as failures of class `forgotten`."""
    url = urlpath.join(job.raw, f"{shard}.parquet")
    tar = _images_without(job.raw, shard, keys, fence=fence)
    if not files.exists(url):  # it was removed once the dataset was built
        return
    found, record = files.read_bytes(url), read_commit(job.raw, shard)
    before = record.get(BEGUN) or record.get("table", {}).get("sha256")
    if before is None:  # a job of before there were sums: this one is needed once the table is another
        before = hashlib.sha256(found).hexdigest()
        fence.check()
        replace_commit(job.raw, shard, {**record, BEGUN: before})
    table = ParquetReader(found, url).read()
    hit = pc.is_in(table["key"], value_set=pa.array(keys, table["key"].type))
    data = parquet_bytes(without_names(table, hit.to_pylist(), kept=KEPT_OF_RAW))
    fence.check()
    atomic.write_atomic(url, data)
    counts = _counts(ParquetReader(data, url).read(["status", "error_class"]), record)
    stats_url = urlpath.join(job.raw, f"{shard}_stats.json")
    if files.exists(stats_url):
        stats = json.loads(files.read_bytes(stats_url))
        text = json.dumps(stats | {name: counts[name] for name in _COUNTS if name in stats}, sort_keys=True, indent=4)
        fence.check()
        atomic.write_atomic(stats_url, (text + "\n").encode())
    digest = hashlib.sha256(data).hexdigest()
    sums = {"table": {"bytes": len(data), "sha256": digest}, "tar": tar or record.get("tar")}
    sums = sums if "schema" in record else {}
    known = {name: counts[name] for name in _COUNTS if name in record}
    fence.check()
    replace_commit(job.raw, shard, {**record, **known, **sums, BEGUN: before})


def _counts(table: pa.Table, record: dict[str, Any]) -> dict[str, Any]:
    status = Counter(table["error_class"].to_pylist())
    successes = status.pop(None, 0)
    failed = {str(name): count for name, count in status.items()}
    not_resized = int(record.get("failed_to_resize") or 0)
    return {
        "count": table.num_rows,
        "successes": successes,
        "failed_to_download": table.num_rows - successes - not_resized,
        "status_dict": dict(sorted({**({"success": successes} if successes else {}), **failed}.items())),
    }


def _images_without(folder: str, shard: str, keys: tuple[str, ...], *, fence: Fence) -> dict[str, Any] | None:
    """Take images out of a raw shard, in whichever form fetch has written them; return size and sum of a tar."""
    of_keys = tuple(f"{key}." for key in keys)
    for name in files.list_names(urlpath.join(folder, shard)):
        if name.startswith(of_keys):
            fence.check()
            atomic.remove(urlpath.join(folder, shard, name))
    images = urlpath.join(folder, "images", f"{shard}.parquet")
    if files.exists(images):
        gone = pa.array(keys, pa.string())
        _rewrite_groups(
            images, lambda table: table.filter(pc.invert(pc.is_in(table["key"], value_set=gone))), fence=fence
        )
    tar = urlpath.join(folder, f"{shard}.tar")
    return _tar_without(tar, set(keys), fence=fence) if files.exists(tar) else None


def _tar_without(url: str, keys: set[str], *, fence: Fence) -> dict[str, Any]:
    """Rewrite a raw tar without the members of keys; return its size and sum."""
    samples = _samples(url, keys)
    with atomic.atomic_file(url) as path:
        with ShardWriter(path) as writer:
            for key, spans in samples:
                payloads = read_payloads(url, list(spans.values()))
                writer.write(key, dict(zip(spans, payloads, strict=True)))
        fence.check()
    return {"bytes": writer.num_bytes, "sha256": writer.sha256}


def _samples(url: str, keys: set[str]) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """Return the samples of a tar but `keys`, in order: key, and the place of each member by extension."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for member in scan_tar(url):
        key, _, extension = member.name.partition(".")
        if key not in keys:
            found.setdefault(key, {})[extension] = (member.offset, member.size)
    return list(found.items())


def purge_annotations(job: Job, shard: str, keys: tuple[str, ...], *, fence: Fence) -> None:
    """Take rows out of every annotator's table of a raw shard."""
    parent = urlpath.join(job.url, "annotations")
    for name in files.list_names(parent):
        folder = urlpath.join(parent, name)
        if not is_committed(folder, shard):
            continue
        url, record = urlpath.join(folder, f"{shard}.parquet"), read_commit(folder, shard)
        if not files.exists(url):
            continue
        table = ParquetReader(files.read_bytes(url), url).read()
        hit = pc.is_in(table["key"], value_set=pa.array(keys, table["key"].type))
        left = table.filter(pc.invert(hit))
        data = parquet_bytes(left)
        fence.check()
        atomic.write_atomic(url, data)
        sums = {"bytes": len(data), "rows": left.num_rows, "sha256": hashlib.sha256(data).hexdigest()}
        fence.check()
        replace_commit(folder, shard, {**record, **sums, BEGUN: record.get(BEGUN, record["sha256"])})


def purge_lists(job: Job, request: Request, *, fence: Fence) -> None:
    """Take the rows out of the list as fetch has spilled it, and out of its retries."""
    places = set(request.listed)
    for url in spilled_tables(job):
        with open_parquet(url) as file:
            groups = range(len(file.group_rows))
            holds = any(any(_hits(file.read(list(PLACE), groups=[group]), places)) for group in groups)
        if holds:
            _rewrite_groups(url, lambda table: _unlisted(table, places), fence=fence)


def _hits(table: pa.Table, places: set[tuple[str, int]]) -> list[bool]:
    pairs = zip(table["input_file"].to_pylist(), table["input_row"].to_pylist(), strict=True)
    return [pair in places for pair in pairs]


def _unlisted(table: pa.Table, places: set[tuple[str, int]]) -> pa.Table:
    mask = pa.array(_hits(table, places), pa.bool_())
    columns = []
    for field in table.schema:
        column = table[field.name]
        if field.name not in ("place", *PLACE):
            other = TAKEN_DOWN if field.name == "problem" else None
            column = pc.if_else(mask, pa.scalar(other, field.type), column)
        columns.append(column)
    return pa.table(columns, schema=table.schema)


def remove_unfinished(job: Job, *, raw: bool, fence: Fence) -> None:
    """Remove what killed stages left and never committed: it may hold the rows, and the next run makes it again.

    A dataset without a commit may be somebody else's, and raw shards that a job adopted are: they stay.
    """
    for name in dataset_names(job):
        dataset = job.dataset_named(name)
        _remove_uncommitted(dataset, urlpath.join(dataset, "shards"), fence=fence)
        _remove_uncommitted(dataset, job.build_failures(name), fence=fence)
    if raw and adopted(job) is None:
        for folder in (job.raw, urlpath.join(job.raw, "images")):
            _remove_uncommitted(job.raw, folder, fence=fence)
        for name in sorted(set(files.list_names(job.raw)).difference(committed(job.raw))):
            if name.isdecimal():  # a folder of images
                fence.check()
                atomic.remove_all(urlpath.join(job.raw, name))
    if raw:
        for name in files.list_names(urlpath.join(job.url, "annotations")):
            folder = urlpath.join(job.url, "annotations", name)
            _remove_uncommitted(folder, folder, fence=fence)
    folders = (urlpath.join(job.ledgers, name) for name in files.list_names(job.ledgers) if "." not in name)
    for ledger in map(Ledger, (job.ledgers, *folders)):
        if not files.exists(ledger.summary):
            fence.check()
            atomic.remove(ledger.table)
    fence.check()
    remove_leftovers(job.ledgers)
    fence.check()
    atomic.remove_all(job.spool)  # none of before a take-down goes on


def _remove_uncommitted(unit_folder: str, folder: str, *, fence: Fence) -> None:
    done = set(committed(unit_folder))
    for name in files.list_names(folder):
        unit, _, suffix = name.partition(".")
        if suffix in ("tar", "parquet") and unit not in done:
            fence.check()
            atomic.remove(urlpath.join(folder, name))


def own_raw_shards(job: Job, request: Request) -> list[str]:
    """Return the raw shards of a request that the job has made itself."""
    own = set(committed(job.raw))
    return [shard for shard in sorted(request.rows) if shard in own]

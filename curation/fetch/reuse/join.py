"""Which rows of a segment take an image that is there already: looked up once, recorded beside the segment's runs.

`FOLDER-reuse/00000.parquet` holds the hits of run 00000, sorted by place; `reuse.json`, written last, says of which
sources. A run of the job that finds the record does not look anything up again, so the same rows are taken whatever
becomes of the sources' tables meanwhile.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.fetch.lists.spill import SpilledList, read_range
from headrace.curation.fetch.reuse.index import UrlIndex, digests_of
from headrace.curation.fetch.reuse.source import Places, Source, open_source, read_source
from headrace.curation.raw.record import read_json
from headrace.curation.raw.schema import ERROR_CLASSES, REUSE_COLUMN
from headrace.shards.parquet import open_parquet, write_parquet

log = logging.getLogger(__name__)

RECORD = "reuse.json"
GROUP_ROWS = 4096

HIT_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),
        ("source", pa.int32()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("stored_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("error_class", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Reuse:
    """The hits of one spilled list, and where their images are."""

    folder: str
    names: tuple[str, ...]
    tars: tuple[str, ...]
    """For each source the folder of its tars."""
    ours: tuple[bool, ...]
    """Whether the sums of its tables are of the bytes in the tars."""


def join_reuse(
    rows: Sequence[SpilledList], reuse: tuple[str, ...], failures: tuple[str, ...], *, own_job: str
) -> list[Reuse | None]:
    """Look up the rows of each list that was not yet; return the hits of each, None where nothing is reused."""
    if not (reuse and rows):
        return [None for _ in rows]
    sources = [open_source(entry, own_job=own_job) for entry in reuse]
    told = {"failures": sorted(failures), "reuse": [source.name for source in sources]}
    folders = [f"{item.folder}-reuse" for item in rows]
    todo = [at for at, folder in enumerate(folders) if not _is_joined(folder, told)]
    if todo:
        _look_up([rows[at] for at in todo], [folders[at] for at in todo], sources, told)
    names, tars, ours = zip(*((source.name, source.tars, source.is_ours) for source in sources), strict=True)
    return [Reuse(folder, names, tars, ours) for folder in folders]


def _is_joined(folder: str, told: dict[str, Any]) -> bool:
    url = urlpath.join(folder, RECORD)
    if not files.exists(url):
        return False
    record = read_json(url)
    return all(record.get(name) == value for name, value in told.items())


def _look_up(rows: Sequence[SpilledList], folders: Sequence[str], sources: list[Source], told: dict[str, Any]) -> None:
    place = _room(folders[0])
    index = UrlIndex(place / "index")
    try:
        for number, source in enumerate(sources):
            for urls, places in read_source(source, number, told["failures"]):
                index.add(urls, places)
            log.info("%s: %d raw shards read for reuse", source.name, len(source.shards))
        known = index.sort()
        for item, folder in zip(rows, folders, strict=True):
            atomic.remove(urlpath.join(folder, RECORD))
            hits = sum(_join_run(item, number, folder, index, sources) for number in range(item.num_runs))
            log.info("%d of %d rows take what %d URLs have already", hits, item.num_rows, known)
            record = {**told, "hits": hits}
            atomic.write_atomic(urlpath.join(folder, RECORD), (canonical_json(record) + "\n").encode())
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _room(folder: str) -> Path:
    """Return an empty folder on this machine for the index: beside the hits, or where temporary files go."""
    if not urlpath.is_local(folder):
        return Path(tempfile.mkdtemp(prefix="headrace-reuse-"))
    path = urlpath.local_path(folder).with_suffix(".tmp")
    shutil.rmtree(path, ignore_errors=True)  # of a killed run
    path.mkdir(parents=True)
    return path


def _join_run(rows: SpilledList, number: int, folder: str, index: UrlIndex, sources: list[Source]) -> int:
    with open_parquet(rows.run_url(number)) as run:
        table = run.read(["place", "url", "problem"])
    table = table.filter(pc.and_(pc.is_null(table["problem"]), pc.is_valid(table["url"])))
    found, places = index.find(digests_of(table["url"].to_pylist()))
    hits = _hits(table["place"].take(pa.array(found)), places, sources)
    write_parquet(urlpath.join(folder, urlpath.basename(rows.run_url(number))), hits, group_rows=GROUP_ROWS)
    return int(hits.num_rows)


def _hits(place: Any, places: Places, sources: list[Source]) -> pa.Table:
    shards = [sources[source].shards[shard] for source, shard in zip(places["source"], places["shard"], strict=True)]
    columns = {
        "place": place,
        "source": places["source"].astype(np.int32),
        "shard": shards,
        "key": [key.decode() for key in places["key"].tolist()],
        "offset": places["offset"].astype(np.int64),
        "size": places["size"].astype(np.int64),
        "sha256": _hexes(places["sha256"]),
        "stored_sha256": _hexes(places["stored_sha256"]),
        **{name: places[name] for name in ("width", "height", "original_width", "original_height")},
        "error_class": [ERROR_CLASSES[code - 1] if code else None for code in places["failure"].tolist()],
    }
    return pa.table([columns[field.name] for field in HIT_SCHEMA], schema=HIT_SCHEMA)


def _hexes(sums: Any) -> list[str | None]:
    return [bytes(value).hex() if value.any() else None for value in sums]


def add_hits(table: pa.Table, rows: SpilledList, reuse: Reuse | None) -> pa.Table:
    """Return rows sorted by place with a column `reuse`: what `take_image` needs, as text; null without a hit."""
    if reuse is None or not table.num_rows:
        return table
    texts: list[str | None] = [None] * table.num_rows
    first = table.column("place")[0].as_py()
    for number in range(rows.num_runs):
        with open_parquet(urlpath.join(reuse.folder, urlpath.basename(rows.run_url(number)))) as run:
            for hit in read_range(run, first, first + table.num_rows).to_pylist():
                row = hit.pop("place") - first
                texts[row] = _text(hit, reuse)
    return table.append_column(REUSE_COLUMN, pa.array(texts, pa.string()))


def _text(hit: dict[str, Any], reuse: Reuse) -> str:
    source, shard, key = hit.pop("source"), hit.pop("shard"), hit.pop("key")
    place = {"tar": urlpath.join(reuse.tars[source], f"{shard}.tar"), "ours": reuse.ours[source]}
    return canonical_json({**hit, **place, "origin": f"{reuse.names[source]}#{key}"})

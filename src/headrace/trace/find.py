"""Which samples a URL, a uid or a key names: a walk over the indexes of a run's sources.

The order has an inverse, a URL has none: each index is read once, checked against the manifest, and compared as a
whole column. A key that names its shard, as those of curated datasets do, is looked up there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.ledger import CAPTION_COLUMNS, caption_sources, place_of_key
from headrace.pipeline.catalog import OpenedSource
from headrace.shards.columns import plain_numbers
from headrace.shards.dataset import FAST_COLUMNS
from headrace.shards.forgotten import forgotten_captions, forgotten_samples, sha256_of
from headrace.shards.manifest import FOREIGN_LAYOUT
from headrace.shards.parquet import open_parquet
from headrace.shards.progress import OnProgress, Progress, no_progress
from headrace.trace.lookup import Opened

KINDS = ("url", "uid", "key")
NO_ROWS: Mapping[str, str] = MappingProxyType({})
AT_ONCE = 64
"""Indexes between two reports of progress."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is looked for: texts that a column must equal, each with the name of the column."""

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of KINDS -> distinct texts."""

    @property
    def size(self) -> int:
        """Texts in all."""
        return sum(map(len, self.texts.values()))


@dataclass(frozen=True, slots=True)
class Match:
    """A sample that was asked for."""

    kind: str
    text: str
    source: int
    sample: int
    """Number in the source's concatenated index."""


def find_samples(
    opened: Opened, asked: Asked, *, threads: int = 8, on_progress: OnProgress = no_progress
) -> Iterator[Match]:
    """Yield every sample of every source that has one of the texts, in the order of the indexes.

    A uid names the samples that hold the caption of its row, too; so does a URL, where the ledger is there, or the row
    was taken down. What was taken down since the run read it is found by the digest that is kept of it.

    Raises ValueError if a source's index does not hold the column (`headrace index --fast`).
    """
    jobs: list[tuple[int, int, Asked, Mapping[str, str]]] = []
    for number, source in enumerate(opened.sources):
        named, rest = _by_place(opened, number, asked)
        yield from named
        yield from _taken_down(source, number, asked)
        if rest.size:
            source.dataset.require_columns(rest.texts)
            rows = _rows_of(source, rest.texts.get("url", ()))
            jobs += [(number, shard, rest, rows) for shard in range(len(source.dataset.shards))]
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(jobs)
        while part := list(itertools.islice(waiting, AT_ONCE)):
            for matches in pool.map(lambda job: _in_shard(opened, *job), part):
                yield from matches
            done += len(part)
            on_progress(Progress(done=done, total=len(jobs), noun="indexes"))


def taken_down(opened: Opened) -> Iterator[tuple[Match, str]]:
    """Yield every sample that was taken down since the run read it, by its key, and the name of the take-down."""
    for number, source in enumerate(opened.sources):
        for sample, gone, name in forgotten_samples(source.dataset):
            yield Match("key", gone.key, number, sample), name


def _taken_down(source: OpenedSource, number: int, asked: Asked) -> Iterator[Match]:
    digests = {kind: {sha256_of(text): text for text in asked.texts.get(kind, ())} for kind in ("url", "uid")}
    gone = [(sample, one.url, one.uid) for sample, one, _ in forgotten_samples(source.dataset)]
    gone += [(sample, row.url, row.uid) for sample, row in forgotten_captions(source.dataset)]
    for sample, url, uid in dict.fromkeys(gone):
        for kind, digest in (("url", url), ("uid", uid)):
            if digest in digests[kind]:
                yield Match(kind, digests[kind][digest], number, sample)


def _rows_of(source: OpenedSource, urls: Sequence[str]) -> dict[str, str]:
    """Return uid -> URL of the rows of these URLs in a source's ledger; empty where no sample has another's caption."""
    from headrace.trace.origin import origin_of  # imports what judges rows

    explained = origin_of(source.dataset).explained if urls else None
    if explained is None or not explained.decision.summary.moves_captions:
        return {}
    found: dict[str, str] = {}
    wanted = pa.array(urls, pa.string())
    with open_parquet(explained.decision.ledger.table) as file:
        for group in range(len(file.group_rows)):
            table = file.read(["uid", "url"], groups=[group])
            rows = table.filter(pc.is_in(table["url"], value_set=wanted))
            found.update(zip(rows["uid"].to_pylist(), rows["url"].to_pylist(), strict=True))
    return found


def _in_shard(
    opened: Opened, source: int, shard: int, asked: Asked, rows_of_urls: Mapping[str, str] = NO_ROWS
) -> list[Match]:
    table = opened.column(source, shard, [kind for kind in asked.texts if kind != "key"])
    start = int(opened.sources[source].starts[shard])
    matches = []
    for kind, texts in asked.texts.items():
        column = table[kind]
        rows = np.flatnonzero(plain_numbers(pc.is_in(column, pa.array(texts, pa.string())).cast(pa.uint8())))
        found = column.take(pa.array(rows)).to_pylist()
        matches += [Match(kind, text, source, start + int(row)) for row, text in zip(rows.tolist(), found, strict=True)]
    if "uid" in asked.texts:
        own = {(match.text, match.sample) for match in matches if match.kind == "uid"}
        taken = _captions_of(opened, source, shard, asked.texts["uid"])
        matches += [Match("uid", uid, source, start + row) for row, uid in taken if (uid, start + row) not in own]
    if rows_of_urls:
        own = {(match.text, match.sample) for match in matches if match.kind == "url"}
        taken = _captions_of(opened, source, shard, list(rows_of_urls))
        held = sorted({(start + row, rows_of_urls[uid]) for row, uid in taken})
        matches += [Match("url", url, source, sample) for sample, url in held if (url, sample) not in own]
    return matches


def _captions_of(opened: Opened, source: int, shard: int, uids: Sequence[str]) -> list[tuple[int, str]]:
    """Return the samples of a shard that hold the caption of a row with one of `uids`: (row, uid)."""
    table, _ = opened.sources[source].dataset.index_part(shard, (*FAST_COLUMNS, *CAPTION_COLUMNS))
    wanted, found = set(uids), set[tuple[int, str]]()
    names = [name for name in CAPTION_COLUMNS if name in table.column_names]
    for place, row in enumerate(table.select(names).to_pylist() if names else ()):
        found.update((place, uid) for uid in caption_sources(row) & wanted)
    return sorted(found)


def _by_place(opened: Opened, source: int, asked: Asked) -> tuple[list[Match], Asked]:
    """Return the keys that name their own shard in a source and are there, and what is left to look for."""
    found: list[Match] = []
    by_shard: dict[int, list[str]] = {}
    for key in asked.texts.get("key", ()):
        shard = _shard_of(opened.sources[source], key)
        if shard is not None:
            by_shard.setdefault(shard, []).append(key)
    for shard, keys in by_shard.items():
        found += _in_shard(opened, source, shard, Asked({"key": keys}))
    there = {match.text for match in found}
    left = [key for key in asked.texts.get("key", ()) if key not in there]
    return found, Asked({kind: texts for kind, texts in {**asked.texts, "key": left}.items() if texts})


def _shard_of(source: OpenedSource, key: str) -> int | None:
    """Return the shard that a key names, if there is one of that name; in tars of others keys promise nothing."""
    if source.dataset.layout == FOREIGN_LAYOUT:
        return None
    place = place_of_key(key)
    return source.dataset.shards.number_of(place[0]) if place is not None else None

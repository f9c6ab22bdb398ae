"""Check every byte of a dataset against its index and manifest, and name each damaged sample.

One forward pass over each tar. A cut tar does not end the check of that shard: rows whose bytes are still whole are
still checked, so the answer is exactly the samples that are lost. Opening compared dataset.json with the manifest; here
the manifest is compared with the commit records, and each index with its sum.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import files, urlpath
from headrace.shards.commit import RECORD_FIELDS, committed, read_commit
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.errors import ShardError
from headrace.shards.group import GroupConfig, Grouped, SampleMembers, group_members
from headrace.shards.heartbeat import beat, expect
from headrace.shards.images.decode import decode_rgb
from headrace.shards.images.formats import names_image
from headrace.shards.images.header import check_complete, read_header
from headrace.shards.index import INDEX_SCHEMA, parse_index
from headrace.shards.manifest import FOREIGN_LAYOUT, OWN_LAYOUT, ShardEntry
from headrace.shards.members import LABEL_TEXT, Facts, caption_of, join_facts, read_member
from headrace.shards.payloads import check_crc
from headrace.shards.tar import TarMember, iterate_members
from headrace.shards.units import INLINE, EngineConfig, OnProgress, no_progress, run_units
from headrace.shards.windows import Windows, beat_bytes
from headrace.text import printable, shown

# Columns of the index that the small members of the tar repeat.
_TEXT_COLUMNS = ("caption", "label", "url")

_SUMS = ("sha256",)  # null in the record of an index made from headers


@dataclass(frozen=True, slots=True)
class _Rules:
    """What of a dataset says how a tar is read."""

    layout: str
    classes: tuple[str, ...]
    group: GroupConfig


@dataclass(frozen=True, slots=True)
class _Unit:
    entry: ShardEntry
    index_url: str
    tar_url: str
    rules: _Rules
    decode: bool

    @property
    def name(self) -> str:
        return f"shard {self.entry.name}"


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong; `key` and `offset` are null where it concerns a whole shard."""

    shard: str
    key: str | None
    offset: int | None
    message: str

    def __str__(self) -> str:
        place = f" sample {self.key!r}" if self.key is not None else ""
        where = f"{self.shard}{place}{'' if self.offset is None else f' at byte {self.offset}'}"
        return printable(f"{where}: {self.message}")


def verify_dataset(
    url: str,
    *,
    index_dir: str | None = None,
    decode: bool = False,
    engine: EngineConfig = INLINE,
    on_progress: OnProgress = no_progress,
    on_damage: Callable[[Damage], None] | None = None,
) -> list[Damage]:
    """Return what is damaged, shard by shard, in the order of the manifest; `on_damage` gets each one when it is found.

    `decode` also decodes every image. Raises ValueError if there is no dataset at `url`.
    """
    dataset = open_dataset(url, index_dir=index_dir)
    if engine.executor != "inline":
        urlpath.check_shared(url, index_dir or "")
    found: list[Damage] = []

    def add(damages: Iterable[Damage]) -> None:
        for damage in damages:
            found.append(damage)
            if on_damage is not None:
                on_damage(damage)

    add(_check_records(dataset))
    rules = _Rules(dataset.layout, dataset.classes, dataset.group)
    units = [
        _Unit(entry, dataset.index_url(shard), dataset.tar_url(shard), rules, decode)
        for shard, entry in enumerate(dataset.shards)
    ]
    in_order = _InOrder(add)
    run_units(_check_unit, units, engine, on_progress, in_order.take)
    return found


class _InOrder:
    """Gives on results in the order of their units, each as soon as all before it are there."""

    def __init__(self, give: Callable[[list[Damage]], None]) -> None:
        self._give = give
        self._next = 0
        self._waiting: dict[int, list[Damage]] = {}

    def take(self, number: int, damages: list[Damage]) -> None:
        """Take the result of unit `number`."""
        self._waiting[number] = damages
        while self._next in self._waiting:
            self._give(self._waiting.pop(self._next))
            self._next += 1


def _check_records(dataset: Dataset) -> Iterator[Damage]:
    """Compare the manifest with the commit records, where they can be listed: they were copied along, or not at all."""
    folder = dataset.commits_folder
    names = committed(folder)
    entries = {dataset.commit_name(shard): entry for shard, entry in enumerate(dataset.shards)}
    for name in names:
        try:
            record = read_commit(folder, name, fields=RECORD_FIELDS)
        except (ValueError, FileNotFoundError) as error:
            yield Damage(name, None, None, str(error))
            continue
        entry = entries.get(name)
        if entry is None and dataset.layout == OWN_LAYOUT:
            samples = f"a shard of {record['num_samples']} samples is committed"
            yield Damage(name, None, None, f"{samples}, yet the manifest does not name it")
        for field in (*RECORD_FIELDS, *_SUMS) if entry is not None else ():
            expected, got = getattr(entry, field), record.get(field)
            if got != expected:
                where = "its commit record"
                yield Damage(name, None, None, f"{field} is {shown(got)} in {where}, {shown(expected)} in the manifest")
    for name, entry in entries.items() if names else ():
        if name not in names:
            yield Damage(entry.name, None, None, "the manifest names this shard, yet it has no commit record")


def _check_unit(unit: _Unit) -> list[Damage]:
    return list(_check_shard(unit))


def _check_shard(unit: _Unit) -> Iterator[Damage]:
    """Yield what is damaged in one shard."""
    entry = unit.entry
    rows: dict[int, dict[str, Any]] = {}
    try:
        data = files.read_bytes(unit.index_url)
        got = hashlib.sha256(data).hexdigest()
        if got != entry.index_sha256:
            yield Damage(entry.name, None, None, f"sha256 of the index is {got}, expected {entry.index_sha256}")
        table = parse_index(data, unit.index_url)
        yield from _check_rows(entry, table)
        rows = {row["offset"]: row for row in table.select(INDEX_SCHEMA.names).to_pylist() if _has_place(row)}
    except FileNotFoundError:
        yield Damage(entry.name, None, None, f"missing index {unit.index_url}")
    except ShardError as error:
        yield Damage(entry.name, None, None, error.detail)
    try:
        windows = Windows(unit.tar_url, hashing=True)
    except FileNotFoundError:
        yield Damage(entry.name, None, None, f"missing shard {unit.tar_url}")
        return
    expect(bytes=windows.size)
    with windows:
        yield from _check_tar(windows, unit, rows)
        if windows.size != entry.num_bytes:
            yield Damage(entry.name, None, None, f"the tar has {windows.size} bytes, expected {entry.num_bytes}")
        elif entry.sha256 is not None and windows.sha256() != entry.sha256:
            yield Damage(entry.name, None, None, f"sha256 of the tar is {windows.sha256()}, expected {entry.sha256}")


def _check_rows(entry: ShardEntry, table: pa.Table) -> Iterator[Damage]:
    if table.num_rows != entry.num_samples:
        counts = f"the index has {table.num_rows} rows, the manifest says {entry.num_samples}"
        yield Damage(entry.name, None, None, counts)
    placed = [row for row in table.select(["key", "offset", "size"]).to_pylist() if _has_place(row)]
    if len(placed) < table.num_rows:
        lost = f"{table.num_rows - len(placed)} rows of the index have no key, offset or size"
        yield Damage(entry.name, None, None, lost)
    shared = len(placed) - len({row["offset"] for row in placed})
    if shared:
        yield Damage(entry.name, None, None, f"{shared} rows of the index share an offset")


def _has_place(row: dict[str, Any]) -> bool:
    return row["key"] is not None and row["offset"] is not None and row["size"] is not None


def _check_tar(windows: Windows, unit: _Unit, rows: dict[int, dict[str, Any]]) -> Iterator[Damage]:
    """Check each indexed image where the tar has it, then those that the tar's headers no longer reach, then texts."""
    shard, decode, left = unit.entry.name, unit.decode, dict(rows)
    members: list[TarMember] = []
    by_offset: dict[int, Facts] = {}
    whole = True
    try:
        for member in beat_bytes(windows, iterate_members(windows, with_links=True)):
            members.append(member)
            row = left.pop(member.offset, None)
            if row is not None:
                beat(samples=1)
                yield from _check_member(windows, shard, member, row, decode)
            # Of an image all is compared above; what it says of itself is no part of the texts below.
            facts = None if names_image(member.name) else read_member(windows, member)
            if facts is not None:
                by_offset[member.offset] = facts
    except ShardError as error:
        whole = False
        yield Damage(shard, error.key, error.offset, error.detail)
    for offset, row in sorted(left.items()):
        if offset < 0 or row["size"] < 0 or offset + row["size"] > windows.size:
            cut = f"{row['size']} bytes expected, the tar ends at byte {windows.size}"
            yield Damage(shard, row["key"], offset, cut)
            continue
        message = _check_image(windows.read(offset, row["size"]), row, windows.url, decode)
        yield Damage(shard, row["key"], offset, message or "no tar header leads to it any more; its bytes are whole")
    if whole:  # of a cut tar, neither the rule of its keys nor what belongs to its last sample is known
        yield from _check_samples(unit, group_members(members, unit.rules.group), rows, by_offset)


def _check_member(
    windows: Windows, shard: str, member: TarMember, row: dict[str, Any], decode: bool
) -> Iterator[Damage]:
    if member.size != row["size"]:
        sizes = f"size in the tar is {member.size}, the index says {row['size']}"
        yield Damage(shard, row["key"], member.offset, sizes)
        return
    message = _check_image(windows.read(member.offset, member.size), row, windows.url, decode)
    if message is not None:
        yield Damage(shard, row["key"], member.offset, message)


def _check_samples(
    unit: _Unit, grouped: Grouped, rows: dict[int, dict[str, Any]], by_offset: dict[int, Facts]
) -> Iterator[Damage]:
    for sample in grouped.samples:
        row = rows.get(sample.image.offset) if sample.image is not None else None
        if row is not None:
            yield from _check_sample(unit, sample, row, join_facts(sample, by_offset))


def _check_sample(unit: _Unit, sample: SampleMembers, row: dict[str, Any], facts: Facts) -> Iterator[Damage]:
    """Compare what the small members say with the index; what stands in no member came from a table beside the tar."""
    shard, rules, offset = unit.entry.name, unit.rules, row["offset"]
    if sample.key != row["key"]:
        yield Damage(shard, row["key"], offset, f"the tar names it {sample.key!r}")
    if row["crc32"] is None:
        return
    values, indexed = dict(facts.values), dict(row)
    name = values.pop(LABEL_TEXT, None)
    if name is not None and name in rules.classes:
        values["label"] = rules.classes.index(name)
    if indexed["caption"] is not None:
        indexed["caption"] = caption_of(indexed["caption"])
    for column in _TEXT_COLUMNS:
        absent = column not in values and rules.layout == FOREIGN_LAYOUT
        if not absent and values.get(column) != indexed[column]:
            yield Damage(shard, row["key"], offset, f"{column} in the tar is not the index's")


def _check_image(data: bytes, row: dict[str, Any], url: str, decode: bool) -> str | None:
    """Return what is wrong with one image, or None."""
    try:
        check_crc(data, row["crc32"], url=url, key=row["key"], offset=row["offset"])
        header = read_header(data)
        check_complete(data, header)
        if row["width"] is not None and (header.width, header.height) != (row["width"], row["height"]):
            return f"the image is {header.width} x {header.height}, the index says {row['width']} x {row['height']}"
        if decode:
            decode_rgb(data, header=header)
    except ShardError as error:
        return error.detail
    except ValueError as error:
        return str(error)
    return None

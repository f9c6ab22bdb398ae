"""Tars as inputs: WebDataset samples, or loose images one after the other.

A tar is WebDataset if a text of it shares its key with an image, or if its samples hold several images by name
(`left.jpg`, `right.jpg`). In loose tars each file is an input and its class is the folder it lies in, or the synset of
ImageNet's own names (`n01484850_17.JPEG`).
"""

import contextlib
import re
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from headrace import urlpath
from headrace.shards.columns import agree, type_of
from headrace.shards.foreign.beside import read_beside
from headrace.shards.group import GroupConfig, Grouped, SampleMembers, group_members
from headrace.shards.imports.source import Input, Leftover, fit, free_name, too_large
from headrace.shards.members import LABEL_TEXT, Facts, header_columns, read_sample_facts
from headrace.shards.tar import TarMember, scan_tar
from headrace.shards.windows import Windows

_SYNSET = re.compile(r"(n\d{8})_(.+?)\.[^.]+")
_OPEN_TARS = 32
# The first samples of a tar say which columns its `.json` members have; to read all of them first is twice the way.
_PEEKED = 100


@dataclass(frozen=True, slots=True)
class TarInput:
    """One input: its place, and its class where names give one."""

    name: str
    sample: SampleMembers
    label: int | None


@dataclass(frozen=True, slots=True)
class TarUnit:
    """Some inputs: (URL of the tar, input)."""

    inputs: tuple[tuple[str, TarInput], ...]
    classes: tuple[str, ...]
    columns: Mapping[str, str]

    def read(self) -> Iterator[Input]:
        """Yield the inputs in order."""
        labels = {name: label for label, name in enumerate(self.classes)}
        opened: OrderedDict[str, tuple[Windows, Mapping[str, Facts]]] = OrderedDict()
        with contextlib.ExitStack() as stack:
            for url, item in self.inputs:
                if url not in opened:
                    if len(opened) == _OPEN_TARS:
                        opened.popitem(last=False)[1][0].close()
                    opened[url] = (stack.enter_context(Windows(url)), read_beside(url))
                opened.move_to_end(url)
                windows, beside = opened[url]
                yield self._read(windows, item, beside.get(item.sample.key), labels)

    def _read(self, windows: Windows, item: TarInput, beside: Facts | None, labels: Mapping[str, int]) -> Input:
        image = item.sample.image
        if image is None:
            return Input(item.name, None, note="no image among its members")
        reject = too_large(item.name, image.size)
        if reject is not None:
            return reject
        facts = read_sample_facts(windows, item.sample, beside)
        data = windows.read(image.offset, image.size)
        values = facts.values
        label, complaints = values.get("label", item.label), [message for _, message in facts.faults]
        name = values.get(LABEL_TEXT)
        if name is not None:
            label = labels.get(name)
            facts.extras[LABEL_TEXT] = name
            if label is None and self.classes:
                complaints.append(f"label: {name[:80]!r} is none of the classes that the first of its tar name")
        extras, unfit = fit(facts.extras, self.columns)
        return Input(
            name=item.name,
            image=data,
            label=label,
            caption=values.get("caption"),
            url=values.get("url"),
            orientation=_orientation(facts, data),
            extras=extras,
            note="; ".join([*complaints, *unfit]) or None,
        )


@dataclass(frozen=True, slots=True)
class TarSource:
    """The inputs of several tars, one after the other."""

    tars: tuple[tuple[str, tuple[TarInput, ...]], ...]
    classes: tuple[str, ...]
    columns: Mapping[str, str]
    left_out: tuple[str, ...]
    leftovers: tuple[Leftover, ...]
    not_read: Mapping[str, int]
    remarks: tuple[str, ...]
    num_lost: int
    kind: str = "tar"

    @property
    def url(self) -> str:
        """The first file."""
        return self.tars[0][0]

    @property
    def num_inputs(self) -> int:
        """Inputs of all tars."""
        return sum(len(inputs) for _, inputs in self.tars)

    @property
    def random_access(self) -> bool:
        """A jump on a server costs a request."""
        return all(urlpath.is_local(url) for url, _ in self.tars)

    def identity(self) -> Iterator[Any]:
        """Yield each tar's name and each input's name and members."""
        for url, inputs in self.tars:
            yield urlpath.basename(url)
            for item in inputs:
                places = [[kind, member.offset, member.size] for kind, member in _placed(item.sample)]
                yield [item.name, item.label, places]
        yield dict(self.columns)

    def unit(self, positions: Sequence[int]) -> TarUnit:
        """Return the inputs at `positions`."""
        starts = list(accumulate((len(inputs) for _, inputs in self.tars), initial=0))
        chosen = []
        for position in positions:
            tar = bisect_right(starts, position) - 1
            url, inputs = self.tars[tar]
            chosen.append((url, inputs[position - starts[tar]]))
        return TarUnit(tuple(chosen), self.classes, self.columns)


@dataclass(frozen=True, slots=True)
class _Scanned:
    url: str
    grouped: Grouped
    members: tuple[TarMember, ...]

    @property
    def is_webdataset(self) -> bool:
        paired = any(sample.image is not None and sample.texts for sample in self.grouped.samples)
        return paired or (self.grouped.has_views and self.grouped.rule == "first-dot")


def open_tars(urls: Sequence[str], group: GroupConfig) -> TarSource:
    """Scan the headers of the tars. Raises ShardError if one is damaged."""
    scanned = [_scan(url, group) for url in urls]
    loose = [member.name for tar in scanned if not tar.is_webdataset for member in _loose(tar)]
    classes = sorted({name for name in map(_class_name, loose) if name is not None})
    labels = {name: label for label, name in enumerate(classes)}
    seen = [_peek(tar) for tar in scanned if tar.is_webdataset]
    named = _named_classes(scanned, seen) if not classes else ()
    columns = agree({name: type_of(value)} for facts in seen for one in facts for name, value in one.extras.items())
    left_out = {name for facts in seen for one in facts for name in one.left_out}
    left_out.update(name for name in columns if not free_name(name))
    columns = {name: kind for name, kind in columns.items() if free_name(name)}
    if not named and any(LABEL_TEXT in one.values for facts in seen for one in facts):
        columns[LABEL_TEXT] = "text"
    leftovers = [left for tar in scanned for left in _leftovers(tar)]
    not_read: Counter[str] = Counter()
    for tar in scanned:
        if tar.is_webdataset:
            not_read.update(tar.grouped.not_read)
    return TarSource(
        tars=tuple((tar.url, tuple(_inputs(tar, labels))) for tar in scanned),
        classes=tuple(classes) or named,
        columns=dict(sorted(columns.items())),
        left_out=tuple(sorted(left_out)),
        leftovers=tuple(leftovers),
        not_read=dict(sorted(not_read.items())),
        remarks=tuple(_remarks(scanned, columns)),
        num_lost=sum(_num_lost(tar) for tar in scanned),
    )


def _scan(url: str, group: GroupConfig) -> _Scanned:
    members = scan_tar(url, with_links=True)
    return _Scanned(url, group_members(members, group), tuple(members))


def _loose(tar: _Scanned) -> Iterator[TarMember]:
    """Yield the members that are inputs of a loose tar: all files but hidden ones."""
    left = {id(item.member) for item in tar.grouped.unused if item.reason in ("link", "hidden")}
    yield from (member for member in tar.members if id(member) not in left)


def _inputs(tar: _Scanned, labels: Mapping[str, int]) -> Iterator[TarInput]:
    if tar.is_webdataset:
        for sample in tar.grouped.samples:
            yield TarInput(sample.key, sample, None)
        return
    for member in _loose(tar):
        yield TarInput(member.name, SampleMembers(member.name, member, {}), labels.get(_class_name(member.name) or ""))


def _leftovers(tar: _Scanned) -> Iterator[Leftover]:
    """Yield what is no input: members of keys without an image belong to an input that is rejected."""
    inputs = ("no-image",) if tar.is_webdataset else ("no-image", "no-key", "duplicate", "other-image")
    skipped = (*inputs, *(() if tar.is_webdataset else ("ambiguous-image", "other-text")))
    for item in tar.grouped.unused:
        if item.reason not in skipped:
            yield Leftover(item.member.name, item.reason, f"in {urlpath.basename(tar.url)}")


def _remarks(scanned: Sequence[_Scanned], columns: Mapping[str, str]) -> Iterator[str]:
    if LABEL_TEXT in columns:
        yield f"labels that are text stand beside numbers: null in label, kept in the column {LABEL_TEXT}"
    dotted = sum(tar.is_webdataset and tar.grouped.rule == "last-dot" for tar in scanned)
    if dotted:
        yield f"keys end at the last dot in {dotted} of {len(scanned)} tars; --keys first-dot takes webdataset's rule"


def _num_lost(tar: _Scanned) -> int:
    if tar.is_webdataset:
        return tar.grouped.num_lost - sum(sample.image is None for sample in tar.grouped.samples)
    return sum(item.reason == "link" for item in tar.grouped.unused)


def _peek(tar: _Scanned) -> list[Facts]:
    """Read what the first samples of a tar say."""
    samples = [sample for sample in tar.grouped.samples if sample.image is not None][:_PEEKED]
    beside = read_beside(tar.url)
    with Windows(tar.url) as windows:
        return [read_sample_facts(windows, sample, beside.get(sample.key)) for sample in samples]


def _named_classes(scanned: Sequence[_Scanned], seen: Sequence[Sequence[Facts]]) -> tuple[str, ...]:
    """Return the classes that labels spell as text, sorted; none where other labels are numbers."""
    peeked = [one.values for facts in seen for one in facts]
    if not any(LABEL_TEXT in values for values in peeked) or any("label" in values for values in peeked):
        return ()
    names: set[str] = set()
    for tar in scanned:
        if not tar.is_webdataset:
            continue
        beside = read_beside(tar.url)
        with Windows(tar.url) as windows:
            for sample in tar.grouped.samples:
                values = read_sample_facts(windows, sample, beside.get(sample.key)).values
                names.update([values[LABEL_TEXT]] if LABEL_TEXT in values else [])
    return tuple(sorted(names))


def _placed(sample: SampleMembers) -> list[tuple[str, TarMember]]:
    images: list[tuple[str, TarMember]] = [] if sample.image is None else [("image", sample.image)]
    return [*images, *sorted(sample.texts.items())]


def _class_name(name: str) -> str | None:
    """Return the class that a loose image's name gives, or None."""
    folders, _, last = name.removeprefix("./").rpartition("/")
    if folders:
        return folders.rpartition("/")[2]
    match = _SYNSET.fullmatch(last)
    if match is None:
        return None
    return match.group(1) if match.group(2).isdigit() else f"{match.group(1)}_{match.group(2)}"


def _orientation(facts: Facts, data: bytes) -> int | None:
    try:
        return facts.orientation_of(header_columns(data)) if facts.stated else None
    except ValueError:
        return None

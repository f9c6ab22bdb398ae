"""Members of a tar -> samples: which belong together, which one is the image, and what is left over.

A key is the name up to the first dot of its last part, folder included: webdataset's rule and regular expression. Tars
of files whose own names hold dots (`photo.000.jpg`, `photo.001.jpg`) would become one sample under it, so the members
of the whole tar decide (`_names_hold_dots`), or the user does. Nothing is dropped without a word: a member is part of a
sample, or in `unused` with its reason, or counted under the extension that nothing here reads. docs/format.md states
the rules in full.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

from headrace.shards.images.formats import IMAGE_EXTENSIONS, names_image
from headrace.shards.tar import TarMember

KeyRule = Literal["auto", "first-dot", "last-dot"]
Kind = Literal["caption", "label", "facts"]

# What a small member says, by its last extension; in the order in which one wins over another of its kind.
TEXT_KINDS: dict[str, Kind] = {
    "txt": "caption",
    "caption": "caption",
    "text": "caption",
    "cls": "label",
    "json": "facts",
}
# Names of parts that are no part of the key, whatever the rule.
_COMPOUND = ("caption.txt", "text.txt")

_FIRST_DOT = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_LAST_DOT = re.compile(r"^((?:.*/|)[^./][^/]*)[.]([^./]*)$")
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """How members become samples."""

    keys: KeyRule = "auto"
    """Where a key ends: `first-dot` (webdataset), `last-dot`, or what the tar's names show (`auto`)."""
    image: str | None = None
    """Extension of the member that is a sample's image, such as `left.jpg`; None = by rule."""

    def __post_init__(self) -> None:
        if self.keys not in get_args(KeyRule):
            raise ValueError(f"keys must be one of {', '.join(get_args(KeyRule))}, got {self.keys!r}")
        if self.image is not None and not is_image_extension(self.image):
            raise ValueError(f"{self.image!r} does not end in the extension of an image: {', '.join(IMAGE_EXTENSIONS)}")


BY_RULE = GroupConfig()


@dataclass(frozen=True, slots=True)
class SampleMembers:
    """One sample: its image and the small members that are read, by kind. Without an image it is none."""

    key: str
    image: TarMember | None
    texts: Mapping[Kind, TarMember]


@dataclass(frozen=True, slots=True)
class UnusedMember:
    """A member that is part of no sample, and why."""

    member: TarMember
    reason: str


@dataclass(frozen=True, slots=True)
class Grouped:
    """The samples of one tar in its order, and everything else in it."""

    rule: KeyRule
    samples: tuple[SampleMembers, ...]
    unused: tuple[UnusedMember, ...]
    not_read: Mapping[str, int]
    """Members by extensions that nothing here reads, such as `npy`; counted, not named."""
    num_members: int
    has_views: bool
    """Some sample holds several images under webdataset's rule."""

    @property
    def num_lost(self) -> int:
        """Samples that others may have meant and that are none here: keys without an image, images left over."""
        lost = ("ambiguous-image", "duplicate", "link")
        images = sum(item.reason in lost and names_image(item.member.name) for item in self.unused)
        return images + sum(sample.image is None for sample in self.samples)

    def count(self) -> Counter[str]:
        """Return how many members went where; the counts add up to `num_members`."""
        counts = Counter({"image": 0, "text": 0, "not-read": sum(self.not_read.values())})
        for sample in self.samples:
            if sample.image is not None:
                counts["image"] += 1
                counts["text"] += len(sample.texts)
        counts.update(item.reason for item in self.unused)
        return counts


@dataclass(slots=True)
class _Draft:
    key: str
    members: dict[str, TarMember]


def is_image_extension(extension: str) -> bool:
    """True for `jpg`, `JPG` and `seg.png`: the last part decides."""
    return extension.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def split_name(name: str, rule: KeyRule = "first-dot") -> tuple[str, str] | None:
    """Return (key, extension in lower case), or None for a name that is no sample's."""
    if _META.match(name):
        return None
    match = (_LAST_DOT if rule == "last-dot" else _FIRST_DOT).match(name)
    if match is None:
        return None
    key, extension = match.groups()
    if rule == "last-dot":
        stem, dot, part = key.rpartition(".")
        compound = f"{part}.{extension}".lower()
        if dot and stem and not stem.endswith("/") and compound in _COMPOUND:
            return stem, compound
    return key, extension.lower()


def group_members(members: Iterable[TarMember], config: GroupConfig = BY_RULE) -> Grouped:
    """Group the members of one whole tar, links among them."""
    listed = list(members)
    unused: list[UnusedMember] = []
    named: list[TarMember] = []
    for member in listed:
        reason = _no_sample(member)
        if reason is None:
            named.append(member)
        else:
            unused.append(UnusedMember(member, reason))
    by_webdataset = _drafts(named, "first-dot", [])
    several = [draft for draft in by_webdataset if len(_images(draft)) > 1]
    rule = config.keys
    if rule == "auto":
        rule = "last-dot" if config.image is None and _names_hold_dots(several) else "first-dot"
    not_read: Counter[str] = Counter()
    samples = [_settle(draft, config.image, unused, not_read) for draft in _drafts(named, rule, unused)]
    order = {id(member): number for number, member in enumerate(listed)}
    unused.sort(key=lambda item: order[id(item.member)])
    return Grouped(rule, tuple(samples), tuple(unused), dict(sorted(not_read.items())), len(listed), bool(several))


def _no_sample(member: TarMember) -> str | None:
    """Return why a member can be part of no sample, or None."""
    if member.link:
        return "link"
    folders, _, last = member.name.rpartition("/")
    if last.startswith(".") or "__MACOSX" in folders.split("/"):
        return "hidden"
    return "no-key" if split_name(member.name) is None and split_name(member.name, "last-dot") is None else None


def _drafts(members: Sequence[TarMember], rule: KeyRule, unused: list[UnusedMember]) -> list[_Draft]:
    """Join members by key, in the order of the first; append to `unused` what has no key or comes twice.

    Members of one key need not stand together: a later run joins the sample, unless the two have an extension in
    common; then it is another sample of the same key, as webdataset has it.
    """
    drafts: list[_Draft] = []
    latest: dict[str, _Draft] = {}
    for key, run in _runs(members, rule, unused):
        draft = latest.get(key)
        if draft is None or any(extension in draft.members for extension, _ in run):
            draft = latest[key] = _Draft(key, {})
            drafts.append(draft)
        for extension, member in run:
            if extension in draft.members:
                unused.append(UnusedMember(member, "duplicate"))
            else:
                draft.members[extension] = member
    return drafts


def _runs(
    members: Sequence[TarMember], rule: KeyRule, unused: list[UnusedMember]
) -> Iterator[tuple[str, list[tuple[str, TarMember]]]]:
    split_members = []
    for member in members:
        split = split_name(member.name, rule)
        if split is None:
            unused.append(UnusedMember(member, "no-key"))
        else:
            split_members.append((*split, member))
    for key, run in groupby(split_members, key=lambda item: item[0]):
        yield key, [(extension, member) for _, extension, member in run]


def _images(draft: _Draft) -> list[str]:
    return [extension for extension in draft.members if is_image_extension(extension)]


def _names_hold_dots(drafts: Sequence[_Draft]) -> bool:
    """Tell files with dots in their names from several images of one sample, by the samples that would hold several.

    Images of one sample bear the same extensions in sample after sample (`left.jpg`, `right.jpg`); the tails of file
    names differ (`05.png`, `06.png`), or are numbers. Of a single sample nothing repeats: then they are files if each
    image has a caption of its own (`st. john.jpg`, `st. john.txt`, `st. mary.jpg`, `st. mary.txt`).
    """
    several = [_images(draft) for draft in drafts]
    parts = [extension.rpartition(".")[0] for images in several for extension in images]
    dotted = [part for part in parts if part]
    if not dotted:
        return False
    if all(re.fullmatch(r"[\d_-]+", part) for part in dotted):
        return True
    if len(several) == 1:
        return any(letter.isdigit() for part in dotted for letter in part) or _have_own_captions(drafts[0])
    distinct = {extension for images in several for extension in images}
    return 2 * sum(len(images) for images in several) <= len(several) * len(distinct)


def _have_own_captions(draft: _Draft) -> bool:
    """True if each image of a sample has a caption of the same name."""
    parts = {extension.rpartition(".")[0] for extension in _images(draft)}
    texts = [extension.rpartition(".") for extension in draft.members]
    return parts <= {part for part, _, last in texts if TEXT_KINDS.get(last) == "caption"}


def _settle(draft: _Draft, wanted: str | None, unused: list[UnusedMember], not_read: "Counter[str]") -> SampleMembers:
    """Choose the image and the texts of a sample; everything else goes to `unused` or `not_read`."""
    images = _images(draft)
    chosen = _choose_image(images, wanted)
    rivals = _rivals(images, chosen) if wanted is None else ()
    texts = _choose_texts(draft, chosen) if chosen is not None else {}
    used = {chosen, *texts.values()}
    for extension, member in draft.members.items():
        last = extension.rpartition(".")[2]
        if extension in used:
            continue
        if chosen is None:
            unused.append(UnusedMember(member, "no-image"))
        elif extension in images:
            unused.append(UnusedMember(member, "ambiguous-image" if extension in rivals else "other-image"))
        elif last in TEXT_KINDS:
            unused.append(UnusedMember(member, "other-text"))
        else:
            not_read[extension] += 1
    return SampleMembers(
        draft.key,
        None if chosen is None else draft.members[chosen],
        {kind: draft.members[extension] for kind, extension in texts.items()},
    )


def _choose_image(images: Sequence[str], wanted: str | None) -> str | None:
    """Return the extension of the image: the wanted one; else the first plain one (`jpg`); else the first."""
    if wanted is not None:
        return wanted.lower() if wanted.lower() in images else None
    plain = [extension for extension in images if "." not in extension]
    return next(iter(plain or images), None)


def _rivals(images: Sequence[str], chosen: str | None) -> tuple[str, ...]:
    """Return the images that might as well have been chosen: a `seg.png` is none beside a `jpg`, a `png` is."""
    if chosen is None or "." in chosen:
        return tuple(images)
    return tuple(extension for extension in images if "." not in extension)


def _choose_texts(draft: _Draft, image: str) -> dict[Kind, str]:
    """Return the extension of the member of each kind: the plain one, a `caption.txt`, the image's namesake, any."""
    stem = image.rpartition(".")[0]

    def rank(extension: str) -> tuple[bool, bool, bool, int]:
        part, _, last = extension.rpartition(".")
        return bool(part), extension not in _COMPOUND, part != stem, list(TEXT_KINDS).index(last)

    found: dict[Kind, str] = {}
    known = [extension for extension in draft.members if extension.rpartition(".")[2] in TEXT_KINDS]
    for extension in sorted(known, key=rank):
        found.setdefault(TEXT_KINDS[extension.rpartition(".")[2]], extension)
    return found

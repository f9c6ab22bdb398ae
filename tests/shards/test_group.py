"""Grouping: webdataset's rule where it holds, one file one sample where names hold dots, and nothing without a word."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.shards.group import GroupConfig, Grouped, group_members, split_name
from headrace.shards.tar import TarMember


def _group(*names: str, **config: object) -> Grouped:
    members = [TarMember(name, 1024 * number + 512, 10) for number, name in enumerate(names)]
    return group_members(members, GroupConfig(**config))  # type: ignore[arg-type]


def _images(grouped: Grouped) -> list[tuple[str, str | None]]:
    return [(sample.key, sample.image.name if sample.image else None) for sample in grouped.samples]


def _left(grouped: Grouped) -> list[tuple[str, str]]:
    return [(item.member.name, item.reason) for item in grouped.unused]


def test_files_with_numbers_behind_a_dot_are_samples_of_their_own() -> None:
    names = [f"photo.{number:03d}.jpg" for number in range(40)]
    grouped = _group(*names)
    assert grouped.rule == "last-dot"
    assert _images(grouped) == [(name.removesuffix(".jpg"), name) for name in names]
    assert grouped.unused == ()


@pytest.mark.parametrize(
    ("names", "rule", "images"),
    [
        (("a.input.jpg", "a.outputs.txt", "b.input.jpg", "b.outputs.txt"), "first-dot", 2),
        (("a.b.c.jpg", "a.b.c.txt"), "first-dot", 1),
        (("v1.0/a.jpg", "v1.0/a.txt", "v1.0/b.jpg"), "first-dot", 2),
        (("./t.v1/22.05.png", "./t.v1/22.05.txt", "./t.v1/22.06.png", "./t.v1/22.06.txt"), "last-dot", 2),
        (("x.jpg", "x.1.jpg", "x.2.jpg"), "last-dot", 3),
        (("Shot 2021.01 at 10.11.png", "Shot 2021.02 at 10.12.png"), "last-dot", 2),
        (("a.paris.jpg", "a.rome.jpg", "b.oslo.jpg", "b.bern.jpg"), "last-dot", 4),
        (("st. john.jpg", "st. john.txt", "st. mary.jpg", "st. mary.txt", "x.jpg", "x.txt"), "last-dot", 3),
        (("a.jpg", "a.txt", "a.late.png", "a.late.caption"), "last-dot", 2),
        (("a.jpg", "a.txt", "a.seg.png", "a.seg.json"), "first-dot", 1),
        (("a.left.jpg", "a.right.jpg", "a.left.txt"), "first-dot", 1),
        (("a.left.jpg", "a.right.jpg", "b.left.jpg", "b.right.jpg"), "first-dot", 2),
        (("a.jpg", "a.seg.png", "b.jpg", "b.seg.png"), "first-dot", 2),
        (("a.img0.jpg", "a.img1.jpg", "b.img0.jpg", "b.img1.jpg"), "first-dot", 2),
        (("A.JPG", "A.TXT", "b.Jpeg"), "first-dot", 2),
    ],
)
def test_the_members_of_the_tar_decide_where_keys_end(names: tuple[str, ...], rule: str, images: int) -> None:
    grouped = _group(*names)
    assert grouped.rule == rule
    assert sum(sample.image is not None for sample in grouped.samples) == images


def test_the_user_may_decide() -> None:
    names = ("photo.000.jpg", "photo.001.jpg")
    assert _images(_group(*names, keys="first-dot")) == [("photo", "photo.000.jpg")]
    assert _left(_group(*names, keys="first-dot")) == [("photo.001.jpg", "ambiguous-image")]
    assert _images(_group("a.left.jpg", "a.right.jpg", keys="last-dot")) == [
        ("a.left", "a.left.jpg"),
        ("a.right", "a.right.jpg"),
    ]


def test_the_image_of_several_is_the_plain_one_or_the_wanted_one_and_the_others_are_named() -> None:
    plain = _group("k.seg.png", "k.JPG", "k.txt")
    assert _images(plain) == [("k", "k.JPG")]
    assert _left(plain) == [("k.seg.png", "other-image")]
    assert plain.num_lost == 0
    rivals = _group("k.jpg", "k.png", "k.seg.png")
    assert _left(rivals) == [("k.png", "ambiguous-image"), ("k.seg.png", "other-image")]
    assert rivals.num_lost == 1
    views = _group("k.left.jpg", "k.right.jpg", "l.left.jpg", "l.right.jpg")
    assert _left(views) == [("k.right.jpg", "ambiguous-image"), ("l.right.jpg", "ambiguous-image")]
    right = _group("k.left.jpg", "k.right.jpg", "l.left.jpg", image="RIGHT.jpg")
    assert _images(right) == [("k", "k.right.jpg"), ("l", None)]
    assert _left(right) == [("k.left.jpg", "other-image"), ("l.left.jpg", "no-image")]


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (("k.jpg", "k.caption", "k.text", "k.txt"), "k.txt"),
        (("k.jpg", "k.TXT"), "k.TXT"),
        (("k.jpg", "k.text", "k.caption"), "k.caption"),
        (("k.jpg", "k.tags.txt", "k.caption.txt"), "k.caption.txt"),
        (("k.input.jpg", "k.tags.txt", "k.input.txt"), "k.input.txt"),
        (("k.input.jpg", "k.outputs.txt"), "k.outputs.txt"),
        (("k.0.jpg", "k.1.jpg", "k.1.caption.txt"), None),
    ],
)
def test_the_caption_by_rule(names: tuple[str, ...], caption: str | None) -> None:
    sample = _group(*names).samples[0]
    found = sample.texts.get("caption")
    assert (found.name if found else None) == caption


def test_members_that_do_not_stand_together_are_joined_unless_they_clash() -> None:
    apart = _group("a.jpg", "b.jpg", "a.txt", "b.txt", "a.cls")
    assert [(sample.key, sorted(sample.texts)) for sample in apart.samples] == [
        ("a", ["caption", "label"]),
        ("b", ["caption"]),
    ]
    again = _group("0.jpg", "0.txt", "1.jpg", "0.jpg", "0.txt")
    assert _images(again) == [("0", "0.jpg"), ("1", "1.jpg"), ("0", "0.jpg")]
    assert again.unused == ()
    assert _left(_group("a.jpg", "a.JPG")) == [("a.JPG", "duplicate")]


def test_what_is_no_sample_is_named_with_its_reason() -> None:
    members = [
        TarMember("a.jpg", 512, 1),
        TarMember("link.jpg", 1024, 0, link=True),
        TarMember("._a.jpg", 1536, 1),
        TarMember("__MACOSX/x/._b.jpg", 2048, 1),
        TarMember("__MACOSX/c.jpg", 2560, 1),
        TarMember(".DS_Store", 3072, 1),
        TarMember("README", 3584, 1),
        TarMember("__meta__/d.jpg", 4096, 1),
        TarMember("lonely.txt", 4608, 1),
        TarMember("a.npy", 5120, 1),
    ]
    grouped = group_members(members)
    assert [item.reason for item in grouped.unused] == [
        "link",
        "hidden",
        "hidden",
        "hidden",
        "hidden",
        "no-key",
        "no-key",
        "no-image",
    ]
    assert grouped.not_read == {"npy": 1}
    assert grouped.num_lost == 2  # the link, and the key without an image
    assert grouped.count() == Counter(
        {"image": 1, "text": 0, "not-read": 1, "hidden": 4, "no-key": 2, "link": 1, "no-image": 1}
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b.c.jpg", ("a.b.c", "jpg")),
        ("v1.0/a.JPG", ("v1.0/a", "jpg")),
        ("v1.0/a", None),
        ("x.caption.txt", ("x", "caption.txt")),
        ("x.1.Caption.TXT", ("x.1", "caption.txt")),
        ("caption.txt", ("caption", "txt")),
        (".hidden.jpg", None),
    ],
)
def test_the_last_dot(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name, "last-dot") == expected


@pytest.mark.parametrize(
    ("config", "message"), [({"keys": "dots"}, "keys must be one of auto"), ({"image": "txt"}, "'txt' does not end in")]
)
def test_a_config_that_means_nothing_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupConfig(**config)  # type: ignore[arg-type]


_PART = st.sampled_from(["a", "b", "photo", "0", "01", "left", "seg", "x y", "__meta__", "", "caption"])
_EXTENSION = st.sampled_from(["jpg", "JPG", "png", "txt", "text", "cls", "json", "npy", "caption", ""])
_NAME = st.builds(
    lambda folder, parts, extension: folder + ".".join([*parts, extension]),
    st.sampled_from(["", "./", "d/", "v1.0/", "__MACOSX/", "."]),
    st.lists(_PART, min_size=0, max_size=4),
    _EXTENSION,
)


@settings(max_examples=400, deadline=None)
@given(
    names=st.lists(st.tuples(_NAME, st.booleans()), max_size=14),
    keys=st.sampled_from(["auto", "first-dot", "last-dot"]),
    image=st.sampled_from([None, "jpg", "left.jpg"]),
)
def test_every_member_is_accounted_for_once(names: list[tuple[str, bool]], keys: str, image: str | None) -> None:
    members = [TarMember(name, 512 * n, 1, link=link) for n, (name, link) in enumerate(names)]
    grouped = group_members(members, GroupConfig(keys=keys, image=image))  # type: ignore[arg-type]
    assert sum(grouped.count().values()) == len(members) == grouped.num_members
    used = [
        member.offset
        for sample in grouped.samples
        for member in ([sample.image] if sample.image else []) + list(sample.texts.values())
        if member is not None
    ]
    named = used + [item.member.offset for item in grouped.unused]
    assert len(set(named)) == len(named) == len(members) - sum(grouped.not_read.values())
    offsets = [sample.image.offset for sample in grouped.samples if sample.image]
    assert all(not members[offset // 512].link for offset in offsets)

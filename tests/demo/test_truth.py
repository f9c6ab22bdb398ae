"""The table counts what happened, and cannot be pleased by a curation that drops or keeps everything."""

import dataclasses

import numpy as np

from headrace.curation.build.clean import clean_image
from headrace.curation.build.config import BuildConfig
from headrace.demo.encode import encode, with_metadata
from headrace.demo.scenes import Pixels, draw, draw_attributes, generator
from headrace.demo.truth import Built, Verdict, is_blurred, is_clean, judge, not_as_planted, table
from headrace.demo.web import BLURRED, CLEANED, Entry, Site


def picture(seed: int = 1) -> Pixels:
    rng = generator(seed, "truth")
    return draw(draw_attributes(rng), rng, width=160, height=120)


def fault(url: str, **changes: object) -> Entry:
    entry = Entry(url=url, caption="", kind="tiny", fault=True, found_by=("min_side",))
    return dataclasses.replace(entry, **changes)  # type: ignore[arg-type]


def near_miss(url: str, **changes: object) -> Entry:
    return fault(url, **{"fault": False, "found_by": (), **changes})


def judged(outcomes: dict[str, tuple[bool, str]], *entries: Entry) -> dict[str, Verdict]:
    return judge([(entry.url, entry) for entry in entries], outcomes, {})


def test_a_fault_dropped_by_another_step_is_missed() -> None:
    entries = (fault("a"), fault("b"), fault("c"), near_miss("d"), near_miss("e"))
    outcomes = {"a": (False, "min_side"), "b": (False, "top_fraction"), "c": (True, ""), "d": (True, "")}
    verdicts = judged(outcomes, *entries)
    (row,) = table([(entry.url, entry) for entry in entries], verdicts)
    assert dataclasses.astuple(row) == ("tiny", 3, 1, 2, 1, 2)
    listed = not_as_planted([(entry.url, entry) for entry in entries], verdicts)
    assert [(item["url"], item["dropped_by"]) for item in listed] == [
        ("b", "top_fraction"),
        ("c", ""),
        ("e", "not in the ledger"),
    ]


def test_which_of_two_copies_is_kept_is_free() -> None:
    pair = (near_miss("first", group="g"), fault("copy", group="g", found_by=("near_duplicates",)))
    for kept, dropped in (("first", "copy"), ("copy", "first")):
        verdicts = judged({kept: (True, ""), dropped: (False, "near_duplicates")}, *pair)
        assert all(verdict.good for verdict in verdicts.values())
    both_kept = judged({"first": (True, ""), "copy": (True, "")}, *pair)
    assert [both_kept[url].good for url in ("first", "copy")] == [True, False]
    both_dropped = judged({"first": (False, "near_duplicates"), "copy": (False, "near_duplicates")}, *pair)
    assert [both_dropped[url].good for url in ("first", "copy")] == [False, True]


def test_dropping_everything_is_not_rewarded(site: Site) -> None:
    entries = [(entry.url, entry) for entry in site.entries]
    for outcome in ((False, "top_fraction"), (True, "")):
        rows = table(entries, judge(entries, dict.fromkeys(dict(entries), outcome), {}))
        missed = {row.kind: row.missed for row in rows}
        dropped = sum(row.wrongly_dropped for row in rows)
        assert missed["evaluation_padded"] > 0
        assert missed["face"] > 0
        assert (dropped > 250) == (not outcome[0])
        assert sum(row.planted + row.near_misses for row in rows) == len(entries)


def test_a_face_counts_only_when_it_lost_its_detail_and_nothing_else_changed() -> None:
    pixels = picture()
    entry = fault("a", pixels=pixels, face_box=(0.2, 0.2, 0.6, 0.7), found_by=(BLURRED,))
    boxes = [[0.2, 0.2, 0.6, 0.7]]
    clean = clean_image(encode(pixels), face_boxes=boxes)
    assert is_blurred(Built(clean.data, clean.header.orientation), entry)
    assert not is_blurred(Built(encode(pixels), 1), entry)
    assert not is_blurred(Built(encode(np.full_like(pixels, 128)), 1), entry)
    assert not is_blurred(Built(encode(pixels[:, ::-1]), 1), entry)


def test_metadata_counts_only_when_all_is_gone_and_the_picture_stands() -> None:
    pixels = picture(2)
    entry = fault("a", pixels=pixels, found_by=(CLEANED,))
    data = with_metadata(pixels, "jpeg", orientation=6, secret="taken at home")
    turned = clean_image(data)
    assert is_clean(Built(turned.data, 1), entry)
    clean = clean_image(data, config=BuildConfig(upright=False))
    assert is_clean(Built(clean.data, clean.header.orientation), entry)
    assert not is_clean(Built(data, 6), entry)
    assert not is_clean(Built(clean.data, 1), entry)
    assert not is_clean(Built(clean.data, 8), entry)

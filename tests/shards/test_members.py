"""What small members say: numbers, names of classes, captions; what means none is null."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.shards.group import group_members
from headrace.shards.members import LABEL_TEXT, caption_of, facts_of, label_of, read_sample_facts
from headrace.shards.tar import scan_tar
from headrace.shards.windows import Windows


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, (3, None)),
        (3.0, (3, None)),
        ("3", (3, None)),
        (" 3\n", (3, None)),
        ("3.0", (3, None)),
        ("-1", (-1, None)),
        ("cat", (None, "cat")),
        ("3d printer\n", (None, "3d printer")),
        ("n01440764", (None, "n01440764")),
    ],
)
def test_labels(value: object, expected: tuple[int | None, str | None]) -> None:
    assert label_of(value) == expected


@pytest.mark.parametrize("value", [True, None, [1], 1.5, "1.5", "", "nan", "1 2", float("nan"), 1 << 63, "9" * 40])
def test_what_is_no_label_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected int|over 64 bits"):
        label_of(value)


@pytest.mark.parametrize(("text", "expected"), [("", None), (" \n", None), ("\ufeffa\n", "a\n"), ("a", "a")])
def test_captions(text: str, expected: str | None) -> None:
    assert caption_of(text) == expected


def test_lists_of_captions_are_held_whichever_way_they_are_spelt() -> None:
    for record in ({"caption": ["c", "d"]}, {"caption": "c", "captions": ["c", "d"]}):
        facts = facts_of(record, where="a.json")
        assert (facts.values, facts.extras, facts.left_out) == ({"caption": "c"}, {"captions": ["c", "d"]}, [])


def test_a_record_names_what_it_does_not_carry() -> None:
    facts = facts_of(
        {"caption": "c", "a": 1, "b": [1], "": 2, "width": 5, "nan": float("nan"), "label": "x"}, where="a.parquet"
    )
    assert facts.values == {"caption": "c", LABEL_TEXT: "x"}
    assert facts.extras == {"a": 1}
    assert facts.left_out == ["b", ""]
    assert facts.faults == []


def test_members_win_in_their_order_and_a_table_beside_last(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("k.cls", b"cat"),
            ("k.jpg", encode_image()),
            ("k.json", b'{"label": 4, "caption": "json", "score": 1}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    url = str(tmp_path / "a.tar")
    (sample,) = group_members(scan_tar(url)).samples
    with Windows(url) as windows:
        facts = read_sample_facts(
            windows, sample, facts_of({"caption": "table", "url": "u", "score": 2, "more": 3}, where="")
        )
    assert facts.values == {LABEL_TEXT: "cat", "caption": "json", "url": "u"}
    assert facts.extras == {"score": 1, "more": 3}

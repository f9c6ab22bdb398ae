"""What the columns of a raw parquet say of a row."""

import pytest

from headrace.curation.raw.schema import ERROR_CLASSES, OWN_SCHEMA, RAW_COLUMNS, status_of, stored_sha256, uid_of


def row(**changes: object) -> dict[str, object]:
    sizes = {"width": 4, "height": 3, "original_width": 4, "original_height": 3}
    return {"sha256": "fetched", "stored_sha256": None, **sizes, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fetched"),
        ({"stored_sha256": "stored", "width": 2}, "stored"),
        ({"stored_sha256": "stored"}, "stored"),
        ({"width": 2}, None),
        ({"original_height": 6}, None),
        ({"sha256": None}, None),
    ],
)
def test_the_sum_of_a_stored_image_is_known_where_it_can_be(changes: dict[str, object], expected: str | None) -> None:
    assert stored_sha256(row(**changes)) == expected


def test_the_schema_has_the_columns_in_order() -> None:
    assert tuple(OWN_SCHEMA.names) == RAW_COLUMNS


def test_a_failure_has_the_word_of_img2dataset() -> None:
    words = {status_of(name) for name in ERROR_CLASSES}
    assert (status_of(None), words) == ("success", {"failed_to_download", "failed_to_resize"})


def test_a_uid_is_of_caption_and_url() -> None:
    assert uid_of(None, None) == uid_of("", "")
    assert uid_of("a", "b") == uid_of("ab", None) == "187ef4436122d1cc2f40dc2b92f0eba0"

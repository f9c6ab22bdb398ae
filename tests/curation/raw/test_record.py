"""Records of raw shards: read in both schemas, refused when they are damaged, compared with the files."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.curation.raw.record import (
    Recorded,
    check_rows,
    check_table_bytes,
    check_tar_size,
    parse_record,
    read_json,
)

WHOLE: dict[str, Any] = {
    "schema": 2,
    "count": 3,
    "successes": 2,
    "table": {"bytes": 5, "sha256": hashlib.sha256(b"table").hexdigest()},
    "tar": {"bytes": 9, "sha256": "0" * 64},
}


def parse(record: dict[str, Any]) -> Recorded:
    return parse_record(
        record, place="commits/00000.json", advice="fetch again", folder="raw", own=True, key_prefix="00000"
    )


def table(keys: list[str], statuses: list[str]) -> pa.Table:
    return pa.table({"key": keys, "status": statuses})


def test_a_record_is_read() -> None:
    recorded = parse(WHOLE)
    assert (recorded.rows, recorded.successes, recorded.tar_bytes) == (3, 2, 9)
    assert recorded.has_sums
    assert recorded.fixes_images


@pytest.mark.parametrize("record", [{}, {"count": 3, "successes": 2}, {"rows": 3}])
def test_a_record_of_an_older_job_has_no_sums(record: dict[str, Any]) -> None:
    recorded = parse(record)
    assert (recorded.rows, recorded.has_sums, recorded.fixes_images) == (record.get("count"), False, False)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"count": None},
        {"count": True},
        {"successes": -1},
        {"table": None},
        {"table": {"bytes": 5}},
        {"table": {"bytes": 5, "sha256": "0"}},
        {"table": {"bytes": "5", "sha256": "0" * 64}},
        {"tar": []},
        {"tar": {}},
    ],
)
def test_a_damaged_record_names_itself(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^commits/00000\.json: (damaged|record of schema)"):
        parse({**WHOLE, **change})


@pytest.mark.parametrize("data", [b"tablE", b"tabl", b"", b"table\0"])
def test_other_bytes_are_another_table(data: bytes) -> None:
    check_table_bytes(b"table", "raw/00000.parquet", parse(WHOLE))
    with pytest.raises(ValueError, match=r"^raw/00000\.parquet: not the table that was finished.*fetch again$"):
        check_table_bytes(data, "raw/00000.parquet", parse(WHOLE))


@pytest.mark.parametrize(
    ("keys", "statuses", "message"),
    [
        (["000000000"], ["success"], "1 rows, commits/00000.json says 3"),
        (["000000000", "000000001", "000000002"], ["success"] * 3, "3 images, commits/00000.json says 2"),
        (["000000000", "000010001", "000000002"], ["success", "success", "x"], "keys of another raw shard"),
    ],
)
def test_other_rows_are_named(keys: list[str], statuses: list[str], message: str) -> None:
    check_rows(table(["000000000", "000000001", "000000002"], ["success", "success", "x"]), "t", parse(WHOLE))
    with pytest.raises(ValueError, match=message):
        check_rows(table(keys, statuses), "t", parse(WHOLE))


def test_a_tar_has_its_size(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with pytest.raises(FileNotFoundError, match=r"00000\.tar is missing; fetch again"):
        check_tar_size(str(path), parse(WHOLE))
    path.write_bytes(bytes(8))
    with pytest.raises(ValueError, match=r"00000\.tar: 8 bytes, commits/00000\.json says 9; fetch again"):
        check_tar_size(str(path), parse(WHOLE))
    path.write_bytes(bytes(9))
    check_tar_size(str(path), parse(WHOLE))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "missing"), ("", "damaged"), ("[1]", "damaged"), ("[" * 9**6, "damaged")]
)
def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json.* ?{message}"):
        read_json(str(path))

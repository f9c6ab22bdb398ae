"""Promises of the spool: what was appended is there again, what was torn is cut, nothing wrong is taken."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.blocklist import BlocklistConfig
from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.spool import Spool, identity
from headrace.curation.raw.write import Outcome
from headrace.shards.images.header import ImageHeader


def fetched(image: bytes) -> Outcome:
    header = ImageHeader("jpeg", 3, 4, 6)
    return Outcome(header=header, original=header, sha256=hashlib.sha256(image).hexdigest(), size=len(image))


RECORDS = [
    ([0], fetched(b"first"), b"first"),
    ([3, 1], fetched(b"second" * 100), b"second" * 100),
    ([2], Outcome("http-4xx", "HTTP 404 \u20ac"), None),
    ([7], fetched(b""), b""),
]


def write(path: Path) -> Spool:
    spool = Spool(path, "mine")
    for rows, outcome, image in RECORDS:
        spool.add(rows, outcome, image)
    return spool


def taken(spool: Spool) -> dict[int, tuple[str | None, bytes | None]]:
    return {
        row: (outcome.error_class, None if outcome.header is None else spool.read(outcome))
        for row, outcome in sorted(spool.known.items())
    }


WHOLE = {
    row: (outcome.error_class, image) for rows, outcome, image in sorted(RECORDS, key=lambda r: r[0]) for row in rows
}


def test_two_owners_of_one_spool_never_read_each_others_bytes(tmp_path: Path) -> None:
    sleeping = write(tmp_path / "s")
    other = Spool(tmp_path / "s", "mine")  # of who took over
    waking = sleeping.add([9], *RECORDS[1][1:])
    for rows, outcome, image in RECORDS[::-1]:
        other.add(rows, outcome, image)
    again = sleeping.add([10], *RECORDS[0][1:])
    assert (sleeping.read(waking), sleeping.read(again)) == (RECORDS[1][2], RECORDS[0][2])
    other.remove()
    sleeping.close()
    last = Spool(tmp_path / "s", "mine")
    assert {9, 10} <= last.known.keys()
    last.close()


@given(st.integers(0, 3000), st.booleans())
def test_a_spool_cut_anywhere_gives_its_whole_records_and_goes_on(tmp_path_factory, cut: int, flip: bool) -> None:
    path = tmp_path_factory.mktemp("spool") / "00000.rows"
    write(path).close()
    data = bytearray(path.read_bytes())
    cut %= len(data)
    if flip:
        data[cut] ^= 0x20
    else:
        del data[cut:]
    path.write_bytes(data)
    again = Spool(path, "mine")
    found = taken(again)
    assert found.items() <= dict(WHOLE).items()
    assert flip or len(found) < len(WHOLE)
    again.add([9], fetched(b"later"), b"later")
    again.close()
    last = Spool(path, "mine")
    assert taken(last) == {**found, 9: (None, b"later")}
    last.close()


def test_a_spool_of_other_rows_or_settings_begins_anew(tmp_path: Path) -> None:
    rows, config = [("http://a/", None, None)], FetchConfig()
    first = identity(rows, config)
    assert first == identity(rows, FetchConfig(concurrency=3, deadline_seconds=9.0))
    assert first != identity(rows, FetchConfig(image_size=99))
    assert first != identity([("http://b/", None, None)], config)
    listed = tmp_path / "blocked.txt"
    listed.write_text("0" * 64 + "\n")
    blocking = FetchConfig(blocklist=BlocklistConfig(sha256=(str(listed),)))
    before = identity(rows, blocking)
    listed.write_text("0" * 64 + "\n" + "1" * 64 + "\n")
    assert before != identity(rows, blocking)  # what was spooled was not compared with the new line
    write(tmp_path / "s").close()
    other = Spool(tmp_path / "s", "theirs")
    assert other.known == {}
    other.close()
    mine = Spool(tmp_path / "s", "mine")
    assert mine.known == {}
    mine.close()


def test_an_image_that_is_another_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "s").close()
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data.replace(b"secondsecond", b"SECONDsecond", 1))
    spool = Spool(tmp_path / "s", "mine")
    assert set(spool.known) == {0}
    spool.close()


def test_a_disk_that_fills_up_is_an_error_that_names_the_spool(tmp_path: Path, no_more_than) -> None:
    spool = write(tmp_path / "s")
    no_more_than(4096)
    spool.add([10], fetched(b"x" * 1000), b"x" * 1000)
    with pytest.raises(OSError, match="File too large"):
        spool.add([11], fetched(b"x" * 9000), b"x" * 9000)
    spool.close()
    again = Spool(tmp_path / "s", "mine")
    assert taken(again).items() >= dict(WHOLE).items()
    again.close()

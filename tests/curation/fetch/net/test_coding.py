"""Compressed bodies: undone in any pieces, under a cap, and never cut in silence."""

import contextlib
import gzip
import io
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.coding import Inflate, decoders


def inflate(coding: str, pieces: list[bytes], limit: int = 1 << 20) -> bytes:
    stream = Inflate(coding, limit)
    return b"".join(stream.feed(piece) for piece in pieces) + stream.finish()


def full_gzip(data: bytes) -> bytes:
    """A member with every field that a header may have."""
    sink = io.BytesIO()
    with gzip.GzipFile("name", "wb", fileobj=sink, mtime=1) as file:
        file.write(data)
    plain = sink.getvalue()
    extra, names = b"\x03\x00abc", plain[10:15] + b"comment\0"
    header = plain[:3] + bytes([4 | 8 | 16 | 2]) + plain[4:10] + extra + names + b"\0\0"
    return header + plain[15:]


def raw(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


FORMS = {
    "gzip": gzip.compress,
    "every header field": full_gzip,
    "two members": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "zlib": zlib.compress,
    "raw": raw,
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=300), step=st.integers(1, 40))
def test_the_data_comes_back_from_pieces_of_any_size(form: str, data: bytes, step: int) -> None:
    packed = FORMS[form](data)
    pieces = [packed[start : start + step] for start in range(0, len(packed), step)]
    coding = "deflate" if form in ("zlib", "raw") else "gzip"
    assert inflate(coding, pieces) == data
    assert inflate("deflate", pieces) == data


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(min_size=1, max_size=100), draw=st.data())
def test_a_stream_without_its_end_is_cut(form: str, data: bytes, draw: st.DataObject) -> None:
    packed = FORMS[form](data)
    trailer = {"zlib": 4, "raw": 0}.get(form, 8)
    cut = draw.draw(st.integers(1, len(packed) - trailer - 1))
    coding = "deflate" if form in ("zlib", "raw") else "gzip"
    if form == "two members" and len(gzip.compress(data[:9])) - 8 <= cut <= len(gzip.compress(data[:9])) + 1:
        return  # between two members a cut cannot be seen; the image's own end is looked for later
    with pytest.raises(FetchError) as caught:
        inflate(coding, [packed[:cut]])
    assert caught.value.error_class in ("truncated", "protocol")


@given(st.binary(min_size=1, max_size=100).filter(lambda rest: rest[0] != 0x1F))
def test_what_stands_behind_the_end_is_dropped(rest: bytes) -> None:
    assert inflate("gzip", [gzip.compress(b"data"), rest]) == b"data"
    assert inflate("deflate", [raw(b"data") + rest]) == b"data"


def test_a_wrong_check_sum_is_refused() -> None:
    packed = gzip.compress(b"data")
    for place in (-8, -1):
        wrong = bytearray(packed)
        wrong[place] ^= 1
        with pytest.raises(FetchError, match="does not decompress"):
            inflate("gzip", [bytes(wrong)])


def test_no_more_than_the_cap_and_a_byte_ever_comes_out() -> None:
    bomb = zlib.compress(bytes(50 << 20))
    for step in (100, len(bomb)):
        pieces = [bomb[start : start + step] for start in range(0, len(bomb), step)]
        assert len(inflate("deflate", pieces, limit=1000)) == 1001


def test_an_endless_gzip_header_is_refused() -> None:
    endless = b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 100_000
    with pytest.raises(FetchError, match="does not decompress"):
        inflate("gzip", [endless])


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_any_bytes_at_all_are_data_or_a_failure(pieces: list[bytes]) -> None:
    for coding in ("gzip", "deflate"):
        with contextlib.suppress(FetchError):
            assert isinstance(inflate(coding, pieces), bytes)


@pytest.mark.parametrize("words", [["br"], ["gzip", "zstd"], ["gzip", "gzip", "gzip"]])
def test_codings_that_cannot_be_undone_are_named(words: list[str]) -> None:
    with pytest.raises(FetchError, match=words[-1]):
        decoders(words, 10)


def test_words_that_are_no_codings_change_nothing() -> None:
    assert decoders(["utf-8", "none", "identity"], 10) == []
    assert len(decoders(["utf-8", "gzip"], 10)) == 1


def test_many_empty_members_before_the_data_cost_what_is_in_them() -> None:
    """What waits behind a member was copied for each: 0.6 s for 256 kB, and four times that for twice as many."""
    many = gzip.compress(b"") * (1 << 15)
    decoder = Inflate("gzip", 100)
    began = time.process_time()
    assert decoder.feed(many + gzip.compress(b"the data")) + decoder.finish() == b"the data"
    assert time.process_time() - began < 3


@pytest.mark.parametrize("size", [511, 513, 5000, 60_000])
def test_a_long_name_in_a_gzip_header_is_passed_over(size: int) -> None:
    plain = gzip.compress(b"the data")
    named = plain[:3] + bytes([8]) + plain[4:10] + b"n" * size + b"\0" + plain[10:]
    decoder = Inflate("gzip", 100)
    assert decoder.feed(named) + decoder.finish() == b"the data"

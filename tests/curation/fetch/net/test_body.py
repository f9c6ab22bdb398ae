"""Bodies, cut into pieces anywhere by the network."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.body import Body
from headrace.curation.fetch.net.connection import Connection
from headrace.curation.fetch.net.head import Framing

CHUNKED = Framing(chunked=True)


def read(pieces: list[bytes], framing: Framing, *, end: bool = True) -> tuple[bytes, bool, bytes]:
    """Return the body, whether it is clean, and what stands behind it."""

    async def run() -> tuple[bytes, bool, bytes]:
        connection = Connection()
        body = Body(connection, framing)
        loop = asyncio.get_running_loop()
        for piece in pieces:
            loop.call_soon(connection.data_received, piece)
        if end:
            loop.call_soon(connection.eof_received)
        found = bytearray()
        async with asyncio.timeout(10):
            while piece := await body.piece():
                found += piece
        return bytes(found), body.clean, bytes(connection.buffer)

    return asyncio.run(run())


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(places)]


def chunked(data: bytes, sizes: list[int]) -> bytes:
    out, start = b"", 0
    while start < len(data):
        size = min(sizes[start % len(sizes)], len(data) - start)
        out += b"%x\r\n%s\r\n" % (size, data[start : start + size])
        start += size
    return out + b"0\r\n\r\n"


@given(
    st.binary(max_size=200),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.lists(st.integers(0, 999), max_size=9),
)
def test_a_body_is_the_same_however_it_is_cut_into_pieces(data: bytes, sizes: list[int], cuts: list[int]) -> None:
    assert read(split(chunked(data, sizes), cuts), CHUNKED, end=False) == (data, True, b"")
    assert read(split(data, cuts), Framing(length=len(data)), end=False) == (data, True, b"")
    assert read(split(data, cuts), Framing()) == (data, False, b"")


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(1, 50), min_size=1, max_size=5), st.data())
def test_a_body_that_is_cut_is_never_shorter_in_silence(data: bytes, sizes: list[int], draw: st.DataObject) -> None:
    whole = chunked(data, sizes)
    cut = draw.draw(st.integers(0, len(whole) - 1))
    if cut >= len(whole) - 3:  # behind the last chunk's size
        assert read([whole[:cut]], CHUNKED)[0] == data
    else:
        with pytest.raises(FetchError) as caught:
            read([whole[:cut]], CHUNKED)
        assert (caught.value.error_class, caught.value.retryable) == ("truncated", True)
    with pytest.raises(FetchError):
        read([data[: cut % len(data)]], Framing(length=len(data)))


@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20))
def test_what_stands_behind_a_body_is_left_there_and_the_connection_is_not_clean(data: bytes, more: bytes) -> None:
    assert read([data + more], Framing(length=len(data)), end=False) == (data, False, more)
    assert read([chunked(data, [7]) + more], CHUNKED, end=False) == (data, False, more)


def test_lenient_ends_are_not_clean() -> None:
    for ending in (b"0\n\n", b"0\r\n\n", b"0\n\r\n"):
        assert read([b"2\r\nab\r\n" + ending], CHUNKED, end=False) == (b"ab", False, b"")
    assert read([b"2\nab\r\n0\r\n\r\n"], CHUNKED, end=False) == (b"ab", False, b"")
    assert read([b"ab"], Framing(length=2, odd=True), end=False) == (b"ab", False, b"")


def test_lines_after_the_last_chunk_have_a_cap() -> None:
    with pytest.raises(FetchError, match="over 200 lines"):
        read([b"0\r\n" + b"a: b\r\n" * 300], CHUNKED)
    with pytest.raises(FetchError, match="over 16384 bytes"):
        read([b"0;" + b"a" * 20_000], CHUNKED)


def test_a_broken_connection_is_truncated() -> None:
    async def run() -> None:
        connection = Connection()
        connection.data_received(b"a")
        connection.connection_lost(ConnectionResetError(104, "reset"))
        body = Body(connection, Framing(length=2))
        assert await body.piece() == b"a"
        await body.piece()

    with pytest.raises(FetchError, match="broke inside the body") as caught:
        asyncio.run(run())
    assert caught.value.retryable

"""A file by ranges reads as the file does."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import ranged_file
from headrace.ranged_file import RangedFile


@given(
    data=st.binary(max_size=200),
    steps=st.lists(st.tuples(st.integers(0, 250), st.integers(-1, 90)), max_size=20),
    num_blocks=st.integers(0, 3),
    block_bytes=st.integers(1, 64),
)
def test_it_reads_as_the_file_does(
    data: bytes, steps: list[tuple[int, int]], num_blocks: int, block_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged_file, "BLOCK_BYTES", block_bytes)
        made = RangedFile("a", len(data), lambda _, offset, size: data[offset : offset + size], num_blocks=num_blocks)
        plain = io.BytesIO(data)
        for position, size in steps:
            assert made.seek(position) == plain.seek(position)
            assert made.read(size) == plain.read(size)


def test_a_file_that_became_shorter_is_said() -> None:
    with pytest.raises(OSError, match=r"^http://h/a: asked for 10 bytes at byte 0, got 3: the file changed"):
        RangedFile("http://h/a", 10, lambda _url, _offset, _size: b"abc", num_blocks=1).read()

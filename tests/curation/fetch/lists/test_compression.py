"""A compressed list gives the rows inside, whole or not at all."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from list_reading import read, read_text

from headrace.curation.fetch.lists.compression import compression_of, decompressed

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
LINES = b"url,caption\n" + b"".join(b"http://a.example/%d.jpg,caption %d\n" % (row, row) for row in range(5000))


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_the_name_tells_the_compression(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    rows, _ = read_text(tmp_path, f"l.csv{suffix}", compress(LINES))
    assert [row["url"] for row in rows] == [f"http://a.example/{row}.jpg" for row in range(5000)]
    cut = LINES.index(b"\n", 9000) + 1
    in_parts = compress(LINES[:cut]) + compress(b"") + compress(LINES[cut:])
    assert len(read_text(tmp_path, f"parts.csv{suffix}", in_parts)[0]) == 5000
    assert (tmp_path / f"L.JSONL{suffix.upper()}").write_bytes(compress(b'{"url": "http://a/", "caption": "x"}'))
    assert read(tmp_path / f"L.JSONL{suffix.upper()}")[0]["caption"] == "x"


@pytest.mark.parametrize("suffix", list(COMPRESS))
@pytest.mark.parametrize("damage", ["cut", "cut second", "rubbish", "rubbish at the end"])
def test_a_damaged_one_is_refused_by_name(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = COMPRESS[suffix](LINES)
    data = {
        "cut": whole[:-9],
        "cut second": whole + whole[: len(whole) // 2],
        "rubbish": b"url,caption\nhttp://a/,x\n",
        "rubbish at the end": whole + b"http://a/,x\n",
    }[damage]
    name = f"l.csv{suffix}"
    with pytest.raises(ValueError, match=r"l\.csv\.\w+: (cannot be read as csv, compressed with|no column)") as caught:
        read_text(tmp_path, name, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".gz"])
def test_zeros_may_pad_a_file(suffix: str) -> None:
    stream = io.BytesIO(COMPRESS[suffix](LINES) + bytes(512))
    assert decompressed(stream, compression_of(f"x{suffix}")[1]).read() == LINES


def test_a_compressed_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.parquet.zst").write_bytes(b"x")
    with pytest.raises(ValueError, match="compressed inside; unpack it"):
        read(tmp_path / "l.parquet.zst")

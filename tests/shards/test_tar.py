"""Tar shards: every corruption is seen, names are only identifiers, and the answer is tarfile's."""

import contextlib
import io
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.shards.errors import ShardError
from headrace.shards.tar import BLOCK, ShardWriter, scan_tar


@pytest.fixture
def ten_samples(tmp_path: Path) -> bytes:
    """Ten samples of jpg and cls as webdataset writes them: jpg comes before cls in no sorted order, so by hand."""
    path = tmp_path / "ten.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(10):
            for extension, payload in (("jpg", bytes([number]) * 700), ("cls", b"1")):
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return path.read_bytes()


# A sample is a header, two blocks of jpg, a header, one block of cls.
SAMPLE_BYTES = 5 * BLOCK
CUT = 5 * SAMPLE_BYTES


def _scan(path: Path, data: bytes, **options: bool) -> list[str]:
    target = path / "shard.tar"
    target.write_bytes(data)
    return [member.name for member in scan_tar(str(target), **options)]


def test_a_whole_tar_is_read(tmp_path: Path, ten_samples: bytes) -> None:
    assert len(_scan(tmp_path, ten_samples)) == 20


def test_a_cut_at_a_boundary_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    with pytest.raises(ShardError, match=rf"shard.tar: at byte {CUT}: truncated: no end-of-archive"):
        _scan(tmp_path, ten_samples[:CUT])
    assert len(_scan(tmp_path, ten_samples[:CUT], allow_missing_end=True)) == 10


def test_a_cut_between_jpg_and_cls_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    with pytest.raises(ShardError, match="truncated: no end-of-archive"):
        _scan(tmp_path, ten_samples[: CUT + 3 * BLOCK])


def test_a_cut_inside_a_header_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    for allow in (False, True):
        with pytest.raises(ShardError, match=rf"at byte {CUT}: truncated inside a header: 100 of 512"):
            _scan(tmp_path, ten_samples[: CUT + 100], allow_missing_end=allow)


def test_a_cut_inside_a_payload_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    for allow in (False, True):
        with pytest.raises(ShardError, match=r"truncated: '00005.jpg' needs 700 bytes, the file has 188 more"):
            _scan(tmp_path, ten_samples[: CUT + BLOCK + 188], allow_missing_end=allow)


def test_one_flipped_byte_of_a_header_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    for place in (0, 99, 110, 130, 150, 156, 260, 400, 511):
        damaged = bytearray(ten_samples)
        damaged[CUT + place] ^= 0x10
        with pytest.raises(ShardError, match=rf"at byte {CUT}: (damaged|not a) tar header|at byte {CUT}: sparse"):
            _scan(tmp_path, bytes(damaged))


def test_a_stray_zero_block_is_seen(tmp_path: Path, ten_samples: bytes) -> None:
    for blocks in (1, 2, 7):
        damaged = ten_samples[:CUT] + bytes(blocks * BLOCK) + ten_samples[CUT:]
        with pytest.raises(ShardError, match=f"zero block at byte {CUT} ends the tar, yet data follows"):
            _scan(tmp_path, damaged)


def test_every_cut_is_seen_up_to_the_end_blocks(tmp_path: Path, ten_samples: bytes) -> None:
    end = 10 * SAMPLE_BYTES + 2 * BLOCK
    for size in [0, 1, *range(BLOCK, end, 256), end - 1]:
        with pytest.raises(ShardError):
            _scan(tmp_path, ten_samples[:size])
    assert len(_scan(tmp_path, ten_samples[:end])) == 20


# webdataset leaves its file to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_misses_what_we_see(tmp_path: Path, ten_samples: bytes) -> None:
    """The reason for the check: webdataset gives five samples and no error."""
    import webdataset

    path = tmp_path / "cut.tar"
    path.write_bytes(ten_samples[:CUT])
    assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) == 5


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    names = ["../../etc/passwd.jpg", "/absolute.jpg", "a/../b.jpg", "back\\slash.jpg", "-rf.jpg", "n\u00e4me.jpg"]
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    assert _scan(tmp_path, sink.getvalue()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard.tar"]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    info = tarfile.TarInfo("\udcff.jpg")
    data = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + bytes(2 * BLOCK)
    assert _scan(tmp_path, data) == ["\\xff.jpg"]


def test_links_folders_and_devices_are_skipped(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("x.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("real.jpg"))
    assert _scan(tmp_path, sink.getvalue()) == ["real.jpg"]


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\x80" + b"\0" * 6 + b"\x7f" + b"\xff" * 4]
)
def test_huge_sizes_are_truncation(tmp_path: Path, size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("big.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    with pytest.raises(ShardError, match=r"truncated: 'big\.jpg' needs"):
        _scan(tmp_path, _signed(header) + bytes(4 * BLOCK))


@pytest.mark.parametrize("size", [b"-0000000001\0", b"0x00000001 \0", b"\xff" * 12, b"00000000008\0"])
def test_sizes_that_are_no_numbers_are_refused(tmp_path: Path, size: bytes) -> None:
    header = bytearray(tarfile.TarInfo("odd.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    with pytest.raises(ShardError, match="not an octal number"):
        _scan(tmp_path, _signed(header) + bytes(4 * BLOCK))


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("holes.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(ShardError, match="sparse"):
        _scan(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK))
    info = tarfile.TarInfo("holes.jpg")
    info.pax_headers = {"GNU.sparse.major": "1"}
    with pytest.raises(ShardError, match="sparse"):
        _scan(tmp_path, info.tobuf(tarfile.PAX_FORMAT) + bytes(2 * BLOCK))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"99 path=x\n", "damaged pax header"),
        (b"0 path=x\n", "damaged pax header"),
        (b"path\n", "damaged pax header"),
        (b"12 path=a\0b\n", "NUL in the member name"),
        (b"11 size=-1\n", "pax size '-1' is not a number"),
        (b"39 size=999999999999999999999999999999\n", "not a number"),
    ],
)
def test_damaged_pax_headers_are_refused(tmp_path: Path, records: bytes, message: str) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    extended = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(BLOCK, b"\0")
    with pytest.raises(ShardError, match=message):
        _scan(tmp_path, extended + tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK))


def test_extended_headers_are_bounded(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with pytest.raises(ShardError, match="extended header of 1073741824 bytes"):
        _scan(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK))


def test_an_extended_header_without_its_member_is_truncation(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x" * 150)
    data = info.tobuf(tarfile.GNU_FORMAT)[: 2 * BLOCK]
    with pytest.raises(ShardError, match="without its member"):
        _scan(tmp_path, data + bytes(2 * BLOCK))


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ", b"(\xb5/\xfd"])
def test_a_compressed_tar_is_named_as_such(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(ShardError, match="compressed"):
        _scan(tmp_path, start.ljust(4096, b"x"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    layout=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_scan_agrees_with_tarfile(tmp_path: Path, members: list[tuple[str, bytes]], layout: int) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=layout) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    target = tmp_path / "any.tar"
    target.write_bytes(sink.getvalue())
    with tarfile.open(target) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [(member.name, member.offset, member.size) for member in scan_tar(str(target))] == expected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_tars_scan_or_raise_shard_error(tmp_path: Path, ten_samples: bytes, data: st.DataObject) -> None:
    mutated = bytearray(ten_samples[: data.draw(st.integers(0, 8 * BLOCK))] + bytes(2 * BLOCK))
    for _ in range(data.draw(st.integers(0, 5))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    target = tmp_path / "mutated.tar"
    target.write_bytes(mutated)
    try:
        members = scan_tar(str(target))
    except ShardError:
        return
    assert all(member.offset + member.size <= len(mutated) for member in members)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.dictionaries(
        st.text("abcXYZ019-_", min_size=1, max_size=20),
        st.dictionaries(st.sampled_from(["jpg", "txt", "json", "cls"]), st.binary(max_size=2000), min_size=1),
        max_size=6,
    )
)
def test_what_is_written_is_read_where_it_was_said_to_be(tmp_path: Path, contents: dict[str, dict[str, bytes]]) -> None:
    path = tmp_path / "written.tar"
    with ShardWriter(path) as writer:
        placed = {key: writer.write(key, members) for key, members in contents.items()}
    data = path.read_bytes()
    assert writer.num_bytes == len(data)
    for key, members in contents.items():
        for extension, payload in members.items():
            place = placed[key][extension]
            assert data[place.offset : place.offset + place.size] == payload
    expected = [member for members in placed.values() for _, member in sorted(members.items())]
    assert scan_tar(str(path)) == expected


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\0b", "x" * 89, "\u00e4" * 45])
def test_keys_that_webdataset_would_cut_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer, pytest.raises(ValueError, match="a key must have"):
        writer.write(key, {"jpg": b""})


def test_the_longest_key_fits(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write("x" * 88, {"jpg": b"", "json": b""})
    assert len(scan_tar(str(tmp_path / "a.tar"))) == 2


def test_a_writer_left_by_an_exception_leaves_no_whole_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"

    def fail() -> None:
        with ShardWriter(path) as writer:
            writer.write("a", {"jpg": b"x"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(ShardError):
        scan_tar(str(path))


def test_a_writer_that_meets_a_full_disk_leaves_no_file_open(
    tmp_path: Path, no_more_than: Callable[[int], None]
) -> None:
    with contextlib.suppress(OSError), ShardWriter(tmp_path / "a.tar") as writer:
        writer.write("a", {"jpg": bytes(4 * BLOCK)})
        no_more_than(5 * BLOCK)  # the end of the archive does not fit
    no_more_than(resource.RLIM_INFINITY)
    assert writer._sink.file.closed


def _signed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)

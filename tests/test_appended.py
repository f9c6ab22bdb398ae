"""Lines are appended whole, whatever the disk has room for."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.appended import AppendedFile


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets how large a file may become; then the disk is full."""
    write, limit = os.pwrite, [1 << 40]

    def short(handle: int, data: bytes, offset: int) -> int:
        if offset >= limit[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[: limit[0] - offset], offset)

    monkeypatch.setattr(os, "pwrite", short)
    return lambda size: limit.__setitem__(0, size)


def test_a_full_disk_leaves_no_half_line_and_is_named(tmp_path: Path, room: Callable[[int], None]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("before\n")
    file = AppendedFile(path)
    file.append("one\n")
    room(13)
    with pytest.raises(OSError, match=r"a\.jsonl: cannot be written: No space left on device; make room") as caught:
        file.append("two\n")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before\none\n"
    file.close()
    file.close()


def test_a_patient_file_writes_everything_when_there_is_room(
    tmp_path: Path, room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    file = AppendedFile(path, patient=True)
    room(6)
    for line in ("one\n", "two\n", "three\n"):
        file.append(line)
    assert path.read_text() == "one\n"
    assert caplog.text.count("kept in memory until there is room") == 1
    room(1 << 40)
    file.append("")
    assert path.read_text() == "one\ntwo\nthree\n"
    room(0)
    file.append("four\n")
    file.close()
    assert "5 bytes could not be written" in caplog.text


def test_another_error_is_raised_by_a_patient_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    file = AppendedFile(path, patient=True)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output error"):
        file.append("one\n")

"""Numbers as TensorBoard reads them: an event file in the folder of the run.

It says what `metrics.jsonl` says, and is made anew from that at each start, so a step that was done twice stands there
once. A TensorBoard that is open meanwhile follows: the new file's name sorts behind the old one's, and its first event
is a session start at step 0, which tells readers to forget what they have.

The format is TFRecord (length, masked crc32c of it, data, masked crc32c of it) around `Event` protocol buffers, with
the field numbers of tensorflow/core/util/event.proto and framework/summary.proto. Written here because TensorBoard's
own writer brings it along with grpc and protobuf, for five fields.
"""

import contextlib
import math
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.appended import AppendedFile
from headrace.atomic import write_atomic

PATTERN = "events.out.tfevents.*.headrace"
EVENTS = ("train", "validation", "gradients", "monitor")
"""Lines that are drawn; of an event with a name, such as monitor/knn, what stands before it."""
NOT_DRAWN = frozenset({"step", "unix_seconds", "batch_digest"})
# Field numbers and wire types, as one byte each.
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = b"\x09", b"\x10", b"\x1a", b"\x2a", b"\x3a"
VALUE, TAG, SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"
SESSION_START = b"\x08\x01"
CASTAGNOLI = 0x82F63B78


class EventFile:
    """The event file of a run: holds `lines` from the start, and those that are added."""

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]], *, patient: bool = False) -> None:
        old = sorted(folder.glob(PATTERN))
        now = max([int(time.time()), *(_seconds(path) + 1 for path in old)])
        path = folder / PATTERN.replace("*", f"{now:010d}")
        write_atomic(str(path), b"".join(_records(lines, now)))
        for stale in old:
            with contextlib.suppress(FileNotFoundError):
                stale.unlink()
        self._file = AppendedFile(path, patient=patient)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append the numbers of a line of metrics, visible to readers at once."""
        if _is_drawn(line):
            self._file.append(_record(_event(line, time.time())))

    def retry(self) -> None:
        """Write what a full disk kept from being written."""
        self._file.append(b"")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _seconds(path: Path) -> int:
    with contextlib.suppress(ValueError):
        return int(path.name.split(".")[3])
    return 0


def _records(lines: Sequence[Mapping[str, Any]], now: float) -> Iterator[bytes]:
    drawn = [line for line in lines if _is_drawn(line)]
    at = next((float(line["unix_seconds"]) for line in drawn if "unix_seconds" in line), now)
    yield _record(WALL_TIME + struct.pack("<d", at) + FILE_VERSION + _sized(b"brain.Event:2"))
    yield _record(WALL_TIME + struct.pack("<d", at) + STEP + _varint(0) + SESSION_LOG + _sized(SESSION_START))
    for line in drawn:
        at = float(line.get("unix_seconds", at))
        yield _record(_event(line, at))


def _is_drawn(line: Mapping[str, Any]) -> bool:
    return line["event"].partition("/")[0] in EVENTS


def _event(line: Mapping[str, Any], at: float) -> bytes:
    values = b"".join(
        VALUE + _sized(TAG + _sized(f"{line['event']}/{name}".encode()) + SIMPLE_VALUE + struct.pack("<f", number))
        for name, number in _numbers(line).items()
    )
    return WALL_TIME + struct.pack("<d", at) + STEP + _varint(line["step"]) + SUMMARY + _sized(values)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what is drawn: numbers, and nan for one that was not finite; too large for 32 bits is infinite."""
    numbers = {}
    for name, value in line.items():
        if type(value) in (int, float) and name not in NOT_DRAWN:
            numbers[name] = float(value) if abs(value) < 3.4e38 else math.copysign(math.inf, value)
    if line.get("loss", 0.0) is None:
        numbers["loss"] = math.nan
    return numbers


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data` (RFC 3720, appendix B.4); `zlib.crc32` has another polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()

"""Tar shards: headers read strictly, written with fixed metadata.

A name is an identifier, never a path. A shard is whole only if it ends in two zero blocks with nothing but zeros
after them; a reader that stops at the first odd block (tarfile, webdataset) silently loses the rest. Links, folders and
devices carry no payload; links and devices are named where that is asked for, as they may stand for a file.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.shards.errors import ShardError
from headrace.shards.windows import Windows

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20
MAX_KEY_BYTES = 88

_ZERO_BLOCK = bytes(BLOCK)
_REGULAR = b"0\x007"
_WITHOUT_PAYLOAD = b"123456"
_FOLDER = b"5"
_EXTENDED = b"xgLKX"


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file: its name as written, and where its payload lies in the tar."""

    name: str
    offset: int
    size: int
    link: bool = False
    """No regular file: a hard or symbolic link, a device, an unknown kind."""


def scan_tar(url: str, *, allow_missing_end: bool = False, with_links: bool = False) -> list[TarMember]:
    """Return the regular members of a tar, reading headers only; `with_links` also what has a name and no payload.

    Raises ShardError on truncation or rubbish. `allow_missing_end` accepts a tar that stops at a member's boundary
    without the two zero blocks, for writers that leave them out; a cut there then goes unnoticed.
    """
    with Windows(url) as windows:
        return list(iterate_members(windows, allow_missing_end=allow_missing_end, with_links=with_links))


def iterate_members(
    windows: Windows, *, allow_missing_end: bool = False, with_links: bool = False
) -> Iterator[TarMember]:
    """Yield the members in order, as `scan_tar` does; the check of the tar's end comes after the last one."""
    position, extended, defaults = 0, dict[str, str](), dict[str, str]()
    while True:
        block = windows.read(position, BLOCK)
        if len(block) < BLOCK or block == _ZERO_BLOCK:
            if extended:
                raise ShardError("truncated: an extended header without its member", shard=windows.url, offset=position)
            _check_end(windows, position, block, allow_missing_end)
            return
        header = _parse_header(block, windows.url, position)
        payload = position + BLOCK
        if header.kind in _EXTENDED:
            body = _extended_body(windows, payload, header)
            _merge_extended(header.kind, body, extended, defaults, f"{windows.url}: at byte {position}")
            position = payload + _padded(header.size)
            continue
        name, size = _apply_extended(header, {**defaults, **extended}, windows.url, position)
        extended = {}
        regular = header.kind in _REGULAR and not (header.kind == b"\0" and name.endswith("/"))
        if header.kind in _WITHOUT_PAYLOAD or (header.kind in _REGULAR and not regular):
            if with_links and header.kind in _WITHOUT_PAYLOAD and header.kind != _FOLDER:
                yield TarMember(name, payload, 0, link=True)
            position = payload
            continue
        if payload + size > windows.size:
            raise ShardError(
                f"truncated: {name!r} needs {size} bytes, the file has {windows.size - payload} more",
                shard=windows.url,
                offset=payload,
            )
        if regular or with_links:
            yield TarMember(name, payload, size, link=not regular)
        position = payload + _padded(size)


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    kind: bytes


def _parse_header(block: bytes, url: str, position: int) -> _Header:
    if position == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
        raise ShardError("compressed: a shard must be a plain tar to be read by ranges; unpack it", shard=url, offset=0)
    try:
        written = _number(block[148:156])
        size = _number(block[124:136])
    except ValueError as error:
        raise ShardError(f"not a tar header: {error}", shard=url, offset=position) from error
    # 256 = the checksum field itself, counted as eight spaces.
    unsigned = 256 + sum(block[:148]) + sum(block[156:])
    if written != unsigned and written != unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise ShardError(
            f"damaged tar header: checksum is {unsigned}, the header says {written}", shard=url, offset=position
        )
    if block[156:157] == b"S":
        raise ShardError("sparse members are not read; write the file out in full", shard=url, offset=position)
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, size, block[156:157])


def _number(field: bytes) -> int:
    """Read a numeric field: octal text, or base 256 where the first bit is set (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError(f"{field!r} is not an octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _extended_body(windows: Windows, payload: int, header: _Header) -> bytes:
    if header.size > MAX_EXTENDED_BYTES:
        raise ShardError(
            f"extended header of {header.size} bytes, over {MAX_EXTENDED_BYTES}", shard=windows.url, offset=payload
        )
    body = windows.read(payload, header.size)
    if len(body) < header.size:
        raise ShardError("truncated inside an extended header", shard=windows.url, offset=payload)
    return body


def _merge_extended(kind: bytes, body: bytes, extended: dict[str, str], defaults: dict[str, str], where: str) -> None:
    if kind == b"L":
        extended["path"] = _text(body)
    elif kind == b"g":
        defaults.update(_pax_records(body, where))
    elif kind in b"xX":
        extended.update(_pax_records(body, where))


def _pax_records(body: bytes, where: str) -> dict[str, str]:
    """Read `LENGTH KEY=VALUE\\n` records (POSIX.1-2001, pax)."""
    records: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position]:
        digits, space, _ = body[position : position + 24].partition(b" ")
        end = position + int(digits) if space and digits.isdigit() else 0
        keyword, equals, value = body[position + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(body) or not value.endswith(b"\n"):
            raise ShardError(f"{where}: damaged pax header")
        records[keyword.decode("utf-8", "backslashreplace")] = value[:-1].decode("utf-8", "backslashreplace")
        position = end
    return records


def _apply_extended(header: _Header, records: Mapping[str, str], url: str, position: int) -> tuple[str, int]:
    if any(keyword.startswith("GNU.sparse") for keyword in records):
        raise ShardError("sparse members are not read; write the file out in full", shard=url, offset=position)
    name, size = records.get("path", header.name), records.get("size")
    if "\0" in name:
        raise ShardError(f"NUL in the member name {name!r}", shard=url, offset=position)
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise ShardError(f"pax size {size[:40]!r} is not a number", shard=url, offset=position)
    return name, header.size if size is None else int(size)


def _check_end(windows: Windows, position: int, block: bytes, allow_missing_end: bool) -> None:
    if not block.strip(b"\0") and windows.size - position >= 2 * BLOCK:
        step = 64 * 1024
        for start in range(position, windows.size, step):
            data = windows.read(start, step)
            if data.strip(b"\0"):
                offset = start + len(data) - len(data.lstrip(b"\0"))
                raise ShardError(
                    f"a zero block at byte {position} ends the tar, yet data follows", shard=windows.url, offset=offset
                )
        return
    if block and len(block) < BLOCK:
        raise ShardError(
            f"truncated inside a header: {len(block)} of {BLOCK} bytes", shard=windows.url, offset=position
        )
    if not (allow_missing_end and position):
        found = "one" if block else "no"
        raise ShardError(
            f"truncated: {found} end-of-archive block, expected two (the file has {windows.size} bytes)",
            shard=windows.url,
            offset=position,
        )


class _HashingFile:
    """What TarWriter writes to: counts and hashes on the way to the file."""

    def __init__(self, path: str | Path) -> None:
        self.file = Path(path).open("wb")  # noqa: SIM115 (ShardWriter closes it)
        self.hash = hashlib.sha256()
        self.num_bytes = 0
        self.aborted = False

    def write(self, data: bytes) -> int:
        if self.aborted:  # tarfile's stream writes once more when it is collected
            return len(data)
        self.hash.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)


class ShardWriter:
    """Write samples to a local file through webdataset's TarWriter; equal samples give equal bytes.

    After `close()`, `num_bytes` and `sha256` are of the whole file. Left by an exception, the tar has no end and
    every reader here refuses it.
    """

    def __init__(self, path: str | Path) -> None:
        self._sink = _HashingFile(path)
        self._writer = webdataset_module("writer").TarWriter(
            self._sink, encoder=False, mtime=0, user="headrace", group="headrace", mode=0o444, compress=False
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:  # of a full disk too, which the end of the archive may be the first to meet
            self._sink.aborted = True
            self._sink.file.close()

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._sink.num_bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes written so far."""
        return self._sink.hash.hexdigest()

    def write(self, key: str, members: Mapping[str, bytes]) -> dict[str, TarMember]:
        """Append one sample, its members sorted by extension; return where each payload lies."""
        check_key(key)
        position = int(self._writer.tarstream.offset)
        placed = {}
        for extension in sorted(members):
            size = len(members[extension])
            placed[extension] = TarMember(f"{key}.{extension}", position + BLOCK, size)
            position += BLOCK + _padded(size)
        self._writer.write({"__key__": key, **members})
        assert position == self._writer.tarstream.offset, "a member took more than one header block"
        return placed

    def close(self) -> None:
        """Write the end of the archive and close the file."""
        self._writer.close()
        self._sink.file.close()


def check_key(key: str) -> str:
    """Return `key` if it may name our samples: webdataset cuts at the first dot, a ustar name holds 100 bytes."""
    if not key or "/" in key or "." in key or "\0" in key or len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"a key must have 1 to {MAX_KEY_BYTES} bytes without '.', '/' and NUL, got {key!r}")
    return key


@cache
def webdataset_module(name: str) -> Any:
    """Return a module of webdataset without importing torch.

    `import webdataset` imports torch where that is installed (4 s and 400 MB in each worker of a pool). Its writer
    and tar iterator need none of it, so the same files are imported under another package name, which leaves out the
    package's __init__.
    """
    if "webdataset" in sys.modules:
        return importlib.import_module(f"webdataset.{name}")
    spec = importlib.util.find_spec("webdataset")
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError("the package webdataset is not installed")
    package = ModuleType("_headrace_webdataset")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{name}")

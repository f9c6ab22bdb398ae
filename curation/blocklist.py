"""Blocklists: files of hashes of images and addresses that nobody wants to hold.

A hit is never stored, and nothing that is written names it: not its URL, not its caption, not its hash. So messages
say that something was hit and never what.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from headrace import files

MAX_DISTANCE = 64

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocklistConfig:
    """Files of hashes, one of 64 hexadecimal digits a line; empty lines, and what follows #, do not count."""

    sha256: tuple[str, ...] = ()
    """Files of the sha256 of images, as fetched."""
    urls: tuple[str, ...] = ()
    """Files of the sha256 of URLs (as the list has them, or as sent) and of host names (lower case)."""
    pdq: tuple[str, ...] = ()
    """Files of PDQ hashes. They are compared by select, as fetch decodes nothing; needs the annotator `hashes`."""
    pdq_distance: int = 31
    """Differing bits, of 256, up to which an image counts as one of `pdq`."""

    def __post_init__(self) -> None:
        if not 0 <= self.pdq_distance <= MAX_DISTANCE:
            raise ValueError(f"pdq_distance must be 0 to {MAX_DISTANCE} of 256 bits, got {self.pdq_distance}")

    def __bool__(self) -> bool:
        return bool(self.sha256 or self.urls or self.pdq)


class DigestSet:
    """Digests of 32 bytes, sorted: 40 bytes of memory each."""

    def __init__(self, digests: bytes) -> None:
        rows = np.unique(np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES), axis=0)
        self._starts: NDArray[np.uint64] = np.ascontiguousarray(rows[:, :8]).view(">u8")[:, 0].astype(np.uint64)
        self._digests = rows.tobytes()

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, digest: bytes) -> bool:
        start = np.uint64(int.from_bytes(digest[:8], "big"))
        place = int(np.searchsorted(self._starts, start))
        while place < len(self._starts) and self._starts[place] == start:
            if self._digests[_DIGEST_BYTES * place : _DIGEST_BYTES * (place + 1)] == digest:
                return True
            place += 1
        return False


@dataclass(frozen=True, slots=True)
class Blocklist:
    """What the files of a config hold."""

    sha256: DigestSet
    urls: DigestSet
    pdq: bytes
    """PDQ hashes, 32 bytes each."""

    def has_image(self, hexdigest: str | None) -> bool:
        """True if an image of this sha256 is listed; of an unknown one nothing can be said."""
        return hexdigest is not None and len(self.sha256) > 0 and bytes.fromhex(hexdigest) in self.sha256

    def has_url(self, text: str | None) -> bool:
        """True if a URL is listed, as it stands or as it is sent, or its host."""
        return bool(text) and len(self.urls) > 0 and any(digest in self.urls for digest in _url_digests(text or ""))


def load_blocklist(config: BlocklistConfig) -> Blocklist:
    """Read the files of a config; unchanged ones only once in a process.

    Raises ValueError that names file and line, never the content, of what is no hash.
    """
    return _load(config, blocklist_stamps(config))


@lru_cache(maxsize=4)
def _load(config: BlocklistConfig, _stamps: tuple[tuple[int, str], ...]) -> Blocklist:
    read = {name: b"".join(_digests(getattr(config, name))) for name in ("sha256", "urls", "pdq")}
    return Blocklist(DigestSet(read["sha256"]), DigestSet(read["urls"]), read["pdq"])


def blocklist_digest(config: BlocklistConfig) -> str:
    """Return the sha256 of all that the files hold, whatever their names and order of lines."""
    read = [b"".join(sorted(set(_digests(getattr(config, name))))) for name in ("sha256", "urls", "pdq")]
    return sha256(b"\n".join(sha256(part).digest() for part in read)).hexdigest()


def blocklist_stamps(config: BlocklistConfig) -> tuple[tuple[int, str], ...]:
    """Return what changes with each file of a config. Raises ValueError for one that is not there."""
    return tuple(_stamp(url) for url in (*config.sha256, *config.urls, *config.pdq))


def _stamp(url: str) -> tuple[int, str]:
    try:
        return files.stamp_of(url)
    except FileNotFoundError as error:
        raise ValueError(f"blocklist {url}: no such file") from error


def _digests(urls: Sequence[str]) -> Iterable[bytes]:
    for url in urls:
        for number, line in enumerate(files.read_bytes(url).removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
            digits = line.partition(b"#")[0].strip()
            if not digits:
                continue
            try:
                digest = bytes.fromhex(digits.decode("ascii"))
            except ValueError:
                digest = b""
            if len(digits) != 2 * _DIGEST_BYTES or len(digest) != _DIGEST_BYTES:
                raise ValueError(
                    f"blocklist {url}, line {number}: expected 64 hexadecimal digits, got {len(digits)} letters that "
                    "are not; repair the file, as nothing is fetched or selected by half a list"
                )
            yield digest


def _url_digests(text: str) -> list[bytes]:
    from headrace.curation.fetch.net.spelling import parse, trimmed  # whose package knows this config

    spellings = {text, text.strip()}
    try:
        url = parse(trimmed(text))
    except (ValueError, TypeError):
        pass
    else:
        host = (url.raw_host or "").rstrip(".")
        spellings |= {str(url), host}
    return [sha256(spelling.encode("utf-8", "surrogatepass")).digest() for spelling in sorted(spellings) if spelling]

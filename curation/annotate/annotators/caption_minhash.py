"""MinHash of a caption: captions that share most of their letters share most of its 64 numbers.

The numbers are those of `datasketch.MinHash(num_perm=64)` (scheme affine32) over the sets below, so that its tools read
them: `MinHash(hashvalues=numpy.frombuffer(value, "<u4"), scheme="affine32")`. The share of equal numbers estimates the
Jaccard similarity of the two sets, with a standard error of at most 0.0625.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns

NUM_PERMUTATIONS = 64
SHINGLE_LETTERS = 5
SIGNATURE_BYTES = 4 * NUM_PERMUTATIONS
# Shingles hashed at a time: 256 bytes each.
CHUNK_SHINGLES = 1 << 16

Words = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionMinhashConfig:
    """MinHash of the caption. Nothing to set: signatures of other settings could not be compared."""


class CaptionMinhash(Annotator):
    """MinHash of the caption's letters.

    64 numbers of 32 bits, little-endian; null without a caption, or where it is all white space.
    """

    name: ClassVar[str] = "caption_minhash"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = CaptionMinhashConfig
    of_caption: ClassVar[frozenset[str]] = frozenset(("caption_minhash",))
    not_carried: ClassVar[frozenset[str]] = frozenset(("caption_minhash",))
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema([("caption_minhash", pa.binary(SIGNATURE_BYTES))])

    config: CaptionMinhashConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        return {"caption_minhash": [None if text is None else signature(text) for text in batch.captions]}


def signature(text: str) -> bytes | None:
    """Return the signature of a text; None if there is nothing in it."""
    found = shingles(text)
    if not found:
        return None
    hashes = np.frombuffer(b"".join(hashlib.sha1(one).digest()[:4] for one in found), "<u4").astype(np.uint32)
    scale, shift = _permutations()
    least = np.full(NUM_PERMUTATIONS, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashes), CHUNK_SHINGLES):
        mixed = _mixed(hashes[start : start + CHUNK_SHINGLES])
        least = np.minimum(least, (scale[:, None] * mixed + shift[:, None]).min(axis=1))
    return least.astype("<u4").tobytes()


def shingles(text: str) -> list[bytes]:
    """Return the different runs of 5 letters, in UTF-8, of the text in one case with single spaces; sorted."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if len(plain) <= SHINGLE_LETTERS:
        return [plain.encode("utf-8", "surrogatepass")] if plain else []
    runs = {plain[start : start + SHINGLE_LETTERS] for start in range(len(plain) - SHINGLE_LETTERS + 1)}
    return sorted(run.encode("utf-8", "surrogatepass") for run in runs)


def _mixed(hashes: Words) -> Words:
    """Spread the bits. Source: MurmurHash3's finalizer, which datasketch 2 applies first."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed = mixed * np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed = mixed * np.uint32(0xC2B2AE35)
    return np.asarray(mixed ^ (mixed >> np.uint32(16)), np.uint32)


@cache
def _permutations() -> tuple[Words, Words]:
    """Return the odd factors and the shifts of datasketch's seed 1: a stream that numpy has frozen."""
    generator = np.random.RandomState(1)
    scale = generator.randint(0, 1 << 31, NUM_PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return scale, generator.randint(0, 1 << 32, NUM_PERMUTATIONS, dtype=np.uint32)

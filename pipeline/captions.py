"""Which of a sample's captions is delivered, where its dataset holds several.

With `rotate` a sample starts at one of its captions, by the seed, and gives the next one in each epoch. No two epochs
in a row give the same, and n epochs give all n. It follows from (seed, source, key, epoch) alone: a run that goes on
reads what it would have read.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

from headrace.shards.permutation import make_key

CAPTION, CAPTIONS = "caption", "captions"
"""The column that is delivered, and the one that holds them all, the first among them."""

CaptionsTaken = Literal["first", "rotate"]


class Rotation:
    """Which caption each epoch of a source gives."""

    def __init__(self, seed: int, source: str) -> None:
        self._key = make_key(seed, CAPTIONS, source).to_bytes(8, "little")

    def of_epoch(self, captions: Sequence[str | None] | None, *, key: str, epoch: int) -> str | None:
        """Return the caption of a sample in an epoch; None if none of them says anything."""
        texts = [text for text in captions or () if text and not text.isspace()]
        if len(texts) < 2:
            return texts[0] if texts else None
        start = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key).digest()
        return texts[(int.from_bytes(start, "little") + epoch) % len(texts)]

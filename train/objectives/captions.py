"""Captions of a batch: which of them say anything, and their tokens as open_clip makes them."""

# B captions, T tokens of a caption

import html
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.train.objectives.objective import RowError

# A caption is asked for twice where a step has micro-batches, and comes again in the next epoch.
CACHED_CAPTIONS = 1 << 15
# Words that the tokenizer keeps before it begins anew; by itself it keeps all that it ever saw.
CACHED_WORDS = 1 << 18


def says_something(column: NDArray[np.generic] | list[Any], name: str) -> NDArray[np.bool_]:
    """Return which captions have a character that is seen: not null, white space, control or zero-width ones alone.

    An empty text is the same for all pictures, and nobody's pair. Raises RowError for what is no text.
    """
    if isinstance(column, np.ndarray):
        raise RowError(0, f"the column {name!r} holds {column.dtype.name}; captions are texts, or null")
    return np.array([_is_seen(caption, row, name) for row, caption in enumerate(column)], np.bool_)


def _is_seen(caption: object, row: int, name: str) -> bool:
    if caption is None:
        return False
    if not isinstance(caption, str):
        raise RowError(row, f"its {name!r} is a {type(caption).__name__}; captions are texts, or null")
    # As the tokenizer does: `&nbsp;` is a space.
    text = html.unescape(html.unescape(caption)) if "&" in caption else caption
    return any(character.isprintable() and not character.isspace() for character in text)


class CaptionTokens:
    """open_clip's tokenizer, which also says what it cuts off."""

    def __init__(self, context_length: int) -> None:
        import open_clip

        self.tokenizer = tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        self.context_length = context_length
        self._first, self._last = tokenizer.sot_token_id, tokenizer.eot_token_id
        self._first_words = dict(tokenizer.cache)
        self._encode: Callable[[str], tuple[int, ...]] = lru_cache(CACHED_CAPTIONS)(self._encoded)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return tokens, int64 [B, T]: longer captions are cut, shorter ones filled up with 0."""
        tokens_BT = np.zeros((len(captions), self.context_length), np.int64)
        for row, caption in enumerate(captions):
            kept = (self._first, *self._encode(caption)[: self.context_length - 2], self._last)
            tokens_BT[row, : len(kept)] = kept
        return torch.from_numpy(tokens_BT)

    def _encoded(self, text: str) -> tuple[int, ...]:
        if len(self.tokenizer.cache) > CACHED_WORDS:
            self.tokenizer.cache = dict(self._first_words)
        return tuple(self.tokenizer.encode(text))

    def num_cut(self, captions: Sequence[str]) -> int:
        """Return how many captions are longer than the tower takes."""
        return sum(len(self._encode(caption)) + 2 > self.context_length for caption in captions)

"""Length of a caption in characters (Unicode code points) and words (runs without white space), and what it repeats.

Version 1 had the lengths alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns
from headrace.curation.annotate.annotators.text.patterns import count_patterns, repetition


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Caption length, addresses, repetition. Nothing to set."""


class CaptionFacts(Annotator):
    """Caption length, addresses in it, repetition.

    Null where there is no caption, 0 where it is empty. `caption_emails`, `caption_phones`, `caption_urls`: how many,
    as usually written. `caption_repetition`: the share of words in the n-gram of 2 to 4 words that comes most often.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 2
    earlier: ClassVar[Mapping[int, tuple[str, ...]]] = {1: ("caption_chars", "caption_words")}
    config_type: ClassVar[type[Any]] = CaptionConfig
    by_default: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("caption_chars", pa.int32()),
            ("caption_words", pa.int32()),
            ("caption_emails", pa.int32()),
            ("caption_phones", pa.int32()),
            ("caption_urls", pa.int32()),
            ("caption_repetition", pa.float32()),
        ]
    )
    of_caption: ClassVar[frozenset[str]] = frozenset(columns.names)

    config: CaptionConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        lengths: Columns = {
            "caption_chars": [None if text is None else len(text) for text in batch.captions],
            "caption_words": [None if text is None else len(text.split()) for text in batch.captions],
        }
        if self.made_as == 1:
            return lengths
        found = [None if text is None else count_patterns(text) for text in batch.captions]
        return lengths | {
            "caption_emails": [item and item.emails for item in found],
            "caption_phones": [item and item.phones for item in found],
            "caption_urls": [item and item.urls for item in found],
            "caption_repetition": [None if text is None else repetition(text) for text in batch.captions],
        }

"""Length of a caption in characters (Unicode code points) and words (runs without white space)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.curation.annotate.annotator import AnnotationBatch, Annotator, Columns


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Caption length. Nothing to set."""


class CaptionFacts(Annotator):
    """Caption length.

    Null where there is no caption, 0 where it is empty.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[Any]] = CaptionConfig
    by_default: ClassVar[bool] = True
    of_caption: ClassVar[frozenset[str]] = frozenset(("caption_chars", "caption_words"))
    needs_pixels: ClassVar[bool] = False
    columns: ClassVar[pa.Schema] = pa.schema([("caption_chars", pa.int32()), ("caption_words", pa.int32())])

    config: CaptionConfig

    def annotate(self, batch: AnnotationBatch) -> Columns:
        return {
            "caption_chars": [None if text is None else len(text) for text in batch.captions],
            "caption_words": [None if text is None else len(text.split()) for text in batch.captions],
        }

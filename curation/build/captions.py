"""The captions of a sample where select has merged those of its group.

`captions[0]` is always the sample's `caption`, so that readers of one caption read what they ever did.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace.curation.build.config import CAPTION
from headrace.curation.captions import caption_code
from headrace.curation.ledger import LIST_OF_TEXTS

CAPTION_OF = pa.field("caption_of", pa.string())
"""The uid of the row whose caption a sample has; null: its own."""
CAPTIONS, CAPTIONS_OF = "captions", "captions_of"
ALL_CAPTIONS = pa.schema([(CAPTIONS, LIST_OF_TEXTS), (CAPTIONS_OF, LIST_OF_TEXTS)])
"""All captions of a sample, and the uid of the row that each came from; null where it has none."""

Held = Sequence[tuple[str, str]]
"""Captions and the uid of the row of each, in order."""


def all_captions(columns: Mapping[str, Any], held: Held, chosen_from: Sequence[str] = (CAPTION,)) -> dict[str, Any]:
    """Return `ALL_CAPTIONS` of a sample with these columns, `caption` among them.

    `held` are the captions of the list, where the ledger has several. A caption that `chosen_from` prefers to them
    comes first, as the row's own; without `caption` in it, it is alone.
    """
    caption, uid = columns["caption"], columns["uid"]
    if not says_something(caption):
        return listed(())
    listed_caption = columns.get("caption_listed", caption)
    if not held and says_something(listed_caption):
        held = [(listed_caption, columns.get(CAPTION_OF.name) or uid)]
    if columns.get("caption_from", CAPTION) == CAPTION:
        return listed(held)
    others = [one for one in held if CAPTION in chosen_from and caption_code(one[0]) != caption_code(caption)]
    return listed([(caption, uid), *others])


def listed(held: Held) -> dict[str, Any]:
    """Return captions and whose they are as `ALL_CAPTIONS`."""
    texts, uids = [text for text, _ in held], [uid for _, uid in held]
    return {CAPTIONS: texts or None, CAPTIONS_OF: uids or None}


def says_something(caption: str | None) -> bool:
    """True if a caption is more than white space."""
    return caption is not None and bool(caption.strip())

"""A stream's state and datasets of which samples were taken down since: which version it speaks of, and what to say."""

from collections.abc import Iterable
from typing import Any

from headrace.pipeline.catalog import OpenedSource
from headrace.shards.forgotten import told_of

_NAME, _DIGEST = 0, 4
"""Places in the row of a source in a state: see `history`."""


def digests_in(state: Any) -> dict[str, str]:
    """Return the digest of the dataset that each source had, by name; nothing of what is no state."""
    found: dict[str, str] = {}
    segments = state.get("segments") if isinstance(state, dict) else None
    for segment in segments if isinstance(segments, list) else ():
        rows = segment.get("sources") if isinstance(segment, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, list) and len(row) > _DIGEST:
                found[str(row[_NAME])] = str(row[_DIGEST])
    return found


def explain(state: Any, sources: Iterable[OpenedSource]) -> str:
    """Say of which sources samples were taken down since a state was written; empty if of none."""
    digests = digests_in(state)
    told = []
    for source in sources:
        had = digests.get(source.config.name)
        if had is not None and had != source.digest():
            told.append(told_of(source.dataset.url, had))
    known = "; ".join(filter(None, told))
    if not known:
        return ""
    return (
        f"{known}: the order of what is left is another one, so the run cannot go on sample by sample; begin a new one "
        "from its weights (init_from), and see which steps had seen them: headrace audit RUN"
    )

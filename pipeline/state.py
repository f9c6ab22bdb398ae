"""The state of a stream: what is written, and what can be continued exactly.

The world size, the threads and the memory are not part of it. The one thing a reader would get wrong: `segments` is a
list because weights will be able to change at a position; today it holds one.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from headrace.config import canonical_json, config_to_dict
from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.mixture import Mixture

VERSION = 1


def identity_of(mixture: Mixture, sources: Sequence[OpenedSource], *, global_batch: int, once: bool) -> dict[str, Any]:
    """Return everything but the position; equal identities mean equal batches at equal positions."""
    pictures = canonical_json([mixture.image_size, config_to_dict(mixture.augment)])
    named = [
        [
            source.config.name,
            source.config.weight,
            source.config.chunk_samples,
            source.config.shuffle_window,
            source.digest(),
        ]
        for source in sources
    ]
    return {
        "version": VERSION,
        "once": once,
        "seed": mixture.seed,
        "lanes": mixture.lanes,
        "global_batch": global_batch,
        "pictures": hashlib.blake2b(pictures.encode(), digest_size=8).hexdigest(),
        "segments": [{"start": 0, "sources": named}],
    }


def check_state(state: Any, identity: dict[str, Any]) -> int:
    """Return the position of `state`. Raises ValueError naming the field that keeps it from being continued exactly."""
    if not isinstance(state, dict):
        raise ValueError(f"a stream's state is a mapping, got {type(state).__name__}")
    if state.get("version") != VERSION:
        raise ValueError(f"state: version is {state.get('version')!r}, this headrace continues {VERSION}")
    for name, mine in identity.items():
        if name != "segments" and state.get(name) != mine:
            meaning = " (image_size and augment)" if name == "pictures" else ""
            raise ValueError(f"state: {name}{meaning} was {state.get(name)!r}, this stream has {mine!r}")
    if state.get("segments") != identity["segments"]:
        raise ValueError(f"state: {_explain(state.get('segments'), identity['segments'])}")
    position = state.get("position")
    if not isinstance(position, int) or position < 0 or position % identity["global_batch"]:
        raise ValueError(f"state: position {position!r} is not a multiple of global_batch {identity['global_batch']}")
    return position


def _explain(theirs: Any, mine: list[dict[str, Any]]) -> str:
    fields = ("name", "weight", "chunk_samples", "shuffle_window", "dataset")
    try:
        (segment,) = theirs
        was, now = list(segment["sources"]), mine[0]["sources"]
        if [row[0] for row in was] != [row[0] for row in now]:
            return (
                f"sources were {', '.join(row[0] for row in was)}; this stream has {', '.join(row[0] for row in now)}"
            )
        for old, new in zip(was, now, strict=True):
            for name, before, after in zip(fields, old, new, strict=True):
                if before != after:
                    what = "digest of the dataset" if name == "dataset" else name
                    return f"source {new[0]!r}: {what} was {before!r}, this stream has {after!r}"
    except (TypeError, ValueError, KeyError, IndexError):
        pass
    return "segments cannot be continued by this headrace"

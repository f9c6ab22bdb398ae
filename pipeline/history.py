"""What a stream has gone through, as its state records it: segments, and the ends of sources.

The first segment has its sources. Each further one has what changed, from its position on. What a mixture plans for
later positions is not part of a state: so a segment may be added, from the position where a run stands.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.mixture import Mixture


def segments_of(
    mixture: Mixture, sources: Sequence[OpenedSource], *, once: bool, ends: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Return all segments of a mixture, those to come too.

    `ends` are the positions from which the end of each source is given, where one has an end.
    """
    rows = {source.config.name: _row(source) for source in sources}
    if once:
        return [{"start": 0, "sources": list(rows.values())}]
    segments: list[dict[str, Any]] = [*_segments(mixture, rows), *_ends(mixture, ends)]
    return sorted(segments, key=lambda segment: segment["start"])


def past(segments: Sequence[dict[str, Any]], position: int) -> list[dict[str, Any]]:
    """Return those that a stream at `position` has gone through; the first always."""
    return [segment for segment in segments if segment["start"] < position or not segment["start"]]


def _row(source: OpenedSource) -> list[Any]:
    config = source.config
    row = [config.name, config.weight, config.chunk_samples, config.shuffle_window, source.digest()]
    # A whole dataset with its own labels and first captions is written as it was before there was anything else.
    if config.captions != "first":
        return [*row, config.fraction, "" if source.labels is None else source.labels.digest, config.captions]
    if source.labels is not None:
        return [*row, config.fraction, source.labels.digest]
    return row if config.fraction == 1 else [*row, config.fraction]


def _segments(mixture: Mixture, rows: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield what a user changes, segment by segment; a source stands where it begins."""
    weights, lanes = {source.name: source.weight for source in mixture.sources}, mixture.lanes
    begun = {name for name, weight in weights.items() if weight}
    yield {"start": 0, "sources": [row for name, row in rows.items() if name in begun]}
    for segment in mixture.segments:
        changed: dict[str, Any] = {"start": segment.start}
        if segment.lanes not in (0, lanes):
            changed["lanes"] = lanes = segment.lanes
        new = {name: weight for name, weight in segment.weights.items() if weight != weights[name]}
        weights |= new
        if new:
            changed["weights"] = {name: new[name] for name in rows if name in new}
        beginning = [name for name in rows if weights[name] and name not in begun]
        if beginning:
            changed["sources"] = [rows[name] for name in beginning]
            begun |= set(beginning)
        yield changed


def _ends(mixture: Mixture, ends: Sequence[int | None]) -> Iterator[dict[str, Any]]:
    """Yield where the end of a source begins, which is from where its `repeat` cannot change any more."""
    for source, start in zip(mixture.sources, ends, strict=False):
        if start is not None:
            yield {"start": start, "ends": source.name, "repeat": source.repeat}


def explain(theirs: Any, mine: Sequence[dict[str, Any]]) -> str:
    """Say what of the segments that a stream has gone through differs from those of this one."""
    try:
        text = _explain_sources(theirs[0]["sources"], mine[0]["sources"])
        if theirs[0]["start"] == 0 and text:
            return text
        for was, now in zip(theirs[1:], mine[1:], strict=False):
            if was["start"] != now["start"]:
                return f"{_tell(was)} was gone through, this stream has {_tell(now)} there"
            if was != now:
                return f"segment from position {was['start']}: {_explain_change(was, now)}"
        if len(theirs) > len(mine):
            return f"{_tell(theirs[len(mine)])} was gone through, this stream has no such segment"
        if len(theirs) < len(mine):
            added = mine[len(theirs)]
            cure = "raise its repeat" if "ends" in added else "let it start later"
            return f"this stream has {_tell(added)}, which was not gone through: {cure}"
    except (TypeError, ValueError, KeyError, IndexError, StopIteration):
        pass
    return "segments cannot be continued by this headrace"


def _explain_sources(was: list[Any], now: list[Any]) -> str:
    fields = (
        "name",
        "weight",
        "chunk_samples",
        "shuffle_window",
        "digest of the dataset",
        "fraction",
        "digest of the labels",
        "captions",
    )
    if [row[0] for row in was] != [row[0] for row in now]:
        return f"sources were {', '.join(row[0] for row in was)}; this stream has {', '.join(row[0] for row in now)}"
    for old, new in zip(was, now, strict=True):
        whole = [[*row, *(1.0, "", "first")[len(row) - len(fields) :]][: len(fields)] for row in (old, new)]
        for name, before, after in zip(fields, *whole, strict=True):
            if before != after:
                return f"source {new[0]!r}: {name} was {before!r}, this stream has {after!r}"
    return ""


def _explain_change(was: dict[str, Any], now: dict[str, Any]) -> str:
    if was.get("sources") != now.get("sources"):
        return _explain_sources(was.get("sources", []), now.get("sources", []))
    name = next(name for name in ("lanes", "weights", "ends", "repeat") if was.get(name) != now.get(name))
    return f"{name} was {was.get(name)!r}, this stream has {now.get(name)!r}"


def _tell(segment: dict[str, Any]) -> str:
    if "ends" in segment:
        return f"the end of source {segment['ends']!r} (repeat {segment['repeat']}) from position {segment['start']}"
    return f"a segment from position {segment['start']}"

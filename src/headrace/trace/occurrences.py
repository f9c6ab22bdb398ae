"""At which steps samples were seen: the order's answer, put right by what replaced damaged ones.

A row is one sample at one position. `seen` is what the run got. `skipped` is the same in a step that did not move the
weights. `replaced` is a sample that was planned there and was damaged, so another was given. `planned` lies beyond the
steps that are done. `not known` stands where samples of the step were replaced and nothing says which.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.pipeline.order.inverse import occurrences
from headrace.text import without_secrets
from headrace.trace.find import Match
from headrace.trace.lookup import Opened
from headrace.trace.replaced import Replaced, Replacements

SCHEMA = pa.schema(
    [
        ("asked", pa.string()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("uid", pa.string()),
        ("url", pa.string()),
        ("step", pa.int64()),
        ("position", pa.int64()),
        ("epoch", pa.int64()),
        ("status", pa.string()),
        ("other_key", pa.string()),
    ]
)
"""`asked` is the text that named the sample. `other_key` is the key of the sample that was given instead, or, of one
that was given in the place of a damaged one, of that. `epoch` counts from 0. `step` counts from 1."""
SAMPLES_AT_ONCE = 4096


def occurrence_tables(
    opened: Opened, matches: Iterable[Match], replacements: Replacements, *, last: int
) -> Iterator[pa.Table]:
    """Yield tables of SCHEMA: for each of `matches` the steps up to `last` at which it stands, by position.

    A sample that stands nowhere has one row without a step: `not seen`, or `not used` if it lies outside the part of
    the dataset that the run uses.
    """
    waiting = iter(matches)
    while part := list(itertools.islice(waiting, SAMPLES_AT_ONCE)):
        rows: list[dict[str, Any]] = []
        for source in sorted({match.source for match in part}):
            rows += _rows(opened, [match for match in part if match.source == source], replacements, last)
        yield pa.Table.from_pylist(rows, schema=SCHEMA)


def _rows(opened: Opened, matches: Sequence[Match], replacements: Replacements, last: int) -> list[dict[str, Any]]:
    source = matches[0].source
    history = opened.history
    sample = np.array([match.sample for match in matches], np.int64)
    facts = opened.rows(source, sample, ("uid", "url"))
    found = occurrences(opened.plan.timeline, source, sample, end=last * history.global_batch)
    given = _given_instead(replacements, source, sample, [fact["key"] for fact in facts], last)
    told = _told(replacements, found.position.tolist(), history.global_batch)
    results: list[list[dict[str, Any]]] = [[] for _ in matches]
    for which, position, epoch in zip(found.which.tolist(), found.position.tolist(), found.epoch.tolist(), strict=True):
        row = {"step": history.step_of(position), "position": position, "epoch": epoch}
        results[which].append({**row, **_status(row["step"], told.get(position), history.done, replacements)})
    for one in given:
        for which in np.flatnonzero(sample == one.given).tolist():
            results[which].append(_as_replacement(one, history.step_of(one.position), history.skipped))
    return [
        {**_named(opened, match, fact), **row}
        for match, fact, found_rows in zip(matches, facts, results, strict=True)
        for row in sorted(found_rows, key=lambda row: int(row["position"])) or [_nowhere(opened, match)]
    ]


def _told(replacements: Replacements, positions: Sequence[int], global_batch: int) -> dict[int, Replaced]:
    """Return what replaced the samples of those positions that are known to have been damaged."""
    steps = {position // global_batch + 1 for position in positions}.intersection(replacements.steps)
    replacements.look_up(steps)
    return {one.position: one for step in steps for one in replacements.of_step(step) or ()}


def _given_instead(
    replacements: Replacements, source: int, sample: Any, keys: Sequence[str], last: int
) -> list[Replaced]:
    """Return the positions where one of the samples was given in the place of a damaged one."""
    asked = set(sample.tolist())
    steps = sorted(step for step in replacements.steps_given(keys) if step <= last)
    replacements.look_up(steps)
    told = (one for step in steps for one in replacements.of_step(step) or ())
    return [one for one in told if one.source == source and one.given in asked]


def _status(step: int, replaced: Replaced | None, done: int, replacements: Replacements) -> dict[str, Any]:
    if replaced is not None:
        return {"status": "replaced", "other_key": replaced.story.replaced_by}
    if replacements.opened.history.is_run and step > done:
        return {"status": "planned"}
    if replacements.of_step(step) is None:
        return {"status": "not known"}
    return {"status": "skipped" if step in replacements.opened.history.skipped else "seen"}


def _as_replacement(one: Replaced, step: int, skipped: Mapping[int, str]) -> dict[str, Any]:
    status = "skipped" if step in skipped else "seen"
    return {"step": step, "position": one.position, "status": status, "other_key": one.story.key}


def _named(opened: Opened, match: Match, fact: Mapping[str, Any]) -> dict[str, Any]:
    url = fact.get("url")
    return {
        "asked": without_secrets(match.text),
        "source": opened.sources[match.source].config.name,
        "shard": fact["shard"],
        "key": fact["key"],
        "uid": fact.get("uid"),
        "url": None if url is None else without_secrets(str(url)),
    }


def _nowhere(opened: Opened, match: Match) -> dict[str, Any]:
    subset = opened.sources[match.source].subset
    unused = subset is not None and int(subset.ordinals(np.array([match.sample], np.int64))[0]) < 0
    return {"status": "not used" if unused else "not seen"}

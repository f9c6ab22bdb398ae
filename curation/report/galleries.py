"""Which rows are shown: around each cut, groups of near-duplicates, blurred faces, kept samples.

The choice follows from the data alone (distance to the cut, then uid), never from chance or the order of reading. A row
that may not be shown is replaced by the next one, so a gallery is not the list of the very nearest rows.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.ledger import Decision, Ledger, StepSummary, ledger_by_shard
from headrace.curation.report.pictures import Pictures, Thumbnail
from headrace.curation.report.sketch import Counts
from headrace.curation.report.values import kept_values
from headrace.curation.select.steps import step_of
from headrace.shards.dataset import Dataset

Row = dict[str, Any]

# Candidates for each picture shown, as some may not be.
SPARE = 4
SHOWN_OF_GROUP = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One picture and what is said under it."""

    row: Row
    thumbnail: Thumbnail
    note: str


@dataclass(kw_only=True, slots=True)
class Galleries:
    """Everything the report shows as pictures."""

    cuts: list[tuple[str, float, list[Shown], list[Shown]]] = field(default_factory=list)
    """(step, threshold, kept nearest to it, dropped nearest to it)."""
    groups: list[tuple[str, int, list[Shown]]] = field(default_factory=list)
    """(uid of the best, rows dropped for it, the best and the first of them)."""
    faces: list[Shown] = field(default_factory=list)
    kept: list[Shown] = field(default_factory=list)


def choose(decision: Decision, dataset: Dataset | None, duplicates: Counts, *, samples: int, pixels: int) -> Galleries:
    """Choose and load every picture of a job's report."""
    result = Galleries()
    if not samples:
        return result
    pictures = Pictures(decision, dataset, pixels)
    steps = decision.summary.steps
    cuts = [step for step in steps if step.threshold is not None and step_of(step).shows_dropped]
    groups = [uid for uid, _ in duplicates.top(samples)]
    dropped, members = _walk_ledger(decision.ledger, cuts, groups, samples * SPARE)
    above: dict[str, list[Row]] = {step.name: [] for step in cuts}
    faces: list[Row] = []
    kept: list[Row] = []
    if dataset is not None:
        above = _walk_kept(decision, cuts, samples * SPARE)
        faces, kept = _walk_dataset(dataset, samples * SPARE)
    for step in cuts:
        near = _load(above[step.name], pictures.of_ledger_row, samples, lambda row: _score(row, "kept"))
        under = _load(dropped[step.name], pictures.of_ledger_row, samples, lambda row: _score(row, "dropped"))
        if near or under:
            assert step.threshold is not None
            result.cuts.append((step.name, step.threshold, near, under))
    for uid in groups:
        shown = _load(members[uid], pictures.of_ledger_row, SHOWN_OF_GROUP, _of_group)
        if len(shown) > 1:
            result.groups.append((uid, duplicates.counts[uid], shown))
    result.faces = _load(faces, pictures.of_ledger_row, samples, _blurred)
    result.kept = _load(kept, pictures.of_ledger_row, samples, lambda _: "kept")
    return result


def _load(
    rows: list[Row], find: Callable[[Mapping[str, Any]], Thumbnail | None], count: int, note: Callable[[Row], str]
) -> list[Shown]:
    shown: list[Shown] = []
    for row in rows:
        if len(shown) == count:
            break
        thumbnail = find(row)
        if thumbnail is not None:
            shown.append(Shown(row=row, thumbnail=thumbnail, note=note(row)))
    return shown


def _score(row: Row, word: str) -> str:
    return f"{word}, {row['value']:.4g}"


def _blurred(row: Row) -> str:
    return f"{row['faces_blurred']} face{'s' if row['faces_blurred'] > 1 else ''} blurred"


def _of_group(row: Row) -> str:
    if row["duplicate_of"] is None:
        return "best of the group"
    return f"dropped, distance {row['value']:.0f}" if row["value"] is not None else "dropped"


def _walk_ledger(
    ledger: Ledger, cuts: list[StepSummary], groups: list[str], count: int
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Return for each cut the dropped rows nearest to it, and for each group the best and the first others."""
    near: dict[str, list[Row]] = {step.name: [] for step in cuts}
    members: dict[str, list[Row]] = {uid: [] for uid in groups}
    wanted = pa.array(groups, pa.string())
    columns = ["uid", "raw_shard", "key", "kept", "step", "value", "duplicate_of", "out_shard", "out_index"]
    for _, rows in ledger_by_shard(ledger, columns):
        for step in cuts:
            assert step.threshold is not None
            mine = rows.filter(pc.fill_null(pc.equal(rows["step"], step.name), False))
            near[step.name] = _nearest(
                [*near[step.name], *_closest(mine, step.threshold, count)], step.threshold, count
            )
        if groups:
            _add_members(rows, wanted, members)
    for uid, found in members.items():
        found.sort(key=lambda row: (row["duplicate_of"] is not None, not row["kept"], row["value"] or 0, row["uid"]))
        members[uid] = found[: SHOWN_OF_GROUP * SPARE]
    return near, members


def _add_members(rows: pa.Table, wanted: pa.Array, members: dict[str, list[Row]]) -> None:
    best = pc.and_(pc.is_in(rows["uid"], value_set=wanted), pc.is_null(rows["duplicate_of"]))
    others = pc.is_in(pc.fill_null(rows["duplicate_of"], ""), value_set=wanted)
    for row in rows.filter(pc.or_(best, others)).to_pylist():
        group = members[row["duplicate_of"] if row["duplicate_of"] is not None else row["uid"]]
        if len(group) < 10 * SHOWN_OF_GROUP or row["duplicate_of"] is None:
            group.append(row)


def _closest(rows: pa.Table, target: float, count: int) -> list[Row]:
    """Return the `count` rows of one table nearest to the target, without making rows of all the others."""
    distance = np.abs(rows["value"].to_numpy() - target)
    places = np.argsort(np.where(np.isfinite(distance), distance, np.inf), kind="stable")[:count]
    return [row for row in rows.take(pa.array(places)).to_pylist() if row["value"] is not None]


def _nearest(rows: list[Row], target: float, count: int) -> list[Row]:
    finite = [row for row in rows if math.isfinite(row["value"])]
    return sorted(finite, key=lambda row: (abs(row["value"] - target), row["uid"], row["key"]))[:count]


def _walk_kept(decision: Decision, cuts: list[StepSummary], count: int) -> dict[str, list[Row]]:
    """Return for each cut the kept rows nearest to it."""
    thresholds = {step.name: step.threshold for step in cuts}
    near: dict[str, list[Row]] = {step.name: [] for step in cuts}
    for name, rows in kept_values(decision, cuts):
        threshold = thresholds[name]
        assert threshold is not None
        near[name] = _nearest([*near[name], *_closest(rows, threshold, count)], threshold, count)
    return near


def _walk_dataset(dataset: Dataset, count: int) -> tuple[list[Row], list[Row]]:
    """Return rows with blurred faces, and any rows; the lowest uids of each."""
    faces: list[Row] = []
    kept: list[Row] = []
    for shard, table in _indexes(dataset):
        names = [name for name in ("uid", "key", "faces_blurred") if name in table.column_names]
        small = table.select(names)
        kept = _first_by_uid([*kept, *(_as_kept(row, shard) for row in _lowest(small, count))], count)
        if "faces_blurred" in names:
            with_faces = small.filter(pc.fill_null(pc.greater(small["faces_blurred"], 0), False))
            faces = _first_by_uid([*faces, *(_as_kept(row, shard) for row in _lowest(with_faces, count))], count)
    return faces, kept


def _indexes(dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
    for number, shard in enumerate(dataset.shards):
        yield shard.name, dataset.index(number)


def _lowest(table: pa.Table, count: int) -> list[Row]:
    # A uid is a hash, so the lowest ones are an arbitrary sample that is the same in every run.
    places = pc.sort_indices(table, sort_keys=[("uid", "ascending"), ("key", "ascending")])[:count]
    return list(table.take(places).to_pylist())


def _first_by_uid(rows: list[Row], count: int) -> list[Row]:
    return heapq.nsmallest(count, rows, key=lambda row: (row["uid"], row["key"]))


def _as_kept(row: Row, shard: str) -> Row:
    """Return an index row in the ledger's words."""
    return {**row, "kept": True, "out_shard": shard, "out_index": int(row["key"][len(shard) :])}

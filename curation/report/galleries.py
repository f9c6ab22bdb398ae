"""Which rows are shown: around each cut, groups of near-duplicates, blurred faces, kept samples.

The choice follows from the data alone (distance to the cut, then uid), never from chance or the order of reading. A row
that may not be shown is replaced by the next one, so a gallery is not the list of the very nearest rows.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.curation.ledger import Decision, Ledger, StepSummary, ledger_by_shard
from headrace.curation.report import tables
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.pictures import Pictures, Thumbnail
from headrace.curation.report.shown.dropped import DroppedRows, described
from headrace.curation.report.shown.extremes import Ends, Extreme, columns
from headrace.curation.report.shown.near_kept import pairs_beyond
from headrace.curation.report.shown.pairs import COLUMNS, DroppedCopies, find_rows
from headrace.curation.report.shown.references import FindFaces, reference_pictures
from headrace.curation.report.sketch import Counts, numbers
from headrace.curation.report.values import cuts_of, kept_values
from headrace.curation.select.steps import step_of
from headrace.shards.dataset import Dataset

Row = dict[str, Any]
FindPicture = Callable[[Mapping[str, Any]], Thumbnail | None]

# Candidates for each picture shown, as some may not be.
SPARE = 4
SHOWN_OF_GROUP = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One picture and what is said under it."""

    row: Row
    thumbnail: Thumbnail | None
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two pictures beside each other; either may be missing, if it may not be shown or is gone."""

    left: Shown
    right: Shown
    note: str


@dataclass(kw_only=True, slots=True)
class Galleries:
    """Everything the report shows as pictures, and the rows that it lists."""

    cuts: list[tuple[str, float, list[Shown], list[Shown]]] = field(default_factory=list)
    """(step, threshold, kept nearest to it, dropped nearest to it)."""
    groups: list[tuple[str, int, list[Shown]]] = field(default_factory=list)
    """(uid of the best, rows dropped for it, the best and the first of them)."""
    faces: list[Shown] = field(default_factory=list)
    kept: list[Shown] = field(default_factory=list)
    pairs: list[tuple[str, int, list[Pair]]] = field(default_factory=list)
    """(step, rows it dropped as copies, what of them is shown)."""
    beyond: list[tuple[str, int, int, list[Pair]]] = field(default_factory=list)
    """(step, its distance, kept rows that were compared, the nearest pairs beyond it)."""
    extremes: list[tuple[Extreme, list[Shown], list[Row]]] = field(default_factory=list)
    """(what, pictures of it, rows of it)."""
    dropped: dict[str, list[Shown]] = field(default_factory=dict)
    """Step -> pictures of some rows that it dropped, where nothing above shows any."""
    dropped_rows: list[dict[str, Any]] = field(default_factory=list)
    """By step, rows that are listed."""

    def shown(self) -> Iterator[Shown]:
        """Yield every picture of the page."""
        yield from (*self.faces, *self.kept)
        yield from (item for _, _, near, under in self.cuts for item in (*near, *under))
        yield from (item for _, _, items in self.groups for item in items)
        pairs = [*(pair for _, _, found in self.pairs for pair in found)]
        pairs += [pair for _, _, _, found in self.beyond for pair in found]
        yield from (side for pair in pairs for side in (pair.left, pair.right) if side.thumbnail is not None)
        yield from (item for _, items, _ in self.extremes for item in items)
        yield from (item for items in self.dropped.values() for item in items)


def choose(
    decision: Decision,
    dataset: Dataset | None,
    duplicates: Counts,
    config: ReportConfig,
    find_faces: FindFaces | None = None,
) -> Galleries:
    """Choose and load every picture of a job's report, and the rows it lists."""
    result, samples, steps = Galleries(), config.num_samples, decision.summary.steps
    pictures = Pictures(decision, dataset, config.thumbnail_pixels, all_shown=config.pictures == "all")
    cuts = [step for step in steps if step.threshold is not None and step_of(step).shows_dropped and samples]
    groups = [uid for uid, _ in duplicates.top(samples)] if samples else []
    copies = DroppedCopies.of((step for step in steps if step_of(step).links != "none"), config.pairs if samples else 0)
    listed = DroppedRows.of(steps, max(config.rows, samples * SPARE))
    dropped, members = _walk_ledger(decision.ledger, cuts, groups, samples * SPARE, (copies.add, listed.add))
    result.dropped_rows = described(steps, listed, decision.job, config.rows)
    above, ends = _walk_kept(decision, cuts, max(config.samples, 1) * SPARE)
    _add_extremes(result, ends, pictures.of_ledger_row, (samples, config.samples))
    if not samples:
        return result
    for step in cuts:
        near = _load(above[step.name], pictures.of_ledger_row, samples, lambda row: _score(row, "kept"))
        under = _load(dropped[step.name], pictures.of_ledger_row, samples, lambda row: _score(row, "dropped"))
        if near or under:
            assert step.threshold is not None
            result.cuts.append((step.name, step.threshold, near, under))
    measured = {step.name: step_of(step).measured for step in steps}
    for uid in groups:
        shown = _load(members[uid], pictures.of_ledger_row, SHOWN_OF_GROUP, partial(_of_group, measured))
        if len(shown) > 1:
            result.groups.append((uid, duplicates.counts[uid], shown))
    _add_pairs(result, decision, copies, pictures, (config, find_faces))
    for step in steps:
        if not step_of(step).shows_dropped or step in cuts or copies.rows(step.name):
            continue
        items = _load(listed.rows(step.name), pictures.of_ledger_row, samples, lambda row: row["reason"] or "dropped")
        result.dropped |= {step.name: items} if items else {}
    if dataset is not None:
        faces, kept = _walk_dataset(dataset, samples * SPARE)
        result.faces = _load(faces, pictures.of_ledger_row, samples, _blurred)
        result.kept = _load(kept, pictures.of_ledger_row, samples, lambda _: "kept")
    return result


def choose_of_dataset(dataset: Dataset, config: ReportConfig) -> Galleries:
    """Choose what is listed of a dataset that has no ledger; pictures only if all may be shown."""
    result, samples = Galleries(), config.samples if config.pictures == "all" else 0
    pictures = Pictures(None, dataset, config.thumbnail_pixels, all_shown=True)
    ends = Ends(count=max(config.samples, 1) * SPARE)
    for shard, index in _indexes(dataset):
        table = tables.measured(index)
        for column in columns(table.column_names):
            rows = table.select([name for name in ("uid", "key", "caption", "url") if name in table.column_names])
            rows = rows.append_column("value", pa.array(numbers(table[column]), pa.float64()))
            ends.add(column, _with_place(rows, shard))
    _add_extremes(result, ends, pictures.of_ledger_row, (samples, config.samples))
    if samples:
        faces, kept = _walk_dataset(dataset, samples * SPARE)
        result.faces = _load(faces, pictures.of_ledger_row, samples, _blurred)
        result.kept = _load(kept, pictures.of_ledger_row, samples, lambda _: "sample")
    return result


def _load(rows: list[Row], find: FindPicture, count: int, note: Callable[[Row], str]) -> list[Shown]:
    shown: list[Shown] = []
    for row in rows:
        if len(shown) == count:
            break
        thumbnail = find(row)
        if thumbnail is not None:
            shown.append(Shown(row=row, thumbnail=thumbnail, note=note(row)))
    return shown


def _add_extremes(result: Galleries, ends: Ends, find: FindPicture, counts: tuple[int, int]) -> None:
    """Add the ends of the numbers: so many pictures, and so many rows."""
    for extreme, rows in ends.shown():
        items = _load(rows, find, counts[0], partial(_number, extreme.column))
        result.extremes.append((extreme, items, rows[: counts[1]]))


def _add_pairs(
    result: Galleries,
    decision: Decision,
    copies: DroppedCopies,
    pictures: Pictures,
    settings: tuple[ReportConfig, FindFaces | None],
) -> None:
    """Load what each step dropped as copies beside what it dropped it for, and what lies just beyond its distance."""
    config, find_faces = settings
    scored = any(step_of(summary).unsafe_image_columns() for summary in decision.summary.steps)
    for summary in decision.summary.steps:
        step, rows = step_of(summary), copies.rows(summary.name)
        beyond, compared = pairs_beyond(decision, summary, config.samples)
        names = [row["duplicate_of"] for row in rows]
        if config.pictures == "all" or not scored:
            # What lies beyond the distance is another picture, which no step has scored.
            names += [other for _, other, _ in beyond if isinstance(other, str)]
        found: dict[str, Thumbnail] = {}
        others: dict[str, Row] = {}
        if step.links == "references":
            all_shown = config.pictures == "all"
            found = reference_pictures(
                step.evaluation_sets(), names, config.thumbnail_pixels, find_faces, all_shown=all_shown
            )
        else:
            others = find_rows(decision.ledger, names)

        def side(row: Row | str | None, word: str, found: dict[str, Thumbnail] = found) -> Shown:
            if isinstance(row, str):
                return Shown(row={"uid": row}, thumbnail=found.get(row), note=word)
            return Shown(row=row or {"uid": ""}, thumbnail=pictures.of_ledger_row(row) if row else None, note=word)

        pairs = []
        for row in sorted(rows, key=lambda row: (row["raw_shard"], row["key"])) if step.shows_dropped else []:
            other: Row | str | None = row["duplicate_of"]
            if step.links != "references":
                other = others.get(row["duplicate_of"])
            pair = Pair(left=side(row, "dropped"), right=side(other, _kept_word(other)), note=_of_pair(row))
            if pair.left.thumbnail is not None:
                pairs.append(pair)
        order = {(row["raw_shard"], row["key"]): number for number, row in enumerate(rows)}
        pairs.sort(key=lambda pair: order[pair.left.row["raw_shard"], pair.left.row["key"]])
        if pairs:
            total = sum(count for reason, count in summary.dropped.items() if reason != "no-hash")
            result.pairs.append((summary.name, total, pairs))
        near = [
            Pair(left=side(row, "kept"), right=side(other, _kept_word(other)), note=f"{bits} bits apart: not linked")
            for row, other, bits in beyond
        ]
        near = [pair for pair in near if pair.left.thumbnail is not None]
        if near:
            result.beyond.append((summary.name, int(summary.threshold or 0), compared, near))


def _number(column: str, row: Row) -> str:
    return f"{column} {row['value']:.4g}"


def _kept_word(other: Row | str | None) -> str:
    if other is None or isinstance(other, str):
        return "evaluation image" if other else "not in the ledger"
    return "kept" if other["kept"] else f"dropped later, by {other['step']}"


def _of_pair(row: Row) -> str:
    value = "" if row["value"] is None else f", {row['value']:.4g}"
    return f"{row['reason']}{value}" + ("" if row["threshold"] is None else f" (threshold {row['threshold']:.4g})")


def _score(row: Row, word: str) -> str:
    return f"{word}, {row['value']:.4g}"


def _blurred(row: Row) -> str:
    return f"{row['faces_blurred']} face{'s' if row['faces_blurred'] > 1 else ''} blurred"


def _of_group(measured: Mapping[str, str], row: Row) -> str:
    if row["duplicate_of"] is None:
        return "best of the group"
    return "dropped" if row["value"] is None else f"dropped, {measured[row['step']]} {row['value']:.3g}"


def _walk_ledger(
    ledger: Ledger,
    cuts: list[StepSummary],
    groups: list[str],
    count: int,
    looking: Sequence[Callable[[pa.Table], None]],
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Return for each cut the dropped rows nearest to it, and for each group the best and the first others.

    Every table is also given to those of `looking`.
    """
    near: dict[str, list[Row]] = {step.name: [] for step in cuts}
    members: dict[str, list[Row]] = {uid: [] for uid in groups}
    wanted = pa.array(groups, pa.string())
    for _, rows in ledger_by_shard(ledger, list(COLUMNS)):
        for look in looking:
            look(rows)
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


def _walk_kept(decision: Decision, cuts: list[StepSummary], count: int) -> tuple[dict[str, list[Row]], Ends]:
    """Return for each cut the kept rows nearest to it, and the kept rows at the ends of the numbers there are."""
    thresholds = {step.name: step.threshold for step in cuts}
    near: dict[str, list[Row]] = {step.name: [] for step in cuts}
    ends = Ends(count=count)
    texts = {f"cut {step.name}": found[0].expression for step in cuts if (found := cuts_of(step))}
    texts |= {f"end {name}": text for name, text in columns().items()}
    for place, rows in kept_values(decision, texts):
        kind, name = place.split(" ", 1)
        if kind == "end":
            ends.add(name, rows)
            continue
        threshold = thresholds[name]
        assert threshold is not None
        near[name] = _nearest([*near[name], *_closest(rows, threshold, count)], threshold, count)
    return near, ends


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
    return heapq.nsmallest(count, rows, key=lambda row: (row["uid"] or "", row["key"]))


def _with_place(rows: pa.Table, shard: str) -> pa.Table:
    """Return index rows with the columns of the ledger that say where a sample lies."""
    return (
        rows.append_column("kept", pa.array([True] * rows.num_rows))
        .append_column("out_shard", pa.array([shard] * rows.num_rows, pa.string()))
        .append_column("out_key", rows["key"])
    )


def _as_kept(row: Row, shard: str) -> Row:
    """Return an index row in the ledger's words."""
    return {**row, "kept": True, "out_shard": shard, "out_key": row["key"]}

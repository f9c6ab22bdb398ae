"""One step of a run, sample by sample: where each comes from, what the ledger says, and the picture that was seen."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.pipeline.captions import CAPTION, CAPTIONS, Rotation
from headrace.pipeline.seen import digest_of, row_hashes, text_of
from headrace.shards.imports.source import SOURCE_COLUMN
from headrace.text import without_secrets
from headrace.trace.lookup import TEXTS, Opened
from headrace.trace.origin import Origin, origin_of, verdicts
from headrace.trace.redraw import Redrawn, open_redrawer
from headrace.trace.replaced import Replacements

PROOFS = {
    "proven": "the record of the run proves that these are the samples the step saw",
    "differs": "the record of the run names other samples: the mixture or the data was changed since",
    "not told": "the record of the run says that samples were replaced, and it cannot be told which",
    "not recorded": "the run has no record of this step: these are the samples that the order plans",
    "planned": "the run has not done this step: these are the samples that the order plans",
    "in part": "one position is looked at: the record of the run is of whole steps",
    "no record": "a mixture file has no record: these are the samples that the order plans",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedSample:
    """One row of a step's batch."""

    position: int
    source: str
    epoch: int
    """Which time the source is gone through, from 0 on."""
    shard: str
    tar: str
    """URL of the tar."""
    offset: int
    """Byte of the image in it."""
    size: int
    key: str
    uid: str | None
    url: str | None
    caption: str | None
    label: int | str | None
    imported_from: str | None
    """The input of `headrace import` that it was."""
    instead_of: str | None
    """Key of the sample that is planned here and was damaged; None: this one is planned."""
    damage: str | None
    """What was wrong with that."""
    verdict: Mapping[str, Any] | None
    """What the ledger says; None: there is none."""
    windows: tuple[tuple[int, int, int, int, bool], ...]
    """Of each view (top, left, height, width, flipped), of samples with a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedStep:
    """A step, or one position of it."""

    step: int
    positions: tuple[int, int]
    """The first, and the first behind it."""
    proof: str
    """One of PROOFS."""
    skipped: str | None
    """Why the step did not move the weights; None: it did, or nothing says so."""
    samples: list[TracedSample]
    pictures: dict[int, bytes]
    """By position: a JPEG."""
    origins: dict[str, str]
    """Of each source, for people."""
    note: str
    """How pictures may differ from what the run saw, and how many cannot be made again; empty: there is nothing."""


def trace_step(
    opened: Opened,
    replacements: Replacements,
    positions: range,
    *,
    pictures: int,
    jobs: Sequence[str] = (),
) -> TracedStep:
    """Return what `positions`, of one step, gave: every sample, and pictures of the first so many."""
    step = opened.history.step_of(positions.start)
    whole = positions == opened.history.positions(step)
    given, told = _recorded(replacements, positions, step)
    redrawn: dict[int, Redrawn] = {}
    with open_redrawer(opened) as redrawer:
        if not told:  # nobody wrote down which were damaged: look
            found = redrawer.redraw(positions, pictures=False)
            given = {one.position: (len(one.damaged), one.damaged[0].message) for one in found if one.damaged}
        instead = {place: opened.replacement(place, count)[1] for place, (count, _) in given.items()}
        for one in redrawer.redraw(positions[:pictures], instead):
            redrawn[one.position] = one
            if one.damaged and opened.history.recorded(step) is None:
                given.setdefault(one.position, (len(one.damaged), one.damaged[0].message))
    rows, planned = _rows(opened, positions, given)
    origins = [origin_of(source.dataset, jobs) for source in opened.sources]
    samples = [
        _sample(opened, row, planned[row["position"]], given.get(row["position"]), redrawn.get(row["position"]))
        for row in rows
    ]
    samples = _with_verdicts(opened, samples, origins, shown=set(redrawn))
    found_pictures = {row["position"]: picture for row in rows if (picture := _picture_of(row, redrawn))}
    return TracedStep(
        step=step,
        positions=(positions.start, positions.stop),
        proof=_proof(opened, step, rows, told=told) if whole else _unproven(opened, step, whole=False),
        skipped=opened.history.skipped.get(step),
        samples=samples,
        pictures=found_pictures,
        origins={source.config.name: origin.text for source, origin in zip(opened.sources, origins, strict=True)},
        note="; ".join(filter(None, [opened.note, _without_picture(len(redrawn) - len(found_pictures))])),
    )


def _recorded(replacements: Replacements, positions: range, step: int) -> tuple[dict[int, tuple[int, str]], bool]:
    """Return position -> (damaged samples there, what was wrong), and whether that is known to be all."""
    found = replacements.of_step(step)
    if found is None:
        return {}, False
    return {
        one.position: (one.story.num_damaged, one.story.message) for one in found if one.position in positions
    }, True


def _rows(
    opened: Opened, positions: range, given: Mapping[int, tuple[int, str]]
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return the index row of the sample that each position gave, and the key of the one planned there."""
    placed = opened.placed(np.array(positions, np.int64))
    columns = (*TEXTS, SOURCE_COLUMN, CAPTIONS)
    rows: list[dict[str, Any]] = [{} for _ in positions]
    for source in np.unique(placed.source).tolist():
        here = np.flatnonzero(placed.source == source)
        for number, row in zip(here.tolist(), opened.rows(source, placed.sample[here], columns), strict=True):
            rows[number] = row
    planned = {position: str(row["key"]) for position, row in zip(positions, rows, strict=True)}
    for position, (num_damaged, _) in given.items():
        source, sample = opened.replacement(position, num_damaged)
        (rows[position - positions.start],) = opened.rows(source, np.array([sample], np.int64), columns)
    for number, row in enumerate(rows):
        epoch = int(placed.epoch[number])
        row |= {"position": positions[number], "number": int(placed.source[number]), "epoch": epoch}
    return rows, planned


def _sample(
    opened: Opened, row: Mapping[str, Any], planned: str, damage: tuple[int, str] | None, redrawn: Redrawn | None
) -> TracedSample:
    source = opened.sources[row["number"]]
    return TracedSample(
        position=row["position"],
        source=source.config.name,
        epoch=row["epoch"],
        shard=row["shard"],
        tar=without_secrets(source.dataset.tar_url(row["shard_number"])),
        offset=row["offset"],
        size=row["size"],
        key=row["key"],
        uid=_text(row.get("uid")),
        url=_text(row.get("url")),
        caption=_text(_caption_given(opened, row)),
        label=row.get("label") if isinstance(row.get("label"), int) else _text(row.get("label")),
        imported_from=_text(row.get(SOURCE_COLUMN)),
        instead_of=planned if damage else None,
        damage=damage[1] if damage else None,
        verdict=None,
        windows=tuple((one.top, one.left, one.height, one.width, one.flipped) for one in redrawn.windows)
        if redrawn
        else (),
    )


def _caption_given(opened: Opened, row: Mapping[str, Any]) -> str | None:
    """Return the caption that a stream gives of a row, of those that it holds."""
    config = opened.sources[row["number"]].config
    if config.captions == "first":
        return row.get(CAPTION)
    rotation = Rotation(opened.history.mixture.seed, config.name)
    return rotation.of_epoch(row.get(CAPTIONS), key=row["key"], epoch=row["epoch"]) or row.get(CAPTION)


def _picture_of(row: Mapping[str, Any], redrawn: Mapping[int, Redrawn]) -> bytes:
    """Return the picture of a row; none if now another sample comes than in the run: data rotted, or was mended."""
    one = redrawn.get(row["position"])
    return one.picture if one is not None and one.key == row["key"] else b""


def _without_picture(num_samples: int) -> str:
    return f"{num_samples:,} cannot be made again: what lies there now is not what the run read" if num_samples else ""


def _text(value: Any) -> str | None:
    return None if value is None else without_secrets(str(value))


def _with_verdicts(
    opened: Opened, samples: list[TracedSample], origins: Sequence[Origin], *, shown: set[int]
) -> list[TracedSample]:
    by_source = {source.config.name: origin for source, origin in zip(opened.sources, origins, strict=True)}
    found = {
        name: verdicts(
            origin,
            [sample.key for sample in samples if sample.source == name],
            in_full=[sample.key for sample in samples if sample.source == name and sample.position in shown],
        )
        for name, origin in by_source.items()
    }
    return [dataclasses.replace(sample, verdict=found[sample.source].get(sample.key)) for sample in samples]


def _proof(opened: Opened, step: int, rows: Sequence[Mapping[str, Any]], *, told: bool) -> str:
    """Return whether the record of the run proves that the step saw these rows."""
    recorded = opened.history.recorded(step)
    if recorded is None:
        return _unproven(opened, step, whole=True)
    position = np.array([row["position"] for row in rows], np.int64)
    source = np.array([row["number"] for row in rows], np.int64)
    digest = text_of(*digest_of(row_hashes(position, source, [row["key"] for row in rows])))
    if digest == recorded.digest:
        return "proven"
    return "differs" if told else "not told"


def _unproven(opened: Opened, step: int, *, whole: bool) -> str:
    if not opened.history.is_run:
        return "no record"
    if step > opened.history.done:
        return "planned"
    return "not recorded" if whole else "in part"

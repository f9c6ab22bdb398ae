"""Which runs over-fit: their validation loss rises although they go on training.

Two signs, either is enough. Within a run, the last validation loss lies above an earlier one. Among runs of the same
model on the same images, a longer one ends higher than a shorter one (On Data Scaling in Masked Image Modeling,
arXiv:2206.04664, section 4, where only the ends of runs are known).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from headrace.train.scaling.collect import RunRow

TOLERANCE = 0.002
"""Share of the loss by which it must have risen. A guess: what two seeds of one run differ by was not measured."""
FALLING = 0.005
"""A loss that fell by this share, over the last quarter of a run or from a shorter run, was still getting better."""

Word = Literal["over-fits", "still falling", "settled", "not known"]


class Facts(TypedDict):
    """What a verdict says beside its word."""

    best_loss: float | None
    best_step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the validation loss did."""

    word: Word
    why: str
    best_loss: float | None = None
    best_step: int | None = None


def judge(rows: Sequence[RunRow]) -> dict[str, Verdict]:
    """Return a verdict by name of the run."""
    shorter = _best_shorter(rows)
    return {row.name: _judge_one(row, shorter.get(row.name)) for row in rows}


def _best_shorter(rows: Sequence[RunRow]) -> Mapping[str, RunRow]:
    """Return for each run the shorter one, of the same model on the same images, that ended lowest."""
    found: dict[str, RunRow] = {}
    for row in rows:
        for other in rows:
            if not _alike(row, other) or other.validation_loss is None:
                continue
            best = found.get(row.name)
            if best is None or best.validation_loss is None or other.validation_loss < best.validation_loss:
                found[row.name] = other
    return found


def _alike(row: RunRow, other: RunRow) -> bool:
    same = (row.objective, row.parameters, row.samples) == (other.objective, other.parameters, other.samples)
    known = row.parameters is not None and row.samples is not None and row.steps is not None
    return same and known and other.steps is not None and row.steps is not None and other.steps < row.steps


def _judge_one(row: RunRow, shorter: RunRow | None) -> Verdict:
    if row.validation_loss is None:
        return Verdict(word="not known", why="no validation loss")
    best_step, best = min(row.curve, key=lambda point: point[1], default=(None, row.validation_loss))
    facts: Facts = {"best_loss": best, "best_step": best_step}
    if best_step is not None and _risen(row.validation_loss, best):
        rise = row.validation_loss / best - 1
        return Verdict(word="over-fits", why=f"{rise:.1%} above its best, at step {best_step:,}", **facts)
    before = None if shorter is None else shorter.validation_loss
    if shorter is not None and before is not None and _risen(row.validation_loss, before):
        rise = row.validation_loss / before - 1
        return Verdict(word="over-fits", why=f"{rise:.1%} above {shorter.name}, which is shorter", **facts)
    if len(row.curve) >= 2:
        quarter = 0.75 * row.curve[-1][0]
        step, before = max((point for point in row.curve if point[0] <= quarter), default=row.curve[0])
        return _falling(row.validation_loss, before, f"of step {step:,}", facts)
    if shorter is not None and before is not None:
        return _falling(row.validation_loss, before, f"of {shorter.name}, which is shorter", facts)
    return Verdict(word="not known", why="one validation loss, and no shorter run to compare it with", **facts)


def _falling(loss: float, before: float, where: str, facts: Facts) -> Verdict:
    fell = (before - loss) / abs(before) if before else 0.0
    return Verdict(word="still falling" if fell > FALLING else "settled", why=f"{fell:.1%} under that {where}", **facts)


def _risen(loss: float, before: float) -> bool:
    return loss > before + TOLERANCE * abs(before)

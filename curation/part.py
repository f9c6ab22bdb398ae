"""One of N parts of a stage, for any scheduler: `--part 2/4` in a process of its own, on any machine that sees the job.

Part I has every Nth unit of the stage, whether it is done or not, so which units are whose follows from N alone. The
first part that comes prepares the stage (reads the list, removes leftovers) and writes down what is divided; every
other compares, so a part of another N, recipe or input is refused. Parts tell each other only by files:

    parts/STAGE/plan.json   what is divided: N, the recipe, the units
    parts/STAGE/I.holder    who does part I now; a second one is refused, one that is gone is replaced
    parts/STAGE/I.done      part I is done

`check_merge` names the parts that are missing; what finishes the stage is the stage itself, which finds all units done.
A part that runs again after that finds nothing to do, and leaves no plan behind: the others would never come.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrace import atomic, files, urlpath
from headrace.config import canonical_json
from headrace.curation.job import HOLDER_SUFFIX, Job, check_no_owner, check_no_part_runs, fence_beside_owner
from headrace.curation.ledger import digest_of
from headrace.lease import Fence, HeldError, held, holder_of
from headrace.shards.part import Part

log = logging.getLogger(__name__)

MAX_NAMED = 10
LOOK_SECONDS = 1.0
"""Between two looks of a part that waits until another has prepared the stage."""
DONE_SUFFIX = ".done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Divided:
    """A stage as units of work that any process can do."""

    prepare: Callable[[], None]
    """Do what one process must do before the others begin."""
    units: Callable[[], list[str]]
    """Return the names of all units, done or not, in an order that is the same everywhere."""
    done: Callable[[], set[str]]
    """Return the names of those that are done."""
    run: Callable[[Sequence[str], Fence], None]
    """Do some of them; the fence is asked before each is committed."""
    starts_over: bool = False
    """True if `prepare` removes first what is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSummary:
    """What one part did."""

    part: str
    units: int
    """Units of this part."""
    done_before: int
    """Of these, units that were done when it began."""
    was_done: bool
    """The part had ended before; nothing was done now."""
    kept: bool = False
    """--start-over was given, and these parts had started over already: nothing was removed now."""

    def __str__(self) -> str:
        kept = "; its parts have started over before, so nothing was removed now" if self.kept else ""
        if self.was_done:
            return f"part {self.part} is done already; nothing was done again{kept}"
        before = f", {self.done_before} of them before" if self.done_before else ""
        return f"part {self.part} is done: {self.units} units{before}{kept}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is divided."""

    parts: int
    recipe: str
    units: str
    """Digest of their names."""
    num_units: int
    starts_over: bool = False
    """What was there was removed when the parts began. Not in plans of older versions."""


def run_part(
    job: Job, stage: str, divided: Divided, part: Part, *, recipe: str, take_over: bool = False
) -> PartSummary:
    """Do one part of a stage; `recipe` is the digest of what must be the same in all parts.

    The job must be begun (`begin_job`). Raises ValueError if the same part runs now, or others run that are no parts of
    the same, or the job is owned.
    """
    folder = _folder(job, stage)
    advice = "it goes on alone; if you know that it is gone, pass --take-over"
    what = f"{job.url}: part {part.number} of {stage} is under way"
    with held(_holder(folder, part.number), what=what, advice=advice, take_over=take_over) as lease:
        check_no_owner(job, take_over=take_over)
        # Now, as to prepare may take long: whoever takes the job over meanwhile is another owner.
        fence = Fence((*lease.fence.holders, *fence_beside_owner(job).holders))
        if not take_over:
            check_no_part_runs(job, but_stage=stage)
        prepared = _agree(job, stage, divided, part, recipe)
        if prepared is None:
            units = len(part.mine(divided.units()))
            return PartSummary(part=str(part), units=units, done_before=units, was_done=True)
        kept = divided.starts_over and not prepared
        mine, done = part.mine(divided.units()), divided.done()
        before = len(done.intersection(mine))
        url = urlpath.join(folder, f"{part.number}{DONE_SUFFIX}")
        if files.exists(url) and before == len(mine):
            return PartSummary(part=str(part), units=len(mine), done_before=before, was_done=True, kept=kept)
        log.info("part %s of %s: %d units, %d of them are done already", part, stage, len(mine), before)
        divided.run([name for name in mine if name not in done], fence)
        lease.check()
        _check_all_there(job, stage, set(mine) - divided.done())
        atomic.write_atomic(url, (canonical_json({"units": len(mine)}) + "\n").encode())
    return PartSummary(part=str(part), units=len(mine), done_before=before, was_done=False, kept=kept)


def check_merge(job: Job, stage: str, divided: Divided, *, recipe: str) -> None:
    """Raise ValueError that names the parts that are not done, if any unit is left, or there is none."""
    folder = _folder(job, stage)
    plan = _read_plan(folder)
    if plan is None:
        units = divided.units()
        left = sorted(set(units) - divided.done())
        if left or not units:  # of a fetch that nobody has begun the units are not known
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            to_do = f", and {left[0]}{more} are to do" if left else ""
            raise ValueError(
                f"{job.url}: no part of {stage} has run{to_do}; run it with --part 1/N to N/N, or without --merge"
            )
        return
    _check_recipe(job, stage, plan, recipe)
    if _is_whole(divided):  # a part that came late has begun anew what others had finished
        return
    names = set(files.list_names(folder))
    missing = [number for number in range(1, plan.parts + 1) if f"{number}{DONE_SUFFIX}" not in names]
    if missing:
        told = [_what_became(folder, number, names) for number in missing[:MAX_NAMED]]
        more = f"; and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise ValueError(
            f"{job.url}: {len(missing)} of {plan.parts} parts of {stage} are not done: {'; '.join(told)}{more}; run "
            f"them with --part I/{plan.parts}, or the command without --merge, which does what is left"
        )


def forget_parts(job: Job, stage: str) -> None:
    """Remove what the parts of a stage told each other: the stage is finished."""
    folder = _folder(job, stage)
    # The plan goes last: without it a part that comes late would divide anew.
    names = sorted(files.list_names(folder), key=lambda name: name == "plan.json")
    for name in names:
        atomic.remove(urlpath.join(folder, name))
    atomic.remove_folder(folder)
    atomic.remove_folder(job.parts)


def _check_all_there(job: Job, stage: str, left: set[str]) -> None:
    """Raise ValueError if units that were done are not: a worker on another machine wrote them there."""
    if left:
        raise ValueError(
            f"{job.url}: {len(left)} units of {stage} were done and are not there, the first {min(left)}; name a job "
            "folder or URL that all machines see"
        )


def _is_whole(divided: Divided) -> bool:
    """True if every unit is done, and there is one."""
    units = divided.units()
    return bool(units) and divided.done().issuperset(units)


def _agree(job: Job, stage: str, divided: Divided, part: Part, recipe: str) -> bool | None:
    """Prepare the stage and write the plan, or wait until another part has, and compare; True if this one prepared it.

    None if nothing is left to divide. Raises ValueError.
    """
    folder, prepared = _folder(job, stage), False
    while (plan := _read_plan(folder)) is None:
        try:
            with held(urlpath.join(folder, "prepare.json"), what="prepared", advice=""):
                if _read_plan(folder) is None:
                    divided.prepare()
                    if _is_whole(divided):
                        break
                    told = {**_told(divided.units()), "starts_over": divided.starts_over}
                    _write_plan(folder, _Plan(parts=part.of, recipe=recipe, **told))
                    prepared = True
        except HeldError:
            log.info("part %s of %s waits until another part has prepared it", part, stage)
            time.sleep(LOOK_SECONDS)
    if plan is None:
        return None
    if plan.parts != part.of:
        raise ValueError(
            f"{job.url}: {stage} is divided into {plan.parts} parts, not {part.of}; go on with --part I/{plan.parts}, "
            "or finish it without --part"
        )
    _check_recipe(job, stage, plan, recipe)
    if divided.starts_over and not plan.starts_over:
        raise ValueError(
            f"{job.url}: the parts of {stage} were begun without --start-over, which would remove what they have done; "
            f"finish them without it, or run the whole {stage} with --start-over and without --part"
        )
    if plan != _Plan(parts=part.of, recipe=recipe, starts_over=plan.starts_over, **_told(divided.units())):
        raise ValueError(
            f"{job.url}: what {stage} works on has changed since its parts began ({plan.num_units} units then); finish "
            "it without --part"
        )
    return prepared


def _check_recipe(job: Job, stage: str, plan: _Plan, recipe: str) -> None:
    if plan.recipe != recipe:
        raise ValueError(
            f"{job.url}: the parts of {stage} were begun with another recipe; take that one, or finish {stage} without "
            "--part and --merge"
        )


def _told(names: Sequence[str]) -> dict[str, Any]:
    return {"units": digest_of({"units": list(names)}), "num_units": len(names)}


def _folder(job: Job, stage: str) -> str:
    return urlpath.join(job.parts, stage)


def _holder(folder: str, number: int) -> str:
    return urlpath.join(folder, f"{number}{HOLDER_SUFFIX}")


def _read_plan(folder: str) -> _Plan | None:
    url = urlpath.join(folder, "plan.json")
    try:
        return _Plan(**json.loads(files.read_bytes(url)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{url}: damaged: {error}; remove the folder, and begin the parts anew") from error


def _write_plan(folder: str, plan: _Plan) -> None:
    atomic.write_atomic(urlpath.join(folder, "plan.json"), (canonical_json(asdict(plan)) + "\n").encode())


def _what_became(folder: str, number: int, names: set[str]) -> str:
    """Say in words what is known of a part that is not done."""
    holder = holder_of(_holder(folder, number)) if f"{number}{HOLDER_SUFFIX}" in names else None
    if holder is None:
        return f"part {number} has not run, or stopped at an error"
    left = holder.is_dead or holder.seems_silent
    return f"part {number} {'was left by' if left else 'is under way by'} {holder}"

"""One run cooled down at several points: a branch for each, which goes on from its checkpoint to an end of its own.

Up to its cooldown a schedule without an end does not know how long the run is. So a branch is the run that had planned
this end from its first step, and the steps before are trained once. Source: Scaling Vision Transformers,
arXiv:2106.04560, section 3.5.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from headrace.train.config import RunConfig
from headrace.train.optim.cooldown import ConstantConfig, RsqrtConfig
from headrace.train.steady.changes import period_at, periods, planned_changes


@dataclass(frozen=True, slots=True)
class Cooldown:
    """Where a branch leaves a run, and how many steps it takes to its end."""

    step: int
    """Steps of the run that are done there; it has a checkpoint of this step."""
    steps: int
    """Steps in which the rate falls."""


def read_cooldown(text: str) -> Cooldown:
    """Return what `STEP:STEPS` says. Raises ValueError for what is no such text."""
    step, colon, steps = text.replace("_", "").partition(":")
    if not (colon and step.isdecimal() and steps.isdecimal() and int(step) and int(steps)):
        raise ValueError(
            f"--cooldown {text!r}: expected STEP:STEPS, a checkpoint's step and how long to cool down, as 200000:20000"
        )
    return Cooldown(int(step), int(steps))


def cooled_down(config: RunConfig, cooldown: Cooldown) -> RunConfig:
    """Return the branch of a run; its folder stands beside the run's.

    Raises ValueError where the run's schedule has no cooldown, has begun its own by then, or has ended.
    """
    at = cooldown.step
    where = f"--cooldown {at}:{cooldown.steps}"
    if at > config.total_steps:
        raise ValueError(f"{where}: the run has {config.total_steps:,} steps")
    changes = {step: dict(made) for step, made in planned_changes(config.changes_at).items() if step <= at}
    last = period_at(periods(config), at).config
    if not isinstance(last.schedule, RsqrtConfig | ConstantConfig):
        raise ValueError(f"{where}: schedule {last.schedule.kind} has no cooldown; rsqrt and constant have")
    begins = last.steps - last.schedule.cooldown_steps
    if at > begins:
        raise ValueError(
            f"{where}: the run's own cooldown has begun at step {begins:,}; take a checkpoint of that step or before"
        )
    end = {"steps": at + cooldown.steps, "schedule.cooldown_steps": cooldown.steps}
    changes[at] = changes.get(at, {}) | end
    return dataclasses.replace(
        config,
        out=f"{config.out.rstrip('/')}-cooled-{at:08d}",
        continue_from=f"{config.out.rstrip('/')}/checkpoints/{at:08d}",
        changes_at={str(step): made for step, made in changes.items()},
    )


def branches(config: RunConfig, texts: list[str]) -> list[RunConfig]:
    """Return the branches that `--cooldown` names, in the order of their steps.

    Raises ValueError for what is none, and for two that leave at one step.
    """
    cooldowns = sorted((read_cooldown(text) for text in texts), key=lambda cooldown: cooldown.step)
    for one, other in itertools.pairwise(cooldowns):
        if one.step == other.step:
            raise ValueError(f"--cooldown: two leave the run at step {one.step}, and would write into one folder")
    return [cooled_down(config, cooldown) for cooldown in cooldowns]

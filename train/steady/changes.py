"""Changes that a run is to make on its way: `changes_at: {STEP: {optimizer.lr: 0.0005}}`.

A run is a function of its config, changes included: killed and started again it makes each at the same step. So what is
ahead may be planned anew at any time, and what is behind may not.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.config import build_config, config_to_dict
from headrace.pipeline import Mixture
from headrace.pipeline.mixture import Segment

if TYPE_CHECKING:
    from headrace.train.config import RunConfig

CHANGEABLE = ("clip_grad_norm", "steps", "optimizer", "schedule", "mixture.weights", "mixture.lanes", "ema")
FIXED = tuple(f"optimizer.{name}" for name in ("decays", "decay_multipliers", "momentum_dtype", "min_factored"))
WEIGHTS, LANES = "mixture.weights", "mixture.lanes"

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Period:
    """Steps with one and the same config."""

    first_step: int
    """Steps done when it begins."""
    config: "RunConfig"
    """What holds: without changes."""
    changes: dict[str, tuple[Any, Any]]
    """What it changed: key path -> before and after; empty for the first."""
    rates: tuple[float, float]
    """Learning rate of its first step by the numbers that held before, and by its own."""

    def __str__(self) -> str:
        """Return what it changed."""
        return ", ".join(f"{path} {was} -> {now}" for path, (was, now) in self.changes.items())

    @property
    def jump(self) -> str:
        """How the learning rate jumps where it begins; empty where it does not."""
        before, after = self.rates
        return "" if math.isclose(before, after, rel_tol=1e-6) else f"the learning rate jumps, {before:g} -> {after:g}"


def planned_changes(given: Mapping[Any, Any]) -> dict[int, Changes]:
    """Return the changes by step, in order, each key a dotted path. Raises ValueError for a step that is no number."""
    planned = {}
    for step, changes in given.items():
        if not str(step).isdecimal() or int(step) < 1:
            raise ValueError(f"{step!r} is not a step: a whole number from 1 on, the steps done when the change comes")
        planned[int(step)] = dict(_flat(changes))
    return dict(sorted(planned.items()))


def _flat(changes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value); the weights of a mixture stay together, as names of sources may have dots."""
    weights = {}
    for key, value in changes.items():
        path = f"{above}{key}"
        if path.startswith(f"{WEIGHTS}."):
            weights[path.removeprefix(f"{WEIGHTS}.")] = value
        elif isinstance(value, Mapping) and path != WEIGHTS:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value
    if weights:
        yield WEIGHTS, weights


def periods(config: "RunConfig") -> list[Period]:
    """Return the periods of a run. Raises ValueError naming the change that cannot be made."""
    now = dataclasses.replace(config, changes_at={})
    found = [Period(first_step=0, config=now, changes={}, rates=(now.rate(0), now.rate(0)))]
    for step, changes in planned_changes(config.changes_at).items():
        try:
            _check_keys(changes)
            changed = _changed(now, changes)
            if step > now.steps or max(step, changed.steps) == step:
                raise ValueError(f"the run has {max(now.steps, changed.steps)} steps by then: it comes too late")
        except ValueError as error:
            raise ValueError(f"changes_at.{step}: {error}") from error
        told = _before_and_after(now, changed, changes)
        rates = (now.rate(step), changed.rate(step))
        found.append(Period(first_step=step, config=changed, changes=told, rates=rates))
        now = changed
    return found


def period_at(all_periods: Sequence[Period], step: int) -> Period:
    """Return the period that step `step` (0-based) belongs to."""
    return next(period for period in reversed(all_periods) if period.first_step <= step)


def averaged_since(all_periods: Sequence[Period], step: int) -> int | None:
    """Return when the average of the weights began that a run has when `step` steps are done; None = it has none."""
    since: int | None = None
    for period in all_periods:
        if period.first_step > step:
            break
        if period.config.ema is None:
            since = None
        elif since is None:
            since = period.first_step
    return since


def keeps_average(config: "RunConfig") -> bool:
    """True if the run has an average of its weights, from its first step or a later one on."""
    return any(period.config.ema is not None for period in periods(config))


def planned_mixture(config: "RunConfig") -> Mixture:
    """Return the mixture of the whole run: changes of weights and lanes are segments of it."""
    return mixture_with(config.mixture, config.changes_at, global_batch=config.global_batch)


def mixture_with(mixture: Mixture, changes_at: Mapping[Any, Any], *, global_batch: int) -> Mixture:
    """Return a mixture with the changes of weights and lanes that a run file plans as segments of it."""
    planned = [planned for planned in planned_changes(changes_at).items() if {WEIGHTS, LANES} & planned[1].keys()]
    if not planned:
        return mixture
    segments = {segment.start: segment for segment in mixture.segments}
    for step, changes in planned:
        start = step * global_batch
        old = segments.get(start)
        weights = ({} if old is None else old.weights) | _weights(changes.get(WEIGHTS, {}), step)
        lanes = changes.get(LANES, 0 if old is None else old.lanes)
        if type(lanes) is not int:
            raise ValueError(f"changes_at.{step}: mixture.lanes must be a whole number, got {lanes!r}")
        segments[start] = Segment(start=start, weights=weights, lanes=lanes)
    ordered = tuple(segments[start] for start in sorted(segments))
    try:
        return dataclasses.replace(mixture, segments=ordered)
    except ValueError as error:
        raise ValueError(f"changes_at: the mixture it makes: {error}") from error


def difference_before(old: Mapping[Any, Any], new: Mapping[Any, Any], step: int) -> str | None:
    """Return what of the changes before `step`, which are made, differs; None = nothing."""
    was, now = planned_changes(old), planned_changes(new)
    for made in sorted(was.keys() | now.keys()):
        if made < step and was.get(made) != now.get(made):
            return f"changes_at.{made}: was {was.get(made)!r}, is {now.get(made)!r}, and {step} steps are done"
    return None


def is_changeable(path: str) -> bool:
    """True if the value at a dotted path of a run file may change on the way."""
    inside = any(path == key or path.startswith(f"{key}.") for key in CHANGEABLE)
    # The groups of an optimizer are made by the one, or by the other.
    return inside and not path.startswith(FIXED) and not path.endswith(("kind", "layer_decay"))


def _check_keys(changes: Changes) -> None:
    if not changes:
        raise ValueError("it changes nothing")
    for path in changes:
        if path.startswith("mixture.segments"):
            raise ValueError("mixture.segments is planned by position, in the mixture; here it is mixture.weights")
        if not is_changeable(path) and path != "schedule.kind":
            known = ", ".join(f"{key}.*" if key in ("optimizer", "schedule", "ema") else key for key in CHANGEABLE)
            raise ValueError(f"{path} cannot change on the way; what can: {known}")


def _changed(config: "RunConfig", changes: Changes) -> "RunConfig":
    from headrace.train.optim import SetsGroups  # imports torch; `trace` and `why` read plans of changes without it

    if not isinstance(config.optimizer, SetsGroups):
        fixed = [path for path in changes if path.startswith("optimizer.") and path != "optimizer.lr"]
        if fixed:
            raise ValueError(f"{fixed[0]} cannot change on the way: {config.optimizer.kind} has no set_groups")
    data = config_to_dict(config)
    if changes.get("schedule.kind", data["schedule"]["kind"]) != data["schedule"]["kind"]:
        data["schedule"] = {}  # another schedule has other fields
    for path, value in changes.items():
        *above, key = path.split(".")
        if path in (WEIGHTS, LANES):
            continue
        if above and data[above[0]] is None:
            data[above[0]] = {}  # it is switched on
        (data[above[0]] if above else data)[key] = value
    return build_config(type(config), data)


def _before_and_after(old: "RunConfig", new: "RunConfig", changes: Changes) -> dict[str, tuple[Any, Any]]:
    was, now = config_to_dict(old), config_to_dict(new)
    now |= {path: value for path, value in changes.items() if path in (WEIGHTS, LANES)}
    return {path: (_value(was, path), now.get(path, _value(now, path))) for path in changes}


def _value(data: Any, path: str) -> Any:
    if path == WEIGHTS:
        return {source["name"]: source["weight"] for source in data["mixture"]["sources"]}
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _weights(given: Any, step: int) -> dict[str, float]:
    if not isinstance(given, Mapping) or not all(type(weight) in (int, float) for weight in given.values()):
        raise ValueError(f"changes_at.{step}: mixture.weights must give a number for each name, got {given!r}")
    return {name: float(weight) for name, weight in given.items()}

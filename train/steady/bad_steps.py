"""Steps that would spoil the weights: which they are, and what becomes of them.

A step that is skipped uses up its batch and its place in the schedule; weights and moments stay. So position and step
belong together as in any other run, and a resumed run skips the same steps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from headrace.train.config import RunConfig
from headrace.train.parallel.layout import piece_of, whole

Reason = Literal["non_finite", "spike"]

BUDGET_STEPS = 1000
"""`max_skipped_steps` counts among so many of the latest steps."""
MIN_SPREAD = 0.05
"""Least standard deviation of the logarithm of a norm: steps that are nearly alike make no spike of 10 %."""
TINY = 1e-30


class Norms(NamedTuple):
    """Norms of one step's gradient before clipping."""

    total: float
    first_layer: float
    """Of the first layer alone: instabilities show there some steps earlier (MoCo v3, arXiv:2104.02057, section 4)."""


class Fault(NamedTuple):
    """Why a step must not move the weights."""

    reason: Reason
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """One step that did not move the weights."""

    step: int
    """Steps done with it, as in `metrics.jsonl`."""
    reason: Reason
    loss: float | None
    """None = it was not finite."""
    grad_norm: float | None
    positions: tuple[int, int]
    """First position of its batch, and the first behind it."""
    batch_digest: int
    """Names the set of its samples."""
    missing: int
    """Samples left out of it for want of a caption, a label."""


@dataclass(slots=True)
class StepWatch:
    """What is known of the steps so far: the same on all ranks, and part of a checkpoint."""

    skipped: list[Skipped] = field(default_factory=list)
    recent: list[Norms] = field(default_factory=list)
    """Norms of the latest steps that moved the weights; kept only where spikes are looked for."""

    def judge(self, config: RunConfig, *, loss: float, norms: Norms) -> Fault | None:
        """Return what is wrong with a step; None = nothing."""
        if not math.isfinite(loss + norms.total):
            return Fault("non_finite", f"loss {loss}, gradient norm {norms.total}")
        if config.on_spike == "off" or len(self.recent) < config.spike.window:
            return None
        for name, past, now in zip(Norms._fields, zip(*self.recent, strict=True), norms, strict=True):
            z = z_score(past, now)
            if z > config.spike.z:
                where = "gradient norm" if name == "total" else "gradient norm of the first layer"
                return Fault(
                    "spike",
                    f"{where} {now:.4g} is {z:.1f} standard deviations above the last {len(past)} (spike.z is "
                    f"{config.spike.z:g})",
                )
        return None

    def accept(self, config: RunConfig, norms: Norms) -> None:
        """Count a step that moved the weights."""
        if config.on_spike != "off":
            self.recent = [*self.recent, norms][-config.spike.window :]

    def within_budget(self, config: RunConfig, step: int) -> bool:
        """True if the step after `step` may be skipped too."""
        return sum(one.step > step + 1 - BUDGET_STEPS for one in self.skipped) < config.max_skipped_steps


def z_score(past: Sequence[float], now: float) -> float:
    """Return how many standard deviations the logarithm of `now` lies above those of `past`."""
    logs = [math.log(max(value, TINY)) for value in past]
    mean = math.fsum(logs) / len(logs)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in logs) / len(logs))
    return (math.log(max(now, TINY)) - mean) / max(spread, MIN_SPREAD)


def first_layer_norm(module: nn.Module, device: torch.device) -> Tensor:
    """Return the norm of the gradient of the first layer: the kernel that sees pixels, or else the first parameter.

    Of those that are trained.
    """
    first: nn.Parameter | None = None
    for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
        first = parameter if first is None else first
        if parameter.ndim == 4:
            first = parameter
            break
    if first is None or first.grad is None:
        return torch.zeros((), device=device)
    return whole(torch.linalg.vector_norm(first.grad))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if no value that this process holds is NaN or infinite."""
    return all(bool(torch.isfinite(piece_of(tensor).local).all()) for tensor in tensors)


def watch_to_state(watch: StepWatch) -> dict[str, Any]:
    """Return the watch as plain data for a checkpoint."""
    return {"skipped": [skipped_to_dict(one) for one in watch.skipped], "recent": [list(one) for one in watch.recent]}


def watch_from_state(state: Any) -> StepWatch:
    """Return the watch that `watch_to_state` wrote. Raises ValueError for anything else."""
    try:
        return StepWatch(
            skipped=[skipped_from_dict(one) for one in state["skipped"]],
            recent=[Norms(float(total), float(first)) for total, first in state["recent"]],
        )
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"what it says of skipped steps cannot be read: {error!r}") from error


def skipped_to_dict(one: Skipped) -> dict[str, Any]:
    """Return a skipped step as plain data."""
    return {
        "step": one.step,
        "reason": one.reason,
        "loss": one.loss,
        "grad_norm": one.grad_norm,
        "positions": list(one.positions),
        "batch_digest": one.batch_digest,
        "missing": one.missing,
    }


def skipped_from_dict(data: Any) -> Skipped:
    """Return what `skipped_to_dict` wrote; other keys are left aside. Raises ValueError, KeyError or TypeError."""
    first, end = data["positions"]
    if data["reason"] not in ("non_finite", "spike"):
        raise ValueError(f"unknown reason {data['reason']!r}")
    return Skipped(
        step=int(data["step"]),
        reason=data["reason"],
        loss=None if data["loss"] is None else float(data["loss"]),
        grad_norm=None if data["grad_norm"] is None else float(data["grad_norm"]),
        positions=(int(first), int(end)),
        batch_digest=int(data["batch_digest"]),
        missing=int(data["missing"]),
    )

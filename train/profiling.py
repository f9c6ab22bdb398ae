"""What a few steps spend their time and memory on, for torch's viewers.

`OUT/profile/STEP-rankR.json.gz` is a trace for https://ui.perfetto.dev or chrome://tracing; `STEP-rankR.memory.pickle`
(CUDA only) for https://docs.pytorch.org/memory_viz. A profiled run computes what it would otherwise, slower meanwhile.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

MEMORY_EVENTS = 200_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """A trace of a few steps, written once each time that the run is started."""

    after: int = 10
    """Steps of this start that come before: the first ones compile and warm up."""
    steps: int = 3
    """Steps in the trace."""
    memory: bool = False
    """Also every allocation of the device from this start on, with its stack."""

    def __post_init__(self) -> None:
        if self.after < 0 or self.steps < 1:
            raise ValueError(f"after must be at least 0 and steps at least 1, got {self.after} and {self.steps}")


@contextlib.contextmanager
def profiling(
    config: ProfileConfig | None, folder: Path, *, step: int, rank: int, device: torch.device
) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each step; `step` is how many are done. Without a config it does nothing."""
    if config is None:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    first = step + config.after
    name = folder / f"{first:08d}-rank{rank}"

    def write(trace: profile) -> None:
        trace.export_chrome_trace(f"{name}.json.gz")
        log.info("steps %d to %d are in %s.json.gz", first, first + config.steps - 1, name)
        if config.memory and device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{name}.memory.pickle")  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)

    if config.memory and device.type == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
    elif config.memory:
        log.warning("profile.memory needs a CUDA device: only the trace is written")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, schedule=_schedule(config), on_trace_ready=write) as trace:
        yield trace.step


def _schedule(config: ProfileConfig) -> Callable[[int], ProfilerAction]:
    """Return what to do at each step: nothing, get ready in the step before, record, and write after the last."""

    def action(step: int) -> ProfilerAction:
        at = step - config.after
        if 0 <= at < config.steps:
            return ProfilerAction.RECORD_AND_SAVE if at == config.steps - 1 else ProfilerAction.RECORD
        return ProfilerAction.WARMUP if at == -1 else ProfilerAction.NONE

    return action

"""What a unit of work asks of the machine that does it, for those who schedule: CPUs, and whether a GPU.

It decides where and beside what a unit runs, never what comes of it.
"""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Gpu = Literal["none", "if any", "one"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one unit takes while it runs."""

    cpus: float = 1.0
    """CPUs that it keeps busy."""
    gpu: Gpu = "none"
    """`one`: it cannot do without; `if any`: it takes one where the machine or cluster has some."""

    def takes_gpu(self, *, there_are: bool) -> bool:
        """True if the unit gets a GPU, `there_are` saying if there are any."""
        return self.gpu == "one" or (self.gpu == "if any" and there_are)


ONE_CPU = Resources()


def all_of(several: Iterable[Resources]) -> Resources:
    """Return what suffices for each of several pieces of work that one unit does one after the other."""
    found = list(several) or [ONE_CPU]
    order: tuple[Gpu, ...] = ("none", "if any", "one")
    return Resources(cpus=max(item.cpus for item in found), gpu=max((item.gpu for item in found), key=order.index))


def resources_of(unit: object) -> Resources:
    """Return what a unit says that it takes; one CPU if it says nothing."""
    found = getattr(unit, "resources", ONE_CPU)
    assert isinstance(found, Resources), found
    return found


def has_gpu() -> bool:
    """True if this machine has an NVIDIA GPU that this process may use. Nothing is loaded."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return _devices()


@functools.cache
def _devices() -> bool:
    return any(path.name[6:].isdecimal() for path in Path("/dev").glob("nvidia[0-9]*"))

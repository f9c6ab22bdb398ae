"""Python's garbage collector, kept out of the steps.

It starts by itself after so many allocations, in the middle of a step, and goes through everything that torch and the
model hold: on several ranks each pauses at another step, and all wait for each. What a run holds from its start on is
set aside instead, and the rest is looked through at the same step on every rank.
"""

import contextlib
import gc
from collections.abc import Iterator

COLLECT_EVERY = 100
"""Steps between two looks at young objects; all are looked at when a checkpoint is written."""


@contextlib.contextmanager
def collecting_at_boundaries() -> Iterator[None]:
    """Keep the collector from starting by itself, and leave it as it was found."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_young(step: int) -> None:
    """Look through young objects if it is time."""
    if step % COLLECT_EVERY == 0:
        gc.collect(1)

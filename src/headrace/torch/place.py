"""Which part of the global batches this process reads, and frameworks that would read a batch too many."""

import logging
import math
import os
import sys
from typing import Any

from torch import distributed

log = logging.getLogger(__name__)

FETCHERS = ("lightning.pytorch.loops.fetchers", "pytorch_lightning.loops.fetchers")


def rank_and_world_size() -> tuple[int, int]:
    """Return those of torch's process group; before it is there, of torchrun's environment; else 0 and 1."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def refuse_other_place(rank: int, world_size: int, *, warned: bool) -> bool:
    """Raise ValueError where torch's process group has other numbers than the stream; warn where there is none.

    Return True once that was warned of: whoever loops often hears it once.
    """
    if distributed.is_available() and distributed.is_initialized():
        mine, size = distributed.get_rank(), distributed.get_world_size()
        if (rank, world_size) != (mine, size):
            raise ValueError(
                f"this loader reads as rank {rank} of {world_size}, this process is rank {mine} of {size} of its "
                "group: samples would be doubled or left out; use the loader only once the process group is there, "
                "or pass rank and world_size"
            )
    elif world_size > 1 and not warned:
        log.warning(
            "this loader reads as rank %d of %d, as the environment says, but torch has no process group: "
            "unless something else joins the ranks, each trains a model of its own on a part of the samples",
            rank,
            world_size,
        )
        return True
    return warned


def refuse_fetcher() -> None:
    """Raise ValueError if Lightning asks for a batch too many: of a loader without a length, its checkpoint skips one.

    Called where iteration begins: the fetcher that will ask is a caller.
    """
    frame: Any = sys._getframe(1) if any(name in sys.modules for name in FETCHERS) else None
    while frame is not None:
        if frame.f_globals.get("__name__") in FETCHERS:
            fetcher = frame.f_locals.get("self")
            limits = getattr(getattr(fetcher, "combined_loader", None), "limits", None)
            if getattr(fetcher, "prefetch_batches", 0) and math.inf in (limits or [math.inf]):
                raise ValueError(
                    "Lightning takes one batch more than it trains on from a loader without a length, and a run that "
                    "continues would miss it; pass steps_per_epoch to StreamLoader, or limit_train_batches to Trainer"
                )
        frame = frame.f_back

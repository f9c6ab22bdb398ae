"""Copies of a stream that would double or drop data in silence, and how they are told.

A stream belongs to the process that opened it: to a copy made by fork, pickle or a worker of torch's DataLoader it
would give the same batches once more, and the position of the original would not move. What can be seen from inside is
refused in one line. torch and accelerate are looked at only where the program has imported them.
"""

import logging
import os
import sys
from typing import Any

log = logging.getLogger(__name__)


def refuse_copy(opened_in: int, *, begun: bool) -> None:
    """Raise ValueError in a process forked off from the one (`opened_in`) that opened the stream."""
    if os.getpid() == opened_in:
        return
    done = "begun" if begun else "opened"
    worker = _torch_worker()
    if worker is not None:
        raise ValueError(
            f"the stream was {done} before worker {worker.id} of {worker.num_workers} of a DataLoader was forked off, "
            "and each worker would give every batch once more; a stream has its own threads: use num_workers=0"
        )
    raise ValueError(f"the stream was {done} before this process was forked off; open it in this one")


def refuse_worker(rank: int, world_size: int) -> None:
    """Raise ValueError in a DataLoader's worker unless the stream was opened as that worker's part of the lanes."""
    worker = _torch_worker()
    if worker is None:
        return
    workers = int(worker.num_workers)
    if world_size % workers or rank % workers != worker.id:
        raise ValueError(
            f"the stream was opened as rank {rank} of {world_size} in worker {worker.id} of {workers} of a DataLoader, "
            "so every worker would give the same batches; a stream has its own threads: use num_workers=0, or open it "
            "with rank=rank * num_workers + worker.id and world_size=world_size * num_workers"
        )


def refuse_dispatch(world_size: int) -> None:
    """Raise ValueError if accelerate deals one rank's batches out to all ranks: what the others read is dropped."""
    if world_size == 1 or "accelerate.data_loader" not in sys.modules:
        return
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            loader = frame.f_locals.get("self")
            name = type(loader).__name__
            if name in ("DataLoaderDispatcher", "IterableDatasetShard") and _num_processes(loader) > 1:
                raise ValueError(
                    f"accelerate ({name}) gives each rank a part of this stream and drops what the other ranks read; "
                    "a stream has its rank and world size already: do not `prepare` its DataLoader"
                )
        frame = frame.f_back


def warn_of_group(rank: int, world_size: int) -> None:
    """Warn where torch's process group has other numbers than the stream: ranks of one number read the same samples."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    mine, size = int(distributed.get_rank()), int(distributed.get_world_size())
    if (rank, world_size) != (mine, size):
        log.warning(
            "the stream is rank %d of %d, this process is rank %d of %d of its group: ranks that open the same number "
            "read the same samples, unless something else deals them out; pass rank and world_size to open_stream",
            rank,
            world_size,
            mine,
            size,
        )


def _torch_worker() -> Any:
    data: Any = sys.modules.get("torch.utils.data")
    return data.get_worker_info() if data is not None else None


def _num_processes(loader: Any) -> int:
    state = getattr(loader, "state", None)
    return int(getattr(loader, "num_processes", None) or getattr(state, "num_processes", None) or 1)

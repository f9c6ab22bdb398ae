"""Checkpoints that are written while training goes on.

At most one is on its way. What is to be saved is copied, and a thread of each process writes the copy; rank 0's waits
in the folder for the parts of the others and names it. The threads take part in no collective, so whatever becomes of
the step at hand, the checkpoint is finished. Main threads ask once a step how far it is, in a sum made only then.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.train.config import RunConfig
from headrace.train.parallel.layout import Layout
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.saving import NO_AVERAGE, Save, contents_of
from headrace.train.runs.staging import Arena
from headrace.train.runs.state_file import Progress

# How often one that waits for the end of a save looks for it.
POLL_SECONDS = 0.05
# A run that ends by a fault waits so long for the parts of other processes, which may have ended as well.
LAST_PARTS_SECONDS = 60.0
WAIT_WORTH_A_LINE_SECONDS = 1.0

log = logging.getLogger(__name__)


class BackgroundSaver:
    """Copies what is to be saved, and writes the copy in a thread."""

    def __init__(
        self, folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, *, ranks: Ranks, layout: Layout
    ) -> None:
        self._folder, self._module, self._optimizer = folder, module, optimizer
        self._ranks, self._layout = ranks, layout
        self._arena = Arena(ranks.device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._save: Save | None = None
        self._job: Future[None] | None = None

    def save(
        self,
        *,
        progress: Progress,
        config: RunConfig,
        average: Mapping[str, Tensor] = NO_AVERAGE,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write a checkpoint; rank 0's thread calls `then` when it stands.

        Called on all ranks. Raises OSError on all of them if the one before could not be written, or this one begun.
        """
        self.finish()
        began = time.perf_counter()
        save = Save(self._folder, progress=progress, config=config, ranks=self._ranks, layout=self._layout)
        save.begin()
        contents = contents_of(self._module, self._optimizer, self._layout, average)
        tensors = {f"{kind}/{name}": piece.local for kind, part in contents.items() for name, piece in part.items()}
        places = self._arena.fill(tensors)

        def write() -> None:
            save.write_part(contents, lambda name, _: self._arena.views([places[name]]))
            if self._ranks.is_first and self._has_all_parts(save):
                save.commit()
                then()

        self._given_up.clear()
        self._save, self._job = save, self._thread.submit(write)
        log.info("%s: copied in %.3f s, a thread writes it", save.what, time.perf_counter() - began)

    def _has_all_parts(self, save: Save) -> bool:
        """Wait until every process has written its part; False if that is given up."""
        deadline = float("inf")
        while not save.is_written():
            if self._closing.is_set() and deadline == float("inf"):
                deadline = time.monotonic() + LAST_PARTS_SECONDS
            if self._given_up.is_set() or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def poll(self) -> bool:
        """Return True if nothing is on its way; called on all ranks, once a step.

        Raises OSError on all of them if a part could not be written: nothing of that checkpoint is left then.
        """
        if self._save is None or self._job is None:
            return True
        done = self._job.done()
        failed = done and self._job.exception() is not None
        finished, failures = self._ranks.sum([done, failed], self._save.what)
        if not failures and finished < self._ranks.size:
            return False
        save, job = self._save, self._job
        self._save = self._job = None
        if failures:
            self._given_up.set()
            with save.all_or_none(), self._ranks.all_write(save.what):
                job.result()  # waits: nothing may be written into a folder that is removed
        return True

    def finish(self) -> None:
        """Wait until nothing is on its way; called on all ranks. Raises OSError on all of them as `poll` does."""
        began = time.perf_counter()
        while not self.poll():
            time.sleep(POLL_SECONDS)
        waited = time.perf_counter() - began
        if waited > WAIT_WORTH_A_LINE_SECONDS:
            log.info("waited %.1f s until the checkpoint was written", waited)

    def close(self) -> None:
        """End the thread; what it writes is finished first, also where the run ends by a fault."""
        self._ranks.enters("saving")  # no step that stands still, though a fault broke one off
        self._closing.set()
        self._thread.shutdown(wait=True)
        if self._save is not None and self._job is not None and (error := self._job.exception()) is not None:
            log.warning("%s could not be written: %s", self._save.what, error)

"""`turbo` in threads of its own beside a decoder that computes in batches, for the pictures that one leaves to it."""

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.decode.memory import Memory, host_memory
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.threads import wait_until_gone

Answer = SampleError | None


@dataclass(frozen=True, slots=True)
class Begun:
    """Pictures under way."""

    items: Sequence[Item]
    out: Sequence[Images]
    squares: tuple[Images, ...]
    """For each view the squares of `items`, on the host."""
    answers: list[Future[Answer]]


class TurboPool:
    """One picture a thread; the squares go from the host to where the batch lies."""

    def __init__(self, mixture: Mixture, memory: Memory, *, threads: int) -> None:
        self._turbo = Turbo(mixture)
        self._memory = memory
        self._large = threading.Lock()
        self._begun: list[threading.Thread] = []
        self._pool = ThreadPoolExecutor(
            threads, "headrace-turbo", initializer=lambda: self._begun.append(threading.current_thread())
        )

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[Answer]:
        """Decode each item as `turbo` does, as a decoder does."""
        return self.finish(self.begin(items, windows_per_view, out))

    def begin(self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]) -> Begun:
        """Begin to decode items; `finish` must follow."""
        squares = host_memory(len(items), [view.shape[1] for view in out])
        answers = [
            self._pool.submit(self._one, dataclasses.replace(item, row=place), windows_per_view, squares)
            for place, item in enumerate(items)
        ]
        return Begun(items, out, squares, answers)

    def finish(self, begun: Begun) -> list[Answer]:
        """Wait for items, and write those that were decoded into their rows."""
        answers = [future.result() for future in begun.answers]
        good = [place for place, answer in enumerate(answers) if answer is None]
        if good:
            rows = np.array([begun.items[place].row for place in good], np.intp)
            for view, squares in zip(begun.out, begun.squares, strict=True):
                self._memory.write(view, rows, squares[good])
            self._memory.finish()
        return answers

    def _one(self, item: Item, windows_per_view: Sequence[ChooseWindow], squares: Sequence[Images]) -> Answer:
        with self._large if item.is_large else nullcontext():
            return self._turbo.decode([item], windows_per_view, squares)[0]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        wait_until_gone(self._begun)

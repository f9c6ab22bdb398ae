"""The thread that takes batches from a stream and has them copied before anybody asks for them.

It counts nothing as delivered: a batch stays in `ready` until whoever asks has handed it out. What the stream raises is
kept, and raised where its batch is asked for. As in `headrace.pipeline.prefetch`, the one who asks takes no lock that
a signal handler could leave behind.
"""

import _thread
import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any

from headrace.pipeline import Batch, Stream
from headrace.pipeline.prefetch import OWN_THREADS, WaitedFor
from headrace.pipeline.stats import BatchTimes
from headrace.pipeline.threads import Bell, wait_until_gone
from headrace.torch.device_copy import DeviceCopy


@dataclass(frozen=True, slots=True)
class CopiedBatch:
    """One batch on the device."""

    batch: Batch
    next_position: int
    """The stream's position behind it."""
    times: BatchTimes
    copied: Any
    """The CUDA event of the end of its copy; None where the copy had ended when it was made."""

    def waited_for(self, asked: float, more_seconds: float) -> Batch:
        """Return the batch with how long, and for what, one has waited who gets it now, and `more_seconds` before."""
        what: WaitedFor = "none"
        if asked < self.times.whole:
            what = "read" if asked < self.times.read else "decode"
        waited = time.perf_counter() - asked + more_seconds
        return dataclasses.replace(self.batch, waited_seconds=waited, waited_for=what)


class CopyAhead:
    """Copies the batches of a stream from where it stands, at most `prefetch` behind the one that was asked for last.

    `ready` holds them by number, from 0 on; whoever hands one out deletes it there.
    """

    def __init__(self, stream: Stream, copy: DeviceCopy, *, prefetch: int) -> None:
        self.ready: dict[int, CopiedBatch] = {}
        self.error: BaseException | None = None
        """What ended the thread."""
        self._stream, self._copy, self._prefetch = stream, copy, prefetch
        self._asked = self._next = 0
        self._begun = self._stopped = self._over = False
        self._to_do, self._news = Bell(), Bell()
        # Not named as the stream's own threads: those cannot wait for their end, this one can.
        self._thread = threading.Thread(target=self._run, name="device-batches", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._begun = True
        try:
            # `Thread.start` waits on a condition, so it may not be called where a signal handler may raise.
            _thread.start_new_thread(self._start_thread, ())
        except (RuntimeError, MemoryError):  # no thread can be had: `stop` must not wait for one
            self._begun = False
            raise

    @property
    def is_running(self) -> bool:
        """False before it was started and once it was told to stop, be it that either was interrupted."""
        return self._begun and not self._stopped

    def num_ready(self, number: int) -> int:
        """Return how many batches from `number` on could be taken at once."""
        count = 0
        while number + count in self.ready:
            count += 1
        return count

    def take(self, number: int) -> CopiedBatch:
        """Return batch `number` when its copy was begun. It may be taken again until it is deleted from `ready`."""
        self._asked = number
        self._to_do.ring()
        while True:
            error = self.error  # looked at first: all batches before it are in place then
            copied = self.ready.get(number)
            if copied is not None:
                return copied
            if error is not None:
                raise error
            if self._over and self.error is None:  # another thread closes: nothing comes any more
                raise ValueError("the stream is closed")
            self._news.wait()

    def stop(self) -> None:
        """End the thread; whoever was interrupted in here calls it again. The stream goes on at its next `next`."""
        self._stopped = True
        self._to_do.ring()
        me = threading.current_thread()
        if me is self._thread or me.name.startswith(OWN_THREADS):
            self._stream.pause()
            return  # a destructor that the collector ran in there: it cannot wait for itself
        while self._begun and not self._over:
            self._stream.pause()  # ends its wait for a batch
            time.sleep(0.0005)
        if self._begun:
            self._thread.join()
            wait_until_gone([self._thread])
        self.ready.clear()

    def _start_thread(self) -> None:
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:  # no thread can be had: the consumer raises it
            self._begun = False
            self.error = error
            self._news.ring()

    def _run(self) -> None:
        try:
            while not self._stopped:
                if self._next <= self._asked + self._prefetch:
                    self._copy_next()
                else:
                    self._to_do.wait()
        except BaseException as error:  # noqa: BLE001  a thread has no caller: whoever asks for the batch raises it
            self.error = error
        finally:
            try:
                self._copy.finish()
            finally:  # whatever a broken device raises there
                self._over = True
                self._news.ring()

    def _copy_next(self) -> None:
        batch, copied = self._copy.start(next(self._stream))
        self.ready[self._next] = CopiedBatch(batch, self._stream.position, self._stream.times, copied)
        self._next += 1
        self._news.ring()

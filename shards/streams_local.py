"""Units of work in processes on this machine that each have several under way.

A process asks for its next unit when it has room, so fast ones do more. One that dies takes down only what it had
taken: those are suspects. When a unit fails, or the driver stops, all processes are killed at once: what they have not
committed is either kept by themselves (a spool) or made again.
"""

import contextlib
import multiprocessing
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from headrace.shards.attend import Ended, Unit, hear
from headrace.shards.channel import Channel, Sender
from headrace.shards.desk import Desk, Streaming
from headrace.shards.logs import WorkerLogs, logging_to, named_unit, worker_logs
from headrace.shards.progress import Tally
from headrace.shards.units_local import LISTEN_SECONDS, MAX_BROKEN_POOLS, die_with_parent, how_died, without_ctrl_c

JOIN_SECONDS = 10.0


class RemoteError(Exception):
    """Where in the worker an error came from: the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    taken: set[int] = field(default_factory=set)
    """Units under way."""


def stream_local(
    workers: int, work: Streaming[Any, Any], units: Mapping[int, Unit], tally: Tally[Any]
) -> dict[int, str]:
    """Run units in `workers` processes; return those whose worker died, with how it died."""
    with Channel() as channel, contextlib.ExitStack() as stack:
        crew = _Crew(work, units, tally, channel)
        stack.callback(crew.kill)
        for _ in range(min(workers, len(units))):
            crew.hire()
        while crew.workers:
            crew.attend()
            crew.listen()
        crew.listen()
        return crew.suspects


class _Crew:
    """The processes of one run, by the driver's end of the pipe to each."""

    def __init__(
        self, work: Streaming[Any, Any], units: Mapping[int, Unit], tally: Tally[Any], channel: Channel
    ) -> None:
        self.workers: dict[Connection, _Worker] = {}
        self.suspects: dict[int, str] = {}
        self._work = work
        self._units = units
        self._tally = tally
        self._channel = channel
        self._queue = deque(units.items())
        self._deaths = 0

    def hire(self) -> None:
        """Start one more process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(self._work, theirs, self._channel.writer, worker_logs()), daemon=True
        )
        with without_ctrl_c():
            process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.workers[ours] = _Worker(process)

    def attend(self) -> None:
        """Answer those that ask. Raises the error of a unit."""
        for found in wait(list(self.workers), LISTEN_SECONDS):
            assert isinstance(found, Connection)
            try:
                message = found.recv()
            except (EOFError, OSError):
                self._buried(found)
                continue
            kind, *rest = message
            if kind == "take":
                self._give(found)
            elif kind == "done":
                self._dismiss(found)
            elif kind == "ended":
                number, ended = rest
                self.workers[found].taken.discard(number)
                self._tally.ended(number, ended.result, ended.beat)
            else:
                error, trace = rest
                self.listen()
                raise error from RemoteError(trace)

    def _give(self, pipe: Connection) -> None:
        unit = self._queue.popleft() if self._queue else None
        if unit is not None:
            self.workers[pipe].taken.add(unit[0])
        with contextlib.suppress(OSError):  # it died meanwhile: the pipe's end says so
            pipe.send(unit)

    def _dismiss(self, pipe: Connection) -> None:
        """End a process that has nothing left: by itself it would wait for threads that hang in a name server."""
        worker = self.workers.pop(pipe)
        worker.process.kill()
        worker.process.join(JOIN_SECONDS)
        pipe.close()

    def _buried(self, pipe: Connection) -> None:
        worker = self.workers.pop(pipe)
        pipe.close()
        worker.process.join(JOIN_SECONDS)
        how = how_died([worker.process])
        # One that died before it took anything would have taken the next.
        taken = worker.taken or ({self._queue[0][0]} if self._queue else set())
        for number in taken:
            self._tally.died(number)
            self.suspects[number] = how
        self._deaths += 1
        if self._deaths >= MAX_BROKEN_POOLS or not worker.taken:
            self._queue.clear()  # the suspects are judged before more units are begun
        elif self._queue:
            self.hire()

    def listen(self) -> None:
        """Take heartbeats and log lines."""
        for message in self._channel.messages():
            hear(message, self._units[message["unit"]], self._tally)
        self._tally.tell_if_due()

    def kill(self) -> None:
        """End the processes that are still there."""
        for pipe, worker in self.workers.items():
            worker.process.kill()
            worker.process.join(JOIN_SECONDS)
            pipe.close()


def _serve(work: Streaming[Any, Any], pipe: Connection, writer: Connection, logs: WorkerLogs) -> None:
    die_with_parent()
    send, newest, sending = Sender(writer).send, -1, threading.Lock()

    def tell(*message: Any) -> None:
        with sending:  # a unit may end while another thread waits for the next one
            pipe.send(message)

    def take() -> tuple[int, Unit] | None:
        nonlocal newest
        tell("take")
        found: tuple[int, Unit] | None = pipe.recv()
        newest = newest if found is None else found[0]
        return found

    def end(number: int, ended: Ended[Any]) -> None:
        tell("ended", number, ended)

    def send_line(message: Mapping[str, Any]) -> None:
        unit = named_unit()
        unit = newest if unit is None else unit
        if unit >= 0:
            send({"unit": unit, **message})

    with logging_to(send_line, logs):
        try:
            work.stream(Desk(take, end, send=send, logs=logs))
        except Exception as error:  # noqa: BLE001 - whatever `work` raises; the driver raises it again
            tell("failed", _picklable(error), "".join(traceback.format_exception(error)))
        else:
            tell("done")


def _picklable(error: Exception) -> Exception:
    """Return the error, or one that says the same where it cannot leave this process."""
    with contextlib.suppress(Exception):  # pickle raises what it likes
        pickle.loads(pickle.dumps(error))
        return error
    other = RuntimeError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        other.add_note(note)
    return other

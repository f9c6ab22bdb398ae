"""Where work that has several units under way at once takes them, and hands them back.

Such work is a `Streaming`: called with one unit it does that unit, as any work; an executor that can gives it a desk
instead, and it takes the next unit when it has room. What is counted and logged inside a unit's `context` is that
unit's, whatever runs beside it.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import astuple, dataclass, field
from typing import Any, Generic, TypeVar

from headrace.shards.attend import Ended, Send, Unit
from headrace.shards.heartbeat import counting
from headrace.shards.logs import WorkerLogs, named_lines, unit_log

U = TypeVar("U", bound=Unit)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Taken(Generic[U, R]):
    """One unit that is under way."""

    number: int
    unit: U
    context: Context = field(repr=False)
    """Where its tasks run: `loop.create_task(..., context=taken.context)`."""
    _end: Callable[[R], None] = field(repr=False)

    def ended(self, result: R) -> None:
        """Hand the result back: the unit is done."""
        self._end(result)


class Desk(Generic[U, R]):
    """The units of one run, as one process sees them. Not for several threads at a time."""

    def __init__(
        self,
        take: Callable[[], tuple[int, U] | None],
        end: Callable[[int, Ended[R]], None],
        *,
        send: Send,
        logs: WorkerLogs,
    ) -> None:
        """`take` gives a unit and its number, or None for no more; `send` gets heartbeats, with the number."""
        self._take = take
        self._end = end
        self._send = send
        self._logs = logs

    def take(self) -> Taken[U, R] | None:
        """Return the next unit; None where there is none left. It may wait for the driver."""
        found = self._take()
        if found is None:
            return None
        number, unit = found
        context, closing = copy_context(), contextlib.ExitStack()
        pulse = context.run(counting, functools.partial(self._beat, number))
        context.run(named_lines, number)
        context.run(closing.enter_context, unit_log(unit.name, self._logs.folder, unit=number))

        def end(result: R) -> None:
            closing.close()
            self._end(number, Ended(result, pulse.beat()))

        return Taken(number, unit, context, end)

    def _beat(self, number: int, beat: Any) -> None:
        self._send({"unit": number, "beat": astuple(beat)})


@dataclass(frozen=True, slots=True)
class Streaming(Generic[U, R]):
    """Work that has several units under way at once in one process."""

    stream: Callable[[Desk[U, R]], None]
    """Takes units until there are no more, and hands each back. An error of a unit gets a note that names it."""

    def __call__(self, unit: U) -> R:
        """Do one unit alone."""
        todo, results = [unit], []

        def end(result: R) -> None:
            results.append(result)

        class One(Desk[U, R]):
            def __init__(self) -> None:
                """Nothing to keep: what is counted goes to whoever attends this unit."""

            def take(self) -> Taken[U, R] | None:
                return Taken(0, todo.pop(), copy_context(), end) if todo else None

        self.stream(One())
        return results[0]


def desk_of(units: Mapping[int, U], end: Callable[[int, Ended[R]], None], *, send: Send, logs: WorkerLogs) -> Any:
    """Return a desk of units that lie in this process."""
    left = iter(list(units.items()))
    return Desk(lambda: next(left, None), end, send=send, logs=logs)

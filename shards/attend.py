"""Doing one unit of work where it runs: its heartbeats and log lines go to whoever drives, its errors name it."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from headrace.shards.heartbeat import Beat, pulse
from headrace.shards.logs import WorkerLogs, logging_to, relay, unit_log
from headrace.shards.progress import Tally


class Unit(Protocol):
    """What a unit of work must have: a name for messages. It must be picklable."""

    @property
    def name(self) -> str: ...


U = TypeVar("U", bound=Unit)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ended(Generic[R]):
    """What became of a unit."""

    result: R
    beat: Beat
    """All that it counted."""


Send = Callable[[Mapping[str, Any]], None]


def attend(
    work: Callable[[U], R],
    number: int,
    unit: U,
    *,
    send: Send,
    logs: WorkerLogs,
    driver: bool,
) -> Ended[R]:
    """Return `work(unit)`. Heartbeats go to `send`, and log lines too where this is not the `driver`'s process."""

    def send_line(message: Mapping[str, Any]) -> None:
        send({"unit": number, **message})

    with contextlib.ExitStack() as stack:
        stack.enter_context(unit_log(unit.name, logs.folder))
        if not driver:
            stack.enter_context(logging_to(send_line, logs))
        pulsing = stack.enter_context(pulse(lambda beat: send_line({"beat": dataclasses.astuple(beat)})))
        try:
            return Ended(work(unit), pulsing.beat())
        except Exception as error:  # whatever `work` raises; it goes on
            error.add_note(f"in unit {unit.name}")
            raise


def hear(message: Mapping[str, Any], unit: Unit, tally: Tally[Any]) -> None:
    """In the driver: take a message about `unit`."""
    if "beat" in message:
        tally.heard(message["unit"], Beat(*message["beat"]))
    else:
        relay(message, unit.name)

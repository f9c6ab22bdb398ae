"""Units that killed their worker twice: one record each in a folder, until they are done.

A run tries those of an earlier run last and alone, so that one bad shard costs the others nothing. Work in this process
(`inline`) cannot outlive its own death, so there a record is put before a unit begins: the next run counts the deaths,
and gives a unit that ended two runs a process of its own.
"""

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace import atomic, files, urlpath
from headrace.shards.desk import Desk, Streaming, Taken

OF_INLINE = "the process that ran it ended"
MAX_DEATHS = 2
"""Of a process that ran a unit itself; then the unit gets a process of its own."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The records in one folder; of the empty URL there are none, and nothing is kept."""

    url: str = ""

    def deaths(self) -> dict[str, int]:
        """Return the units with a record, and how often each has ended its process."""
        found = {}
        for name in files.list_names(self.url, ".json") if self.url else ():
            with contextlib.suppress(
                FileNotFoundError, ValueError, KeyError, TypeError
            ):  # it tells the next run little
                record = json.loads(files.read_bytes(urlpath.join(self.url, name)))
                found[str(record["unit"])] = int(record["deaths"])
        return found

    def put(self, unit: str, how: str, deaths: int) -> None:
        """Write the record of a unit."""
        if self.url:
            record = {"unit": unit, "how": how, "deaths": deaths, "host": socket.gethostname()}
            atomic.write_atomic(self._place(unit), (json.dumps(record, sort_keys=True) + "\n").encode())

    def release(self, unit: str) -> None:
        """Remove the record of a unit: it is done."""
        if self.url:
            atomic.remove(self._place(unit))

    @contextlib.contextmanager
    def risking(self, unit: str, deaths: int) -> Iterator[None]:
        """Note that this process does the unit itself, until it has ended in any way but the death of the process."""
        self.put(unit, OF_INLINE, deaths + 1)
        try:
            yield
        finally:
            self.release(unit)

    def empty(self) -> None:
        """Remove all records: nothing is left to do."""
        if self.url:
            atomic.remove_all(self.url)
            atomic.remove_folder(urlpath.parent(self.url))

    def _place(self, unit: str) -> str:
        return urlpath.join(self.url, re.sub(r"[^A-Za-z0-9._-]+", "-", unit) + ".json")


NO_QUARANTINE = Quarantine()


def risked(work: Callable[[Any], Any], quarantine: Quarantine, deaths: Mapping[str, int]) -> Callable[[Any], Any]:
    """Return work that this process does itself, each unit `risking` it."""
    if not quarantine.url:
        return work
    if isinstance(work, Streaming):
        streaming = work

        def stream(desk: Any) -> None:
            with contextlib.ExitStack() as under_way:
                streaming.stream(_RiskedDesk(desk, quarantine, deaths, under_way))

        return Streaming(stream)

    def one(unit: Any) -> Any:
        with quarantine.risking(unit.name, deaths.get(unit.name, 0)):
            return work(unit)

    return one


class _RiskedDesk(Desk[Any, Any]):
    """A desk whose units are risked while they are under way."""

    def __init__(
        self, desk: Desk[Any, Any], quarantine: Quarantine, deaths: Mapping[str, int], under_way: contextlib.ExitStack
    ) -> None:
        self._desk = desk
        self._quarantine = quarantine
        self._deaths = deaths
        self._under_way = under_way

    def take(self) -> Taken[Any, Any] | None:
        """Return the next unit."""
        taken = self._desk.take()
        if taken is None:
            return None
        risk = contextlib.ExitStack()
        risk.enter_context(self._quarantine.risking(taken.unit.name, self._deaths.get(taken.unit.name, 0)))
        self._under_way.callback(risk.close)

        def end(result: Any) -> None:
            risk.close()
            taken.ended(result)

        return replace(taken, _end=end)

"""Connections that wait to be used again, and all that are open: none outlives the loop of its unit."""

import asyncio

from headrace.curation.fetch.net.connection import Connection

KEEPALIVE_SECONDS = 2.0  # short, as idle connections to thousands of hosts would use up the file handles
MAX_IDLE = 256
_TURNS_TO_CLOSE = 3  # of the loop: abort, connection_lost, the socket's close

Place = tuple[str, str, int]
"""Scheme, host and port: what a connection may be used for again."""


class Pool:
    """Every open connection of one client. Use it inside a running loop."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._idle: dict[Connection, tuple[Place, asyncio.TimerHandle]] = {}
        self._by_place: dict[Place, list[Connection]] = {}

    def add(self, connection: Connection) -> None:
        """Know a new connection."""
        self._open.add(connection)

    def take(self, place: Place) -> Connection | None:
        """Return a connection to `place` that is open and has said nothing since its last answer, or None."""
        while waiting := self._by_place.get(place):
            connection = waiting[-1]
            self._forget(connection)
            if not connection.ended and not connection.buffer:
                connection.reused = True
                return connection
            self.end(connection)
        return None

    def give_back(self, place: Place, connection: Connection) -> None:
        """Keep a connection for the next request to `place`, for a short while."""
        if len(self._idle) >= MAX_IDLE:
            self.end(next(iter(self._idle)))
        timer = asyncio.get_running_loop().call_later(KEEPALIVE_SECONDS, self.end, connection)
        self._idle[connection] = (place, timer)
        self._by_place.setdefault(place, []).append(connection)

    def end(self, connection: Connection) -> None:
        """End a connection, idle or not."""
        self._forget(connection)
        self._open.discard(connection)
        connection.abort()

    def _forget(self, connection: Connection) -> None:
        place, timer = self._idle.pop(connection, (None, None))
        if place is None or timer is None:
            return
        timer.cancel()
        self._by_place[place].remove(connection)
        if not self._by_place[place]:
            del self._by_place[place]

    async def close(self) -> None:
        """End all connections and let the loop close their sockets."""
        for connection in list(self._open):
            self.end(connection)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

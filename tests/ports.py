"""Ports for processes that meet: none that another test, another worker or the system could take at the same time."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below the ports that the system hands out by itself (32768 and up on Linux).
FIRST_PORT = 20_000
LAST_PORT = 32_000
PORTS_PER_LEASE = 10

# Open files, so that the locks last as long as this process.
_leases: list[IO[bytes]] = []


def free_port() -> int:
    """Return the first of ten ports in a row that are this process's until it ends; each call gives others.

    A port that is only looked at can be taken by the next worker that looks, before anybody listens on it; so each
    ten have a lock file that all processes on the machine respect.
    """
    folder = Path(tempfile.gettempdir()) / f"headrace-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    starts = list(range(FIRST_PORT, LAST_PORT, PORTS_PER_LEASE))
    random.Random(os.urandom(8)).shuffle(starts)
    for start in starts:
        lease = (folder / str(start)).open("wb")
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lease.close()
            continue
        if all(_can_bind(port) for port in range(start, start + PORTS_PER_LEASE)):
            _leases.append(lease)
            return start
        lease.close()
    raise AssertionError(f"no {PORTS_PER_LEASE} free ports in a row between {FIRST_PORT} and {LAST_PORT}")


def _can_bind(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True

"""One holder at a time of a place that several processes can write: a record put if absent, and beaten while it lives.

The record says who holds the place (host, process, when it was started) and when that process last gave a sign of life.
One that died on this machine is known by the kernel, one on another machine by its silence. Clocks of two machines may
differ by hours, so an old sign of life is only a reason to look: who is replaced has given none while it was looked at,
by the clock of the one that looks. Where two of this host find a dead holder at once, a lock of the kernel lets one
replace it. A folder may be shared by hosts that share no locks (NFS), so a holder of another host is replaced as in a
bucket: by a second put-if-absent and, as not every store keeps that promise between two writers of one moment, by
another look a second later.
What a lease guards must still be safe when it is broken: a holder that was only asleep wakes up again, and goes on
until its next sign of life is due. Then a command ends as by SIGTERM; until then what stages and take-downs put in its
place asks their `Fence` first.
"""

import _thread
import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace import atomic, files, urlpath

log = logging.getLogger(__name__)

BEAT_SECONDS = 30.0
SILENT_SECONDS = 600.0
"""A holder on another host whose last sign of life is so old by our clock may be gone."""

WATCH_SECONDS = 3 * BEAT_SECONDS
"""It is gone if it gives none while it is looked at for so long."""

LOOK_SECONDS = 2.0
"""Between two looks at it."""

SETTLE_SECONDS = 1.0
"""More than two writers of one moment are apart."""

WRITER = "headrace-writer.json"
"""The record in a remote folder that is being written."""


class HeldError(ValueError):
    """Another process holds the place, or may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What the record of a lease says."""

    host: str = ""
    process: int = 0
    started: str = ""
    """When the kernel started the process: its number may be used again."""
    machine: str = ""
    """What gave the process its number: two machines, or containers, may have one name. Empty in older records."""
    token: str = ""
    """Of this one holding; empty in records of older versions."""
    beat: float | None = None
    """Unix time of the last sign of life; None in records of older versions."""

    @property
    def is_damaged(self) -> bool:
        """True if the record does not say who wrote it."""
        return not self.process

    @property
    def is_dead(self) -> bool:
        """True if the kernel says that the process is gone."""
        return not self.is_damaged and self._is_here and _started(self.process) != self.started

    @property
    def seems_silent(self) -> bool:
        """True if the process is elsewhere, and its last sign of life old by the clock of this machine."""
        if self.is_damaged or self._is_here or self.beat is None:
            return False
        return time.time() - self.beat > SILENT_SECONDS

    @property
    def _is_here(self) -> bool:
        return self.host == socket.gethostname() and self.machine in ("", _machine())

    def __str__(self) -> str:
        told = f"process {self.process or None} on {self.host or None}"
        if self.beat is None:
            return told
        return f"{told} (last sign of life {max(0.0, time.time() - self.beat):.0f} s ago)"


@dataclass(frozen=True, slots=True)
class Fence:
    """Which holders a piece of work counts on: its process may have slept while another one took the place over.

    It is asked before each file is put in its place, also by workers in other processes. The beat of a lease tells
    the same, but up to `BEAT_SECONDS` later.
    """

    holders: tuple[tuple[str, str], ...] = ()
    """(URL of a record, token of its holder; empty: nobody). Without any, nothing is guarded."""

    def check(self) -> None:
        """Raise OSError if another process has taken one of the places meanwhile."""
        for url, token in self.holders:
            found = holder_of(url)
            if (found.token if found is not None else "") != token:
                raise OSError(_taken(url))


NO_FENCE = Fence()


class Lease:
    """A place that this process holds."""

    def __init__(self, url: str, holder: Holder) -> None:
        self._url = url
        self._holder = holder
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="headrace-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise OSError if another process has taken the place meanwhile."""
        if self._lost.is_set():
            raise OSError(_taken(self._url))

    @property
    def fence(self) -> Fence:
        """What work that is done under this lease counts on."""
        return Fence(((self._url, self._holder.token),))

    def release(self) -> None:
        """Let go of the place."""
        self._ended.set()
        self._thread.join()
        found = holder_of(self._url)
        if found is not None and found.token == self._holder.token:
            atomic.remove(self._url)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                with _one_at_a_time(self._url):
                    found = holder_of(self._url)
                    if found is None or found.token != self._holder.token:
                        log.warning(
                            "%s: held by %s now, no longer by this process, which stops", self._url, found or "nobody"
                        )
                        self._lost.set()
                        # The command line raises SystemExit in its main thread; without a handler nothing happens.
                        _thread.interrupt_main(signal.SIGTERM)
                        return
                    atomic.write_atomic(self._url, _record(self._holder))
            except OSError as error:  # the next beat may come through
                log.info("%s: no sign of life could be written: %s", self._url, error)


def _taken(url: str) -> str:
    return f"{url}: another process took this over while this one was silent; it stops, what it has committed stays"


def fence_of(url: str) -> Fence:
    """Return the fence of the place at `url`, which this process holds; an empty one where nobody does.

    Raises OSError if another process holds it.
    """
    found = holder_of(url)
    if found is None:
        return Fence()
    if (found.process, found.host, found.machine) != (os.getpid(), socket.gethostname(), _machine()):
        raise OSError(_taken(url))
    return Fence(((url, found.token),))


@contextlib.contextmanager
def held(url: str, *, what: str, advice: str, take_over: bool = False) -> Iterator[Lease]:
    """Hold the place whose record is at `url`, until the block ends.

    A holder that is gone is replaced, with `take_over` any. Raises HeldError, `WHAT by process N on HOST; ADVICE`,
    if another process holds it, or may.
    """
    mine = Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        started=_started(os.getpid()),
        machine=_machine(),
        token=secrets.token_hex(8),
    )
    _claim(url, mine, what=what, advice=advice, take_over=take_over)
    lease = Lease(url, mine)
    try:
        yield lease
    finally:
        lease.release()


@contextlib.contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Be the one process that writes a folder; whoever comes second gets a ValueError.

    Of a local folder the kernel holds the lock, so it ends with the process however that ends. In a remote one lies
    `WRITER` while it is written; a writer that is silent for ten minutes has lost it, and removing the file breaks it.
    """
    if not urlpath.is_local(folder):
        url = urlpath.join(folder, WRITER)
        with held(url, what=f"{folder} is being written", advice=f"wait until that ends, or remove {url}") as lease:
            yield
            lease.check()
        return
    urlpath.local_path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(urlpath.local_path(folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is being written by another process; wait until that ends") from None
        except OSError as error:
            log.info("%s: cannot be locked (%s); take care that one process writes it", folder, error)
        yield
    finally:
        os.close(handle)


def check_free(url: str, *, what: str, advice: str, take_over: bool = False, watch: bool = True) -> None:
    """Raise HeldError if `held` would; nothing is written.

    Without `watch` a holder that seems silent counts as gone.
    """
    found = holder_of(url)
    if found is not None and not take_over and (watch or not found.seems_silent):
        _check(url, found, what=what, advice=advice)


def find_living(holders: Mapping[str, Holder]) -> tuple[str, Holder] | None:
    """Return one of these holders, by the URL of its record, that lives or may; None if all are gone.

    If all that are not dead seem silent, they are looked at for `WATCH_SECONDS` first.
    """
    watched = {url: holder for url, holder in holders.items() if not holder.is_dead}
    for url, holder in watched.items():
        if not holder.seems_silent:
            return url, holder
    end = time.monotonic() + WATCH_SECONDS
    for holder in watched.values():
        log.warning("%s: looked at for %.0f s, whether it gives another sign of life", holder, WATCH_SECONDS)
    while watched and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        for url, before in list(watched.items()):
            now = holder_of(url)
            if now is None:
                del watched[url]
            elif now != before:
                return url, now
    return None


def holder_of(url: str) -> Holder | None:
    """Return who holds a place, damaged if its record does not say so; None if nobody does."""
    try:
        data = json.loads(files.read_bytes(url))
    except FileNotFoundError:
        return None
    except ValueError:
        return Holder()
    if not isinstance(data, dict) or not isinstance(data.get("process"), int):
        return Holder()
    beat = data.get("beat")
    return Holder(
        host=str(data.get("host")),
        process=data["process"],
        started=str(data.get("started")),
        machine=str(data.get("machine", "")),
        token=str(data.get("token", "")),
        beat=float(beat) if isinstance(beat, int | float) else None,
    )


def _claim(url: str, mine: Holder, *, what: str, advice: str, take_over: bool) -> None:
    silent: Holder | None = None
    while True:
        with _one_at_a_time(url):
            found = _put_or_find(url, mine, what=what, advice=advice)
            if found is None:
                return
            if take_over or found.is_dead or found == silent:
                if urlpath.is_local(url) and found.host == mine.host:
                    atomic.write_atomic(url, _record(mine))
                else:
                    _replace(url, found, mine, what=what, advice=advice)
                    _settle(url, mine, what=what, advice=advice)
                break
        # Not under the lock: a holder may wait for it with its sign of life.
        _check(url, found, what=what, advice=advice)
        silent = found
    log.log(
        logging.WARNING if take_over else logging.INFO,
        "%s: its owner, %s, is gone%s; process %d on %s owns it now",
        url,
        found,
        " (--take-over says so)" if take_over else "",
        mine.process,
        mine.host,
    )


def _put_or_find(url: str, mine: Holder, *, what: str, advice: str) -> Holder | None:
    """Put the record; return who holds the place instead, None if this process does."""
    found = None
    while found is None:  # it may end between the two looks
        if atomic.put_if_absent(url, _record(mine)):
            if not urlpath.is_local(url):
                _settle(url, mine, what=what, advice=advice)
            log.info("%s by process %d on %s now", what, mine.process, mine.host)
            return None
        found = holder_of(url)
    # Of its own token: the store had put it, and its answer was lost.
    return None if found.token == mine.token else found


def _check(url: str, found: Holder, *, what: str, advice: str) -> None:
    """Raise HeldError unless the holder is gone."""
    if found.is_damaged:
        raise HeldError(f"{url} is damaged and does not say who holds the place; {advice}")
    living = find_living({url: found})
    if living is not None:
        raise HeldError(f"{what} by {living[1]}; {advice}")


def _replace(url: str, gone: Holder, mine: Holder, *, what: str, advice: str) -> None:
    """Replace a record without locks: who puts the mark for this one holder may, and looks once more."""
    mark = f"{url}.{gone.token or 'old'}"
    if not atomic.put_if_absent(mark, _record(mine)):
        other = holder_of(mark)
        if other is not None and other.token != mine.token and not (other.is_dead or other.seems_silent):
            raise HeldError(f"{what} by {other} in a moment, which takes it from {gone}; {advice}")
    try:
        found = holder_of(url)
        if found is not None and found.token != gone.token:
            raise HeldError(f"{what} by {found}; {advice}")
        atomic.write_atomic(url, _record(mine))
    finally:
        atomic.remove(mark)


def _settle(url: str, mine: Holder, *, what: str, advice: str) -> None:
    """Look once more a moment later: of two that a store let put at once (Swift does), the last one has the place."""
    time.sleep(SETTLE_SECONDS)
    found = holder_of(url)
    if found is None or found.token != mine.token:
        raise HeldError(f"{what} by {found}; {advice}")


@contextlib.contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Serialise claims of this host in a local folder, as two may find the same dead holder at once."""
    if not urlpath.is_local(url):
        yield
        return
    folder = urlpath.local_path(url).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _record(holder: Holder) -> bytes:
    return json.dumps({**asdict(holder), "beat": round(time.time(), 1)}).encode()


def _started(process: int) -> str:
    """Return the kernel's start time of a process (its number may be reused); empty if it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _machine() -> str:
    """Return what tells this boot of this machine, and this container's numbers of processes, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""

"""One patience for everything that is read from afar: which faults pass, how long to try, how long to wait between.

A server that restarts, a link that drops, a request that is throttled: such faults pass, and are tried again with
growing, jittered pauses. A missing file or a refused permission does not change by waiting, and is raised at once.
Every library under fsspec says both in its own words; `is_transient` knows them.
"""

import contextlib
import email.utils
import errno
import http.client
import io
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.text import one_line, without_secrets

log = logging.getLogger(__name__)

# Besides all of 500 to 599 but what another try cannot change: not implemented, version not supported, log in first.
RETRIED_STATUS = frozenset({408, 425, 429})
LASTING_STATUS = frozenset({501, 505, 511})
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 300.0
WARN_EACH_SECONDS = 60.0

# Libraries under fsspec whose errors are to be told apart by their names.
_BACKENDS = frozenset(
    {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3"}
)
_PASSING_NAMES = (
    "timeout",
    "connection",
    "disconnected",
    "payload",
    "incomplete",
    "throttl",
    "slowdown",
    "unavailable",
    "protocolerror",
    "chunkedencoding",
    "httpclienterror",
    "responsestreaming",
    "transporterror",
    "servicerequesterror",
    "serviceresponseerror",
    "responseparser",
    "checksum",
)
_THROTTLED_CODES = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"}
)

_LASTING = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    io.UnsupportedOperation,
    ssl.SSLCertVerificationError,
    http.client.InvalidURL,
)
_PASSING_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EPIPE,
        getattr(errno, "EREMOTEIO", errno.EIO),  # of Linux only
        errno.ESHUTDOWN,
        errno.ESTALE,
        errno.ETIMEDOUT,
        socket.EAI_AGAIN,
    }
)
# gcsfs says 401 and 403 in words only; TLS libraries wrap a refused certificate in errors of the connection.
_LASTING_WORDS = ("forbidden", "access denied", "unauthorized", "certificate_verify_failed", "wrong_version_number")

T = TypeVar("T")


class LastingError(OSError):
    """A fault of a read that no patience helps against."""


class Stop(threading.Event):
    """An event that also wakes what cannot wait for events: sockets, calls of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._wakers: dict[object, Callable[[], object]] = {}

    def set(self) -> None:
        """Stop, and wake all that is waiting."""
        with self._lock:
            super().set()
            wakers = list(self._wakers.values())
        for wake in wakers:
            wake()

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` if the stop comes while the block runs, or has come already."""
        mark = object()
        with self._lock:
            self._wakers[mark] = wake
        try:
            if self.is_set():
                wake()
            yield
        finally:
            with self._lock:
                del self._wakers[mark]


def apart(action: Callable[[], T], stop: Stop, *, drop: Callable[[T], object] = lambda _: None) -> T:
    """Return `action()`, run in a thread of its own that is left behind if `stop` comes first.

    For calls that nothing can wake: looking up a host, connecting, other libraries' reads. Raises LastingError then,
    and `drop` gets what nobody waits for any more.
    """
    future: Future[T] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            try:
                result = action()
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                future.set_exception(error)
            else:
                try:
                    future.set_result(result)
                except InvalidStateError:
                    drop(result)

    threading.Thread(target=run, name="headrace-apart", daemon=True).start()
    try:
        with stop.waking(future.cancel):
            return future.result()
    except CancelledError:
        raise LastingError("the reader is closed") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """When to give up: once `retries` tries have failed again and `seconds` have passed since the first failed."""

    timeout_seconds: float = 60.0
    """A read that brings nothing for so long has failed, where the reader can tell."""
    retries: int = 5
    """Tries after the first one."""
    seconds: float = 0.0
    """Go on trying for at least so long."""

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0 or self.retries < 0 or not self.seconds >= 0:
            raise ValueError(f"timeout_seconds must be above 0, retries and seconds at least 0, got {self}")


# Datasets, jobs and lists at a URL: an outage of two minutes stops nothing.
DEFAULT_PATIENCE = Patience(seconds=120.0)


def patiently(
    action: Callable[[], T],
    patience: Patience,
    what: str,
    *,
    stop: threading.Event | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> T:
    """Return `action()`; try again while its faults are transient and `patience` lasts.

    The last error gets a note of how often it was tried. `stop` ends the waiting, and nothing is tried after it;
    `what` is for the log.
    """
    began: float | None = None
    warn_at = 0.0
    stop = stop or threading.Event()
    for attempt in range(1 << 30):
        if stop.is_set():
            raise LastingError("the reader is closed")
        try:
            return action()
        except Exception as error:  # every library has its own; `is_transient` tells them apart
            now = time.monotonic()
            began = now if began is None else began
            left = began + patience.seconds - now
            if not is_transient(error) or stop.is_set() or (attempt >= patience.retries and left <= 0):
                if attempt:
                    error.add_note(f"tried {attempt + 1} times in {now - began:.0f} s")
                raise
            pause = pause_seconds(attempt, error)
            if attempt >= patience.retries:
                pause = min(pause, left)  # one last try when the time is up
            level = logging.INFO
            if attempt >= patience.retries and now >= warn_at:
                level, warn_at = logging.WARNING, now + WARN_EACH_SECONDS
            log.log(level, "%s: %s; trying again in %.1f s", what, said(error), pause)
            on_retry()
            stop.wait(pause)
    raise AssertionError("the last attempt returns or raises")


def said(error: BaseException) -> str:
    """Return what an error says, on one line and without secrets; its type where it says nothing."""
    return without_secrets(one_line(str(error))) or type(error).__name__


def pause_seconds(attempt: int, error: BaseException) -> float:
    """Return how long to wait after try number `attempt` (from 0): what the server asks for, else growing, jittered."""
    asked = retry_after(error)
    if asked is not None:
        return asked
    # Half of it is chance, or all ranks of a job come back to a server at the same moment.
    return float(min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 16), MAX_PAUSE_SECONDS) * random.uniform(0.5, 1.0))


def is_transient(error: BaseException) -> bool:
    """True if the same request may succeed later."""
    status = status_of(error)
    if isinstance(error, LastingError):
        return False
    if status is not None:
        return status in RETRIED_STATUS or (500 <= status <= 599 and status not in LASTING_STATUS)
    if _code_of(error) in _THROTTLED_CODES or getattr(error, "retryable", False) is True:
        return True
    words = str(error).lower()
    if isinstance(error, _LASTING) or any(word in words for word in _LASTING_WORDS):
        return False
    if isinstance(error, TimeoutError | ConnectionError | EOFError | ssl.SSLError | http.client.HTTPException):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING_ERRNO
    if is_of_backend(error):
        names = [kind.__name__.lower() for kind in type(error).__mro__]
        return any(part in name for part in _PASSING_NAMES for name in names)
    return isinstance(error, OSError) and type(error).__module__ in ("builtins", "urllib.error")


def is_of_backend(error: BaseException) -> bool:
    """True if a library under fsspec raised it."""
    return any(kind.__module__.partition(".")[0] in _BACKENDS for kind in type(error).__mro__)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any backend carries, or None."""
    status = _own_status(error)
    # s3fs makes an OSError of what botocore raised.
    return status if status is not None or error.__cause__ is None else _own_status(error.__cause__)


def _own_status(error: BaseException) -> int | None:
    if type(error).__module__ == "aiohttp.http_exceptions":
        return None  # the 400 of these is no answer: a body that was cut has it
    response: Any = getattr(error, "response", None)
    found: list[Any] = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    if isinstance(response, dict):
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    else:
        found += [getattr(response, "status", None), getattr(response, "status_code", None)]
    for value in found:
        if isinstance(value, int) and 100 <= value <= 599:
            return value
    return None


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that a server asked to wait (RFC 9110, section 10.2.3), at most five minutes."""
    text = _header(error, "Retry-After") or (error.__cause__ and _header(error.__cause__, "Retry-After"))
    if not isinstance(text, str):
        return None
    if text.strip().isdecimal():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def _header(error: BaseException, name: str) -> Any:
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's, whose names are in lower case
        return response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name.lower())
    headers: Any = getattr(error, "headers", None) or getattr(response, "headers", None)
    return headers.get(name) if hasattr(headers, "get") else None


def _code_of(error: BaseException) -> str:
    response: Any = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else ""

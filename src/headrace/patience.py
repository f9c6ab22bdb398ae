"""One patience for everything that is read from afar: which faults pass, how long to try, how long to wait between.

A server that restarts, a link that drops, a request that is throttled: such faults pass, and are tried again with
growing, jittered pauses. A missing file or a refused permission does not change by waiting, and is raised at once.
Every library under fsspec says both in its own words; `is_transient` knows them.
"""

import email.utils
import http.client
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

log = logging.getLogger(__name__)

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0
MAX_RETRY_AFTER_SECONDS = 300.0

# Libraries whose errors of the network are no OSError; those of aiohttp mostly are.
_BACKENDS = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure", "urllib3", "requests", "adlfs")
_PASSING_NAMES = (
    "timeout",
    "connection",
    "disconnected",
    "payload",
    "incomplete",
    "throttl",
    "slowdown",
    "unavailable",
)
_THROTTLED_CODES = frozenset({"SlowDown", "Throttling", "RequestTimeout", "InternalError", "ServiceUnavailable"})

_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


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

    The last error gets a note of how often it was tried. `stop` ends the waiting; `what` is for the log.
    """
    began: float | None = None
    stop = stop or threading.Event()
    for attempt in range(1 << 30):
        try:
            return action()
        except Exception as error:
            began = time.monotonic() if began is None else began
            waited = time.monotonic() - began
            if not is_transient(error) or stop.is_set() or (attempt >= patience.retries and waited >= patience.seconds):
                if attempt:
                    error.add_note(f"tried {attempt + 1} times in {waited:.0f} s")
                raise
            pause = pause_seconds(attempt, error)
            log.log(
                logging.WARNING if attempt == patience.retries else logging.INFO,
                "%s: %s; trying again in %.1f s", what, str(error) or type(error).__name__, pause,
            )  # fmt: skip
            on_retry()
            stop.wait(pause)
    raise AssertionError("the last attempt returns or raises")


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
    if status is not None:
        return status in RETRIED_STATUS
    if _code_of(error) in _THROTTLED_CODES:
        return True
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return False
    if isinstance(error, OSError | TimeoutError | EOFError | http.client.HTTPException):
        return not isinstance(error, http.client.InvalidURL)
    package, name = type(error).__module__.partition(".")[0], type(error).__name__.lower()
    return package in _BACKENDS and any(part in name for part in _PASSING_NAMES)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any backend carries, or None."""
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
    headers: Any = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None)
    text = headers.get("Retry-After") if hasattr(headers, "get") else None
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


def _code_of(error: BaseException) -> str:
    response: Any = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else ""

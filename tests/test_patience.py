"""Promises of the one patience: what passes is tried again, what does not is raised at once, every library's words."""

import email.utils
import errno
import http.client
import re
import threading
import time
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, NoCredentialsError

from headrace import patience
from headrace.patience import LastingError, Patience, is_transient, patiently, pause_seconds, retry_after


class Answer(Exception):
    """An error that carries a status and headers, as aiohttp's and gcsfs' do."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"answered {status}")
        self.status, self.headers = status, headers


def _s3(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def _cut_body() -> Exception:
    """What aiohttp, and through it gcsfs and s3fs, raises of a body that ends too early."""
    error = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("received 4514 of 9028 bytes")
    return error


PASSING = [
    _cut_body(),
    *(Answer(status) for status in (408, 425, 429, 500, 502, 503, 504)),
    OSError(errno.ECONNREFUSED, "refused"),
    ConnectionResetError("reset"),
    TimeoutError("late"),
    http.client.IncompleteRead(b""),
    http.client.RemoteDisconnected("gone"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("short"),
    aiohttp.ServerTimeoutError(),
    _s3("SlowDown", 503),
    _s3("InternalError", 500),
    EndpointConnectionError(endpoint_url="http://host"),
    ConnectTimeoutError(endpoint_url="http://host"),
]
LASTING = [
    *(Answer(status) for status in (400, 401, 403, 404, 410, 416)),
    FileNotFoundError("none"),
    PermissionError("no"),
    IsADirectoryError("folder"),
    http.client.InvalidURL("control characters"),
    _s3("NoSuchKey", 404),
    _s3("AccessDenied", 403),
    NoCredentialsError(),
    ValueError("not a parquet file"),
    KeyError("x"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_fault_that_passes_is_known_in_the_words_of_each_library(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_a_fault_that_stays_is_not_tried_again(error: Exception) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(action, Patience(retries=3, seconds=60), "url")
    assert len(calls) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(patience, "MAX_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
def test_it_goes_on_after_faults_and_counts_them() -> None:
    answers: list[Any] = [Answer(503), ConnectionResetError(), b"data"]
    retried = []

    def action() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    assert patiently(action, Patience(retries=2), "url", on_retry=lambda: retried.append(1)) == b"data"
    assert len(retried) == 2


@pytest.mark.usefixtures("quick")
def test_it_gives_up_after_the_tries_and_the_time_and_says_so() -> None:
    calls = []

    def action() -> None:
        calls.append(time.monotonic())
        raise Answer(503)

    with pytest.raises(Answer) as caught:
        patiently(action, Patience(retries=2), "url")
    assert len(calls) == 3
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"tried 3 times in \d+ s", note)
    calls.clear()
    with pytest.raises(Answer):
        patiently(action, Patience(retries=0, seconds=0.2), "url")
    assert calls[-1] - calls[0] >= 0.2


def test_after_the_stop_nothing_is_tried() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(LastingError, match="the reader is closed"):
        patiently(lambda: pytest.fail("tried"), Patience(), "url", stop=stop)


def test_whoever_stops_it_does_not_wait_for_the_pause() -> None:
    stop = threading.Event()

    def action() -> None:
        stop.set()
        raise Answer(503, {"Retry-After": "300"})

    began = time.monotonic()
    with pytest.raises(Answer):
        patiently(action, Patience(seconds=600), "url", stop=stop)
    assert time.monotonic() - began < 100  # of 300


@pytest.mark.parametrize(("text", "seconds"), [("7", 7), (" 0 ", 0), ("99999", 300), ("soon", None), ("-3", None)])
def test_the_server_may_say_how_long_to_wait(text: str, seconds: float | None) -> None:
    assert retry_after(Answer(503, {"Retry-After": text})) == seconds


def test_the_server_may_name_a_date() -> None:
    date = email.utils.formatdate(time.time() + 250, usegmt=True)
    found = retry_after(Answer(503, {"Retry-After": date}))
    assert found is not None
    assert 100 < found <= 250


def test_pauses_grow_up_to_a_limit_and_differ() -> None:
    pauses = [pause_seconds(attempt, Answer(503)) for attempt in range(20)]
    assert all(pause <= patience.MAX_PAUSE_SECONDS for pause in pauses)
    assert pauses[0] < 0.2 < pauses[8]
    assert len(set(pauses[10:])) > 1


@pytest.mark.parametrize(
    "changes", [{"timeout_seconds": 0}, {"retries": -1}, {"seconds": -1}, {"seconds": float("nan")}]
)
def test_a_patience_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout_seconds must be above 0"):
        Patience(**changes)

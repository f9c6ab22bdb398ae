"""Fixtures that every test file shares, and the list of skipped tests that CI compares with the committed one."""

import contextlib
import http.server
import logging
import os
import re
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, settings

from tests.swift_server import s3_settings, swift

__all__ = ["s3_settings", "swift"]

# On a busy machine an example may take seconds; what fails once must fail again.
settings.register_profile(
    "headrace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("headrace")

MAX_STALL_SECONDS = 60
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the folder shared/data beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _caches_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a program keeps in the user's cache folder goes elsewhere, also from the programs that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command run in this process, with `-q` say, sets levels and handlers: what follows must not inherit them."""
    root, package = logging.getLogger(), logging.getLogger("headrace")
    handlers, package_handlers, level = root.handlers[:], package.handlers[:], package.level
    yield
    root.handlers[:], package.handlers[:] = handlers, package_handlers
    package.setLevel(level)


@pytest.fixture
def no_more_than() -> Iterator[Callable[[int], None]]:
    """A function that lets no file of this process grow over so many bytes: a full disk, as far as writers can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Read by every Python that is started with its folder on PYTHONPATH, the workers of a program too.
HOLD = """
import glob, os, time

def held(put):
    def wait_and_put(source, target, **options):
        while len(glob.glob(os.environ["HOLD_FILES"])) >= int(os.environ["HOLD_AT"]):
            time.sleep(0.01)
        return put(source, target, **options)
    return wait_and_put

os.link, os.replace = held(os.link), held(os.replace)
"""


@pytest.fixture
def hold(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, str]]:
    """`hold(files, count)`: the environment of a program that puts no file in place once `count` match `files`.

    So a kill that a busy machine delivers late still finds work that was not done.
    """
    folder = tmp_path_factory.mktemp("hold")
    (folder / "sitecustomize.py").write_text(HOLD)

    def environment(files: str, count: int) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        return {**os.environ, "PYTHONPATH": path, "HOLD_FILES": files, "HOLD_AT": str(count)}

    return environment


@dataclass
class RangeServer:
    """A server of ranges over one folder; `faults` are used up one a request, by requests whose path ends as named."""

    folder: Path
    faults: list[str] = field(default_factory=list)
    faulty: str = ".tar"
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, path: str) -> str:
        """Return the fault of this request, or nothing."""
        with self.lock:
            return self.faults.pop(0) if self.faults and path.endswith(self.faulty) else ""


@pytest.fixture
def range_server() -> Iterator[Callable[[str], RangeServer]]:
    """Start servers over folders: `range_server(folder)`."""
    running = []

    def start(folder: str) -> RangeServer:
        state = RangeServer(Path(folder))
        handler = type("Bound", (_Handler,), {"state": state})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((server, thread))
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        return state

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    state: RangeServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = self.state.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        fault = self.state.next_fault(self.path) if asked else ""
        if asked is None:
            self._send(200, data, {}, body=body)
            return
        start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
        self.state.ranges.append((self.path, start, end))
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body=body)
            return
        headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._send_faulty(fault, data[start : end + 1], headers)

    def _send_faulty(self, fault: str, data: bytes, headers: dict[str, str]) -> None:
        if fault == "503":
            self._send(503, b"busy", {}, body=True)
        elif fault == "stall":
            self._send(206, data, headers, body=False)
            self.connection.settimeout(MAX_STALL_SECONDS)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # returns when the reader hangs up
            self.close_connection = True
        elif fault == "zeros":
            self._send(206, bytes(len(data)), headers, body=True)
        elif fault == "short":
            self._send(206, data, headers, body=False)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "reset":
            self.connection.close()
            self.close_connection = True
        elif fault == "redirect":
            self._send(302, b"", {"Location": self.path}, body=True)
        elif fault == "elsewhere":
            self._send(302, b"", {"Location": "file:///etc/hostname"}, body=True)
        elif fault == "lie":
            self._send(206, data, {"Content-Range": "bytes 0-9/10"}, body=True)
        else:
            assert not fault, fault
            self._send(206, data, headers, body=True)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none; torch is imported only for such tests."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Write the names of skipped tests, and of failed ones after a whole run, into $HEADRACE_OUTCOMES, for CI."""
    folder = os.environ.get("HEADRACE_OUTCOMES")
    if not folder:
        return
    lists = {"skipped": ("skipped",)}
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        lists["failed"] = ("failed", "error")
    for name, kinds in lists.items():
        found = {report.nodeid for kind in kinds for report in terminalreporter.stats.get(kind, [])}
        (Path(folder) / name).write_text("".join(f"{test}\n" for test in sorted(found)))

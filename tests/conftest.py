"""Fixtures that every test file shares, and the list of skipped tests that CI compares with the committed one."""

import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take seconds; what fails once must fail again.
settings.register_profile(
    "headrace", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("headrace")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the folder shared/data beside the repository")
    return SHARED_DATA


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the names of skipped tests to $HEADRACE_SKIPPED; CI compares them with tests/allowed_skips.txt."""
    target = os.environ.get("HEADRACE_SKIPPED")
    if target:
        names = sorted({report.nodeid for report in terminalreporter.stats.get("skipped", [])})
        Path(target).write_text("".join(f"{name}\n" for name in names))

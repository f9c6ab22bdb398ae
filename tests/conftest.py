"""Fixtures that every test file shares, and the list of skipped tests that CI compares with the committed one."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the folder shared/data beside the repository")
    return SHARED_DATA


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the names of skipped tests to $HEADRACE_SKIPPED; CI compares them with tests/allowed_skips.txt."""
    target = os.environ.get("HEADRACE_SKIPPED")
    if target:
        names = sorted({report.nodeid for report in terminalreporter.stats.get("skipped", [])})
        Path(target).write_text("".join(f"{name}\n" for name in names))

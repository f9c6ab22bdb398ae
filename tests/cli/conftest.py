"""Run the real `main()` in this process."""

import sys
from collections.abc import Callable

import pytest

from headrace.cli.app import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `headrace ARGUMENTS`; return exit code and everything printed, the error's line included."""

    def run_main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        text = "".join(capsys.readouterr())
        return (1, text + code) if isinstance(code, str) else (code or 0, text)

    return run_main

"""Promises of -v and -q: on every command, before and after its name; they say more, or nothing but errors."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from headrace.cli.app import COMMANDS, app
from headrace.cli.verbosity import StderrHandler, is_quiet, set_verbosity


def test_every_command_takes_both() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        flags = {flag for item in command.params for flag in item.opts}
        assert {"-v", "--verbose", "-q", "--quiet"} <= flags, name


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (["steps"], logging.WARNING),
        (["-v", "steps"], logging.INFO),
        (["steps", "-v"], logging.INFO),
        (["-q", "steps"], logging.ERROR),
        (["steps", "--quiet"], logging.ERROR),
        (["-v", "steps", "-v"], logging.INFO),
    ],
)
def test_before_and_after_the_subcommand_is_the_same(arguments: list[str], level: int) -> None:
    app(arguments, standalone_mode=False)
    (handler,) = (item for item in logging.getLogger().handlers if isinstance(item, StderrHandler))
    assert handler.level == level
    assert is_quiet() == (level == logging.ERROR)


def test_both_at_once_are_refused() -> None:
    for arguments in (["-v", "-q", "steps"], ["-v", "steps", "-q"]):
        with pytest.raises(ValueError, match="contradict each other"):
            app(arguments, standalone_mode=False)


def test_a_line_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    set_verbosity(verbose=True)
    logging.getLogger("headrace.x").info("%s", "a\nb\x1b[31m")
    logging.getLogger("somelibrary").info("not ours")
    assert capsys.readouterr().err == "INFO headrace.x: a b [31m\n"


def test_lines_of_worker_processes_reach_stderr(tmp_path: Path) -> None:
    arguments = ("import", "in", "out", "--samples-per-shard", "1", "--workers", "2")
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")

    def run(*flags: str) -> str:
        command = [sys.executable, "-m", "headrace.cli.app", *arguments, *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr

    loud = run("-v")
    assert "INFO headrace.shards.progress: unit shard 00000: done (" in loud
    assert "0 of 2 shards are done already" in loud
    assert run("-q") == ""

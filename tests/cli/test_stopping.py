"""Ctrl-C and SIGTERM end a command with one line, at once, and leave no process behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
from headrace.cli.app import main
if __name__ == "__main__":
    main()
"""
MAX_SECONDS = 120


def start(folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def stop_when(process: subprocess.Popen[str], ready: Callable[[], bool], number: signal.Signals) -> None:
    """Send the signal as a terminal (to the whole group) or a scheduler does; check how the command ends."""
    try:
        deadline = time.monotonic() + MAX_SECONDS
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "never ready to be stopped"
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=MAX_SECONDS)
        assert (process.returncode, errors) == (128 + number, f"headrace: stopped by {number.name}\n")
        while _group_exists(process.pid):
            assert time.monotonic() < deadline + MAX_SECONDS, "a worker is still there"
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_stopped_fetch_lets_go_of_the_job(tmp_path: Path, executor: str, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(MAX_SECONDS)
        pair = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "list.txt").write_text("".join(f"http://{pair}/{row}.jpg\n" for row in range(2)))
        (tmp_path / "recipe.yaml").write_text(
            "job: job\nunsafe_images: off\ninput: {urls: [list.txt]}\n"
            f'fetch: {{samples_per_shard: 1, allow_private: ["{pair}"], attempt_seconds: 600, deadline_seconds: 600}}\n'
            f"engine: {{executor: {executor}, workers: 2}}\n"
        )

        def ready() -> bool:
            silent.accept()[0].detach()  # a request is under way, and will never be answered
            return True

        stop_when(start(tmp_path, "fetch", "recipe.yaml"), ready, number)
    assert (tmp_path / "job" / "job.json").exists()
    assert not (tmp_path / "job" / "owner.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_import_ends_its_workers_and_goes_on(
    tmp_path: Path, hold: Callable[[str, int], dict[str, str]], number: signal.Signals
) -> None:
    (tmp_path / "in").mkdir()
    for row in range(6):
        Image.fromarray(np.full((8, 8, 3), row, np.uint8)).save(tmp_path / "in" / f"{row}.png")
    arguments = ("import", "in", "out", "-q", "--samples-per-shard", 1, "--workers", 2)
    commits = tmp_path / "out" / "commits"
    process = start(tmp_path, *arguments, environment=hold(str(commits / "*.json"), 1))
    stop_when(process, lambda: any(commits.glob("*.json")), number)
    assert not (tmp_path / "out" / "dataset.json").exists()
    again = start(tmp_path, *arguments)
    assert again.communicate(timeout=MAX_SECONDS)[1] == ""
    assert again.returncode == 0
    assert (tmp_path / "out" / "dataset.json").exists()

"""Kill -9 at random moments of a fetch, run again: every file as an uninterrupted run wrote it."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NUM_ROWS = 120
SHARD_ROWS = 10

DRIVER = """
import json, sys
from types import SimpleNamespace
from headrace.config import build_config
from headrace.shards.units import EngineConfig
from headrace.curation.fetch import FetchConfig, InputConfig
from headrace.curation.stages import fetch as run_fetch
if __name__ == "__main__":
    job, urls, settings, *retry = sys.argv[1:]
    run_fetch(SimpleNamespace(
        job=job, seed=1, input=InputConfig(urls=(urls,)), fetch=build_config(FetchConfig, json.loads(settings)),
        engine=EngineConfig(executor="local", workers=2),
    ), retry_failed=bool(retry))
"""


def start(
    tmp_path: Path, job: str, settings: dict[str, Any], environment: dict[str, str] | None = None, *retry: str
) -> subprocess.Popen[bytes]:
    (tmp_path / "driver.py").write_text(DRIVER)
    arguments = [tmp_path / "driver.py", tmp_path / job, tmp_path / "list.txt", json.dumps(settings), *retry]
    return subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(300) == 0


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file but what sites said, which holds when they were asked."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "permissions" not in path.parts
    }


def committed(job: Path) -> int:
    return len(list((job / "raw" / "commits").glob("[0-9]*.json")))


@pytest.mark.full
def test_a_killed_fetch_goes_on_to_the_same_bytes(
    server: Any, web: Any, tmp_path: Path, hold: Callable[[str, int], dict[str, str]]
) -> None:
    for number in range(NUM_ROWS):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    server.answers["/5.jpg"] = web.reply(status="404 Not Found")
    (tmp_path / "list.txt").write_text("".join(server.url(f"/{number}.jpg") + "\n" for number in range(NUM_ROWS)))
    settings = {
        "allow_private": [server.pair],
        "samples_per_shard": SHARD_ROWS,
        "retries": 2,
        "attempt_seconds": 30.0,
    }
    finish(start(tmp_path, "whole", settings))
    whole = files_of(tmp_path / "whole")
    assert committed(tmp_path / "whole") == NUM_ROWS // SHARD_ROWS

    for number, answer in list(server.answers.items()):
        server.answers[number] = slowly(answer)
    seed = int(os.environ.get("HEADRACE_KILL_SEED", time.time_ns() % 100_000))
    print(f"HEADRACE_KILL_SEED={seed}")  # noqa: T201
    moments = random.Random(seed)
    for target in sorted(moments.sample(range(NUM_ROWS // SHARD_ROWS - 2), 3)):
        held = hold(str(tmp_path / "killed" / "raw" / "commits" / "[0-9]*.json"), NUM_ROWS // SHARD_ROWS - 2)
        process = start(tmp_path, "killed", settings, held)
        deadline = time.monotonic() + 120
        while committed(tmp_path / "killed") <= target:
            assert time.monotonic() < deadline, "never ready to be killed"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, "the driver ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(120)
        left = NUM_ROWS // SHARD_ROWS - committed(tmp_path / "killed")
        assert left > 0, "nothing was left to do at the kill, so this proved nothing"
        print(f"killed with {left} of {NUM_ROWS // SHARD_ROWS} shards uncommitted")  # noqa: T201
    finish(start(tmp_path, "killed", settings))
    assert files_of(tmp_path / "killed") == whole


@pytest.mark.full
def test_a_killed_retry_goes_on_to_the_same_bytes(
    server: Any, web: Any, tmp_path: Path, hold: Callable[[str, int], dict[str, str]]
) -> None:
    for number in range(NUM_ROWS):
        server.answers[f"/{number}.jpg"] = web.reply(status="503 Busy")
    (tmp_path / "list.txt").write_text("".join(server.url(f"/{number}.jpg") + "\n" for number in range(NUM_ROWS)))
    settings = {"allow_private": [server.pair], "samples_per_shard": SHARD_ROWS, "retries": 0, "attempt_seconds": 30.0}
    finish(start(tmp_path, "whole", settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for number in (3, 50, 51):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    finish(start(tmp_path, "whole", settings, None, "retry"))
    whole = files_of(tmp_path / "whole")
    shards = NUM_ROWS // SHARD_ROWS
    num_empty = len(list((tmp_path / "whole/input/retries/00000/commits").iterdir()))
    assert num_empty >= shards - 3
    assert num_empty + committed(tmp_path / "whole") == 2 * shards

    for number, answer in list(server.answers.items()):
        server.answers[number] = slowly(answer)
    records = tmp_path / "killed/input/retries/00000/commits"
    for target in (1, 4):
        process = start(tmp_path, "killed", settings, hold(f"{records}/[0-9]*.json", num_empty - 2), "retry")
        deadline = time.monotonic() + 120
        while len(list(records.glob("*.json"))) <= target:
            assert time.monotonic() < deadline, "never ready to be killed"
            time.sleep(0.005)
        assert process.poll() is None, "the driver ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(120)
        assert len(list(records.glob("*.json"))) < num_empty
    finish(start(tmp_path, "killed", settings, None, "retry"))
    assert files_of(tmp_path / "killed") == whole


def slowly(answer: bytes) -> Any:
    import asyncio

    async def send(_: Any, writer: Any) -> None:
        await asyncio.sleep(0.05)
        writer.write(answer)

    return send

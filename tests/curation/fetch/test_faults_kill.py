"""Kill -9 at random moments of fetch and annotate, again and again: the same bytes in the end, hardly anything twice.

`HEADRACE_KILLS=100 python -m pytest tests/curation/fetch/test_faults_kill.py -s` kills each of both so often; CI less
often. `HEADRACE_KILL_SEED` repeats the moments of a run.
"""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

NUM_KILLS = int(os.environ.get("HEADRACE_KILLS", "6"))
NUM_ROWS = 12 * NUM_KILLS
CONCURRENCY = 4


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.full
def test_kills_at_random_moments_lose_nothing_and_repeat_what_was_in_flight(
    server: Any, web: Any, tmp_path: Path
) -> None:
    seed = int(os.environ.get("HEADRACE_KILL_SEED", time.time_ns() % 100_000))
    print(f"HEADRACE_KILL_SEED={seed} HEADRACE_KILLS={NUM_KILLS}")  # noqa: T201
    for number in range(NUM_ROWS):
        image = web.reply(web.jpeg(number, size=16 + number % 64))
        server.answers[f"/{number}.jpg"] = slowly(image if number % 9 else web.reply(status="404 Not Found"))
    urls = [server.url(f"/{number}.jpg") for number in range(NUM_ROWS)]
    urls += [*urls[:30], "ftp://nowhere/", ""]
    (tmp_path / "list.txt").write_text("".join(url + "\n" for url in urls))
    settings = {
        "allow_private": [server.pair],
        "samples_per_shard": 30,
        "concurrency": CONCURRENCY,
        "per_host": CONCURRENCY,
        "honor_opt_out": False,
    }
    program = [sys.executable, Path(__file__).with_name("kill_driver.py"), tmp_path / "list.txt", json.dumps(settings)]
    driver = subprocess.Popen(
        [*program, tmp_path, str(NUM_KILLS), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    assert driver.stdout.readline().strip() == '{"fetch": "whole"}'
    undisturbed = Counter(path for path, _ in server.requests)
    server.requests.clear()
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert driver.stdout.readline().strip() == '{"annotate": "whole"}'
    disturbed = Counter(path for path, _ in server.requests)
    told, _ = driver.communicate("\n", 600)
    assert driver.returncode == 0
    met = json.loads(told)
    repeated = disturbed.total() - undisturbed.total()
    print(f"kills that met work: {met}; of {undisturbed.total()} requests {repeated} were made again")  # noqa: T201
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert min(met.values()) >= NUM_KILLS // 4
    assert disturbed.keys() == undisturbed.keys()
    # What was in flight at a kill; and a URL of two shards, where the first of them was finished before.
    assert repeated <= met["fetch"] * CONCURRENCY + 30


def slowly(answer: bytes) -> Any:
    async def send(_: Any, writer: Any) -> None:
        await asyncio.sleep(0.03)
        writer.write(answer)

    return send

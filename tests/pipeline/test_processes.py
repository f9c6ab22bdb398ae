"""Real processes under torchrun: one, two and four give the same global batches, also across a resume."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Mixture

MAX_SECONDS = 120

PROGRAM = Path(__file__).parent / "ranks_program.py"


def launch(mixture: Path, out: Path, *, processes: int, steps: int, state: Path | None = None) -> dict[str, str]:
    """Return what stands at every position, over all ranks; write the state of rank 0 to OUT/state.json."""
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = [str(PROGRAM), str(mixture), str(out), str(steps), str(state or "-")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks: list[dict[str, Any]] = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    merged = {position: digest for rank in ranks for position, digest in rank["seen"].items()}
    assert len(merged) == sum(len(rank["seen"]) for rank in ranks)
    assert all(rank["state"] == ranks[0]["state"] for rank in ranks)
    (out / "state.json").write_text(json.dumps(ranks[0]["state"]))
    return merged


@pytest.mark.full
def test_one_two_and_four_processes_give_the_same_global_batches(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    alone = launch(path, tmp_path / "one", processes=1, steps=12)
    assert sorted(map(int, alone)) == list(range(96))
    assert launch(path, tmp_path / "two", processes=2, steps=12) == alone
    first = launch(path, tmp_path / "four", processes=4, steps=5)
    second = launch(path, tmp_path / "then", processes=2, steps=7, state=tmp_path / "four" / "state.json")
    assert {**first, **second} == alone


# A shell starts background jobs with SIGINT ignored, and children inherit that: the program must not depend on it.
INTERRUPTED = """
import signal, sys
from headrace.pipeline import open_stream
signal.signal(signal.SIGINT, signal.default_int_handler)
stream = open_stream(sys.argv[1], global_batch=8)
for number, batch in enumerate(stream):
    if number == 3:
        print("ready", flush=True)
"""


def test_ctrl_c_ends_a_program_that_streams(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=MAX_SECONDS)[1]
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


FORGOTTEN = """
import sys
import time
from headrace.pipeline import open_stream
stream = open_stream(sys.argv[1], global_batch=8)
for batch in stream:
    break
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_never_closes_its_stream_ends_at_once_and_in_silence(
    mixture: Mixture, datasets: tuple[str, str], range_server: Callable[[str], Any], tmp_path: Path
) -> None:
    """Even while reads hang, each of which would be tried again for hours."""
    server = range_server(datasets[0])
    first_batch = 8
    server.faults[:] = [""] * first_batch + ["stall"] * 10_000
    source = dataclasses.replace(mixture.sources[0], url=server.url)
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(dataclasses.replace(mixture, sources=(source,), read_retries=10_000))))
    process = subprocess.Popen(
        [sys.executable, "-c", FORGOTTEN, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + MAX_SECONDS
            while len(server.faults) >= 10_000:
                assert time.monotonic() < deadline, "no read ever hung"
                time.sleep(0.01)
            errors = process.communicate("end\n", timeout=MAX_SECONDS)[1]
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


FORKED = """
import os, sys
from headrace.pipeline import open_stream
stream = open_stream(sys.argv[1], global_batch=8)
next(stream)
child = os.fork()
if not child:
    try:
        next(stream)
    except ValueError as error:
        print(error)
    sys.exit()
os.waitpid(child, 0)
next(stream)
"""


def test_a_stream_that_was_begun_is_refused_in_a_forked_process(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "the stream was begun before this process was forked off; open it in this one\n"
    assert (done.returncode, done.stderr) == (0, "")

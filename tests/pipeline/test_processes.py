"""Real processes under torchrun: one, two and four give the same global batches, also across a resume."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Mixture, Segment, open_stream

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


KILLED = Path(__file__).parent / "killed_ranks_program.py"


def run_until(mixture: Path, out: Path, *, processes: int, last: int, kill_at: int | None) -> None:
    """Run as so many processes up to position `last`; kill -9 them all when the state has passed `kill_at`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    process = subprocess.Popen(
        [*command, str(KILLED), str(mixture), str(out), str(last), str(last if kill_at is None else kill_at + 64)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 2 * MAX_SECONDS
    try:
        while kill_at is not None and position_in(out) < kill_at:
            assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.005)
        if kill_at is None:
            assert process.wait(timeout=2 * MAX_SECONDS) == 0, process.stderr.read()[-3000:] if process.stderr else ""
    finally:
        for child in children_of(process.pid):  # torchrun puts each into a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if process.poll() is None:
            process.kill()
        process.communicate()


def children_of(parent: int) -> list[int]:
    """Return the process and what it started, by /proc."""
    found = [parent]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found += children_of(int(stat.parent.name))
    return found


def position_in(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int(json.loads((out / "state.json").read_text())["position"])
    return 0


@pytest.mark.full
def test_kill_nine_and_fewer_processes_across_segments_and_lanes_lose_nothing(mixture: Mixture, tmp_path: Path) -> None:
    """World size 4 -> 2 -> 1; a change of weights, of lanes, and the end of a source lie on the way."""
    large, small = mixture.sources
    changing = dataclasses.replace(
        mixture,
        sources=(large, dataclasses.replace(small, repeat=4)),
        segments=(
            Segment(start=64, weights={"large": 0.5}),
            Segment(start=128, lanes=8),
            Segment(start=240, lanes=2),
        ),
    )
    path, out = tmp_path / "mixture.yaml", tmp_path / "out"
    path.write_text(json.dumps(config_to_dict(changing)))
    out.mkdir()
    run_until(path, out, processes=4, last=240, kill_at=96)
    first = position_in(out)
    run_until(path, out, processes=2, last=360, kill_at=first + 96)
    second = position_in(out)
    run_until(path, out, processes=1, last=360, kill_at=None)
    assert 96 <= first < second < 360
    seen: dict[int, list[Any]] = {}
    for file in out.glob("seen-*.jsonl"):
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the kill came while it was written
                for row in json.loads(line):
                    assert seen.setdefault(row[0], row) == row  # steps that were done again are the same
    assert sorted(seen) == list(range(360))
    with open_stream(changing, global_batch=8) as stream:
        planned = [
            (source, f"{sample:05d}")
            for step in range(45)
            for source, sample in zip(
                stream.plan.batch(step).placed.source.tolist(),
                stream.plan.batch(step).placed.sample.tolist(),
                strict=True,
            )
        ]
    assert [(seen[position][1], seen[position][2]) for position in range(360)] == planned
    assert Counter(row for row in planned if row[0] == 1) == {(1, f"{n:05d}"): 4 for n in range(19)}


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "the stream was begun before this process was forked off; open it in this one\n"
    assert (done.returncode, done.stderr) == (0, "")

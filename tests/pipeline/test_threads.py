"""A signal handler that raises inside `next`, at any instruction, breaks, loses and doubles nothing."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headrace.config import config_to_dict
from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.threads import Bell, DaemonPool, wait_until_gone

INTERRUPTED = """
import faulthandler, random, signal, sys, time
from headrace.pipeline import open_stream

faulthandler.dump_traceback_later(500, exit=True)  # a lock that was broken hangs

SHORT = 4e-4

class Tick(BaseException):
    pass

def tick(*_):
    raise Tick

def batches(path, seconds):
    # What stands where, each batch taken with timers that go off inside `next`.
    # Timers grow until `next` returns once: on a busy machine nothing would be done within the shortest ones.
    draw, seen, ticks, longest = random.Random(1), {}, 0, SHORT
    stream = open_stream(path, global_batch=8, columns=["label"])
    end = time.monotonic() + seconds
    # At least so long; longer on a busy machine, until enough has happened.
    while time.monotonic() < end or ((ticks <= 50 or len(seen) <= 50) and time.monotonic() < end + 300):
        before = stream.position
        try:
            if draw.random() < 0.02:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 2e-3))
                stream.load_state_dict(stream.state_dict())  # closes the threads
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, longest))
            batch = next(stream)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Tick:
            ticks, longest = ticks + 1, min(2 * longest, 2.0)
            # Broken off before the batch was delivered, or after `next` had returned it.
            assert stream.position in (before, before + 8), (before, stream.position)
            continue
        longest = SHORT
        assert batch.position.tolist() == list(range(before, before + 8)), (before, batch.position)
        assert stream.position == before + 8
        seen[before] = (batch.key, batch.images.tobytes(), batch.columns["label"].tolist(), stream.bad_samples)
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 1e-3))
            stream.close()
            break
        except Tick:
            continue
    signal.setitimer(signal.ITIMER_REAL, 0)
    return seen, ticks

signal.signal(signal.SIGALRM, tick)
seen, ticks = batches(sys.argv[1], float(sys.argv[2]))
with open_stream(sys.argv[1], global_batch=8, columns=["label"]) as stream:
    for _ in range(max(seen) // 8 + 1):
        before, batch = stream.position, next(stream)
        whole = (batch.key, batch.images.tobytes(), batch.columns["label"].tolist())
        assert before not in seen or seen[before][:3] == whole, before
import threading
print(ticks > 50, len(seen) > 50, [t.name for t in threading.enumerate() if t.name.startswith("headrace")])
"""


def test_a_signal_that_raises_inside_next_loses_and_doubles_nothing(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(path), "3"], capture_output=True, text=True, timeout=550, check=False
    )
    assert (done.stdout, done.returncode) == ("True True []\n", 0), done.stderr[-3000:]


def test_a_bell_wakes_who_waits_and_rings_once_for_many_rings() -> None:
    bell, woken = Bell(), []
    bell.ring()
    bell.ring()
    bell.wait()
    thread = threading.Thread(target=lambda: (bell.wait(), woken.append(1)))
    thread.start()
    time.sleep(0.05)
    assert not woken
    bell.ring()
    thread.join(60)
    assert woken


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux shows the threads of the kernel")
def test_threads_are_gone_when_they_are_said_to_be() -> None:
    threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until_gone(threads)
    assert not [thread for thread in threads if os.path.exists(f"/proc/self/task/{thread.native_id}")]


@pytest.mark.parametrize("consumers", [2, 4])
def test_threads_that_share_a_stream_get_each_batch_once(mixture: Mixture, consumers: int) -> None:
    got: list[int] = []
    with open_stream(mixture, global_batch=8, once=True) as stream:

        def take() -> None:
            for batch in stream:
                got.extend(batch.position[batch.valid].tolist())

        threads = [threading.Thread(target=take) for _ in range(consumers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(got) == list(range(64))


def test_a_daemon_pool_runs_cancels_and_leaves_behind() -> None:
    pool, hold = DaemonPool(2, "test-pool"), threading.Event()
    assert [pool.submit(pow, number, 2).result(100) for number in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(100)
    stuck = [pool.submit(hold.wait) for _ in range(2)]
    waiting = pool.submit(pow, 2, 2)
    while not all(future.running() for future in stuck):
        time.sleep(0.01)
    begun = time.monotonic()
    assert not pool.close(0.2)
    assert time.monotonic() - begun < 100  # they would wait for ever
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(pow, 2, 2)
    hold.set()
    assert all(future.result(100) for future in stuck)
    assert pool.close(100)


@pytest.mark.parametrize(("before", "after"), [(0.005, 0.0005), (0.002, 0.002)])
def test_a_stream_that_reads_makes_threads_give_way_sooner_unless_the_user_chose(
    mixture: Mixture, before: float, after: float
) -> None:
    found = sys.getswitchinterval()
    try:
        sys.setswitchinterval(before)
        with open_stream(mixture, global_batch=8) as stream:
            assert sys.getswitchinterval() == pytest.approx(before)  # it was opened, and reads nothing yet
            next(stream)
            assert sys.getswitchinterval() == pytest.approx(after)
    finally:
        sys.setswitchinterval(found)

"""Batches on a device: those of the stream, none lost by an interrupt, the state of what was handed out."""

import copy
import dataclasses
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.config import config_to_dict
from headrace.pipeline import Augment, Batch, Mixture, RandAugment, RandomErasing, Stream, View, open_stream
from headrace.pipeline.augment.changes import view_changes
from headrace.pipeline.augment.colour import ColourDraw
from headrace.torch import DeviceBatches, StreamLoader
from headrace.torch import device_batches as module
from headrace.torch.copy_ahead import CopyAhead
from headrace.torch.device_copy import DeviceCopy

Fingerprint = Callable[[Batch], tuple[object, ...]]


@pytest.fixture(params=["on the spot", "in a thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of batches for the CPU, and that of those for a GPU with copies to the CPU's own memory."""
    if request.param == "in a thread":
        monkeypatch.setattr(module, "DeviceCopy", _EveryDevice)


class _EveryDevice(DeviceCopy):
    def __init__(self, device: torch.device, colours: Sequence[ColourDraw | None] = ()) -> None:
        super().__init__(device, colours)
        self.copies = True


@pytest.fixture
def stream(mixture: Mixture) -> Iterator[Stream]:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as opened:
        yield opened


@pytest.fixture
def whole(mixture: Mixture, fingerprint: Fingerprint) -> list[tuple[object, ...]]:
    with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as opened:
        return [fingerprint(next(opened)) for _ in range(12)]


@pytest.mark.usefixtures("way")
def test_batches_are_the_streams_as_tensors(stream: Stream, whole: list[object], fingerprint: Fingerprint) -> None:
    with DeviceBatches(stream, "cpu") as batches:
        got = [next(batches) for _ in range(12)]
    assert [fingerprint(batch) for batch in got] == whole
    assert all(isinstance(view, torch.Tensor) and view.dtype == torch.uint8 for view in got[0].views)
    assert [tuple(view.shape) for view in got[0].views] == [(8, 16, 16, 3), (8, 8, 8, 3)]


@pytest.mark.usefixtures("way")
def test_resume_from_every_state_gives_the_same_tail(
    mixture: Mixture, whole: list[object], fingerprint: Fingerprint
) -> None:
    states = []
    with DeviceBatches(open_stream(mixture, global_batch=8, columns=["label", "caption"]), "cpu") as batches:
        for _ in range(6):
            states.append(batches.state_dict())
            next(batches)
        for step in (5, 0, 3):  # the same object goes back and forth too
            batches.load_state_dict(states[step])
            assert [fingerprint(next(batches)) for _ in range(4)] == whole[step : step + 4]
    for step, state in enumerate(states):
        with open_stream(mixture, global_batch=8, columns=["label", "caption"]) as opened:
            opened.load_state_dict(state)  # it is a stream's state
            assert fingerprint(next(opened)) == whole[step]


@pytest.mark.usefixtures("way")
def test_a_state_loaded_into_the_stream_before_the_first_batch_holds(
    stream: Stream, whole: list[object], fingerprint: Fingerprint
) -> None:
    with DeviceBatches(stream, "cpu") as batches:
        stream.load_state_dict(stream.state_at(24))
        assert batches.position == 24
        assert fingerprint(next(batches)) == whole[3]


def test_a_stream_that_was_moved_below_its_batches_is_refused(stream: Stream) -> None:
    with DeviceBatches(stream, "cpu") as batches:
        next(batches)
        stream.load_state_dict(stream.state_at(800))
        with pytest.raises(ValueError, match="moved to position 800, its DeviceBatches stand at 8; load a state by"):
            next(batches)


@pytest.mark.usefixtures("way")
def test_a_state_that_does_not_fit_is_refused_and_loses_nothing(
    stream: Stream, whole: list[object], fingerprint: Fingerprint
) -> None:
    with DeviceBatches(stream, "cpu") as batches:
        next(batches)
        with pytest.raises(ValueError, match="seed was 6"):
            batches.load_state_dict({**batches.state_dict(), "seed": 6})
        assert fingerprint(next(batches)) == whole[1]


class _Interrupted(Exception):
    pass


@pytest.mark.usefixtures("way")
def test_an_interrupt_at_any_moment_loses_and_doubles_no_batch(
    mixture: Mixture, whole: list[object], fingerprint: Fingerprint
) -> None:
    def interrupt(*_: object) -> None:
        raise _Interrupted

    got: list[object] = []
    num_interrupts = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with DeviceBatches(open_stream(mixture, global_batch=8, columns=["label", "caption"]), "cpu") as batches:
            while len(got) < 12:
                state = batches.state_dict()
                batch = None
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0009 * (num_interrupts % 40))
                    batch = next(batches)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except _Interrupted:
                    num_interrupts += 1
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    # Handed out, and lost on its way to `batch`: what was asked for last can be had again.
                    if batch is None and batches.state_dict() != state:
                        batches.load_state_dict(state)
                        continue
                if batch is not None:
                    got.append(fingerprint(batch))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert got == whole
    assert num_interrupts


@pytest.mark.usefixtures("way")
def test_a_finite_pass_ends_and_begins_again(mixture: Mixture) -> None:
    with DeviceBatches(open_stream(mixture, global_batch=24, once=True), "cpu") as batches:
        for _ in range(2):
            passed = list(batches)
            assert [int(batch.valid.sum()) for batch in passed] == [24, 24, 16]
            with pytest.raises(StopIteration):
                next(batches)
        state = batches.state_dict()
    assert state["position"] == 72


@pytest.mark.usefixtures("way")
def test_breaking_off_a_loop_goes_on_behind_it(mixture: Mixture) -> None:
    with DeviceBatches(open_stream(mixture, global_batch=8, once=True), "cpu") as batches:
        first = next(iter(batches)).position
        assert first.tolist() == list(range(8))
        assert [batch.position[0] for batch in batches] == [8 * number for number in range(1, 8)]


@pytest.mark.usefixtures("way")
def test_an_error_comes_out_at_its_batch_and_the_stream_goes_on_with_it(
    stream: Stream, whole: list[object], fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, fails = Stream.__next__, [True]

    def faulty(self: Stream) -> Batch:
        if self.position == 24 and fails:
            fails.clear()
            raise OSError("out of reach")
        return genuine(self)

    monkeypatch.setattr(Stream, "__next__", faulty)
    with DeviceBatches(stream, "cpu") as batches:
        assert [fingerprint(next(batches)) for _ in range(3)] == whole[:3]
        with pytest.raises(OSError, match="out of reach"):
            next(batches)
        assert [fingerprint(next(batches)) for _ in range(3)] == whole[3:6]


def test_no_more_is_copied_than_was_asked_for(stream: Stream) -> None:
    ahead = CopyAhead(stream, _EveryDevice(torch.device("cpu")), prefetch=2)
    ahead.start()
    try:
        for number in range(3):
            ahead.take(number)
            _until(lambda number=number: ahead.num_ready(number) == 3)  # type: ignore[misc]
            time.sleep(0.02)
            assert stream.position == 8 * (number + 3)
            del ahead.ready[number]
    finally:
        ahead.stop()


def test_the_waits_are_the_consumers_not_the_threads(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DeviceCopy", _EveryDevice)
    monkeypatch.setattr("headrace.pipeline.verdict.COMPUTE_SHARE", 1e-3)  # the machine of a test has other work
    genuine = Stream.__next__
    lets = threading.Semaphore(0)

    def held(self: Stream) -> Batch:
        lets.acquire()
        return genuine(self)

    monkeypatch.setattr(Stream, "__next__", held)
    with DeviceBatches(stream, "cpu") as batches:
        lets.release(3)
        next(batches)
        _until(lambda: len(batches._ahead.ready) == 2)  # type: ignore[union-attr]
        assert next(batches).waited_for == "none"
        assert next(batches).waited_for == "none"
        assert batches.stats().waited_seconds == 0  # not even the time of the call: they lay ready

        def let_one_late() -> None:
            _until(lambda: batches._ahead._asked == 3)  # type: ignore[union-attr]
            time.sleep(0.2)
            lets.release(100)

        threading.Thread(target=let_one_late).start()
        late = next(batches)
        stats = batches.stats()
    assert late.waited_seconds >= 0.2
    assert stats.batches == 4
    assert stats.waited_seconds + stats.stages["transfer"].seconds >= 0.2
    assert stats.stages["wait"].count == 4
    assert stats.bound_by != "compute"


class _Event:
    """As much of a CUDA event as is asked of it; `at` is None until the device has come there."""

    def __init__(self, at: float | None = None) -> None:
        self.at = at

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, later: "_Event") -> float:
        assert self.at is not None
        assert later.at is not None
        return later.at - self.at


def test_what_the_device_waited_for_a_copy_is_told_once_it_has_come_there() -> None:
    copying = DeviceCopy(torch.device("cpu"))
    early, late = (_Event(), _Event()), (_Event(5.0), _Event())
    copying._awaited.extend([early, late])
    assert copying.device_waited() == 0
    early[0].at, early[1].at = 1000.0, 1250.0
    assert copying.device_waited() == 0.25
    late[1].at = 2.0  # the copy had ended before the device came to it
    assert copying.device_waited() == 0


def test_another_thread_that_closes_ends_the_wait_for_a_batch(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Stream) -> Batch:
        while not stopped.is_set():
            time.sleep(0.001)
        raise ValueError("the stream is closed")

    stopped = threading.Event()
    monkeypatch.setattr(Stream, "__next__", never)
    monkeypatch.setattr(Stream, "pause", lambda _: stopped.set())
    monkeypatch.setattr(module, "DeviceCopy", _EveryDevice)
    batches = DeviceBatches(stream, "cpu")
    said: list[str] = []

    def wait() -> None:
        try:
            next(batches)
        except ValueError as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    _until(lambda: batches._ahead is not None and batches._ahead.is_running)
    batches.close()
    waiting.join(150)
    assert said == ["the stream is closed"]


def test_close_ends_every_thread_and_the_stream(stream: Stream) -> None:
    before = set(threading.enumerate())
    batches = DeviceBatches(stream, "cpu")
    next(batches)
    batches.close()
    batches.close()
    assert set(threading.enumerate()) <= before
    for closed in (batches, stream):
        with pytest.raises(ValueError, match="the stream is closed"):
            next(closed)


@pytest.mark.usefixtures("way")
def test_batches_that_are_forgotten_end_their_thread(mixture: Mixture) -> None:
    before = set(threading.enumerate())
    batches = DeviceBatches(open_stream(mixture, global_batch=8), "cpu")
    next(batches)
    del batches
    gc.collect()
    _until(lambda: set(threading.enumerate()) <= before)


FORGOTTEN = """
import sys, torch
from headrace.pipeline import open_stream
from headrace.torch import DeviceBatches, device_batches
from headrace.torch.device_copy import DeviceCopy

class Every(DeviceCopy):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.copies = True

device_batches.DeviceCopy = Every
batches = DeviceBatches(open_stream(sys.argv[1], global_batch=8), "cpu")
print(next(batches).position[0], flush=True)
"""


def test_a_program_that_forgets_to_close_ends(mixture: Mixture, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(json.dumps(config_to_dict(mixture)))
    done = subprocess.run([sys.executable, "-c", FORGOTTEN, str(path)], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.usefixtures("way")
def test_a_fork_and_a_copy_are_refused(stream: Stream) -> None:
    with DeviceBatches(stream, "cpu") as batches:
        next(batches)
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a stream cannot be copied"):
                duplicate(batches)  # type: ignore[operator]
        batches._process = os.getpid() + 1
        with pytest.raises(ValueError, match="before this process was forked off"):
            next(batches)
        batches._process = os.getpid()


def test_a_prefetch_of_nothing_is_refused(stream: Stream) -> None:
    with pytest.raises(ValueError, match="prefetch must be at least 1, got 0"):
        DeviceBatches(stream, "cpu", prefetch=0)


def test_colours_that_the_stream_left_are_changed_on_the_device(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Augment(
        colour_jitter=(0.4, 0.4, 0.2, 0.1),
        colour_jitter_probability=1.0,
        grayscale_probability=0.3,
        rand_augment=RandAugment(),
        random_erasing=RandomErasing(probability=0.5),
    )
    coloured = dataclasses.replace(mixture, views=(View(), View(augment=changed)))
    with open_stream(coloured, global_batch=8) as opened:
        wanted = next(opened)
    # As a stream that was opened for a GPU: the pictures come without their colours changed.
    monkeypatch.setattr(Stream, "changes_left", property(lambda stream: view_changes(stream.mixture)))
    monkeypatch.setattr(module, "DeviceCopy", _EveryDevice)
    with open_stream(coloured, global_batch=8) as opened:
        plain = next(opened)
    with DeviceBatches(open_stream(coloured, global_batch=8), "cpu") as batches:
        got = next(batches)
    assert np.array_equal(np.asarray(got.images), wanted.images)
    apart = np.abs(np.asarray(got.other_views[0]).astype(int) - np.asarray(wanted.other_views[0]))
    assert apart.max() <= 2
    assert np.abs(np.asarray(plain.other_views[0]).astype(int) - np.asarray(wanted.other_views[0])).mean() > 5


def test_a_stream_for_another_device_is_refused(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "device", "cuda:1")
    with pytest.raises(ValueError, match="opened for cuda:1, its batches are asked for on cpu"):
        DeviceBatches(stream, "cpu")


@pytest.mark.cuda
def test_batches_on_a_gpu_are_the_streams(stream: Stream, whole: list[object], fingerprint: Fingerprint) -> None:
    with DeviceBatches(stream, "cuda") as batches:
        got = [next(batches) for _ in range(12)]
    assert all(view.is_cuda for view in got[0].views)  # type: ignore[union-attr]
    on_host = [
        module.with_views(batch, [np.asarray(torch.as_tensor(view).cpu()) for view in batch.views]) for batch in got
    ]
    assert [fingerprint(batch) for batch in on_host] == whole


@pytest.mark.cuda
def test_a_busy_gpu_never_sees_a_batch_that_is_not_there_yet(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as opened:
        sums = [int(next(opened).images.astype(np.int64).sum()) for _ in range(40)]
    weights = torch.randn(2048, 2048, device="cuda")
    found = []
    with DeviceBatches(open_stream(mixture, global_batch=8), "cuda") as batches:
        for _ in range(40):
            weights = weights @ weights / weights.norm()  # the consumer's CUDA stream lags behind the host
            found.append(torch.as_tensor(next(batches).images).long().sum())
    assert torch.stack(found).tolist() == sums


@pytest.mark.cuda
def test_a_gpu_that_waits_for_copies_says_so(mixture: Mixture) -> None:
    large = dataclasses.replace(mixture, image_size=512, views=())
    with DeviceBatches(open_stream(large, global_batch=256), "cuda") as batches:
        for _ in range(6):
            torch.as_tensor(next(batches).images).float().sum()
        torch.cuda.synchronize()
        next(batches)
        stats = batches.stats()
    assert stats.bound_by != "compute"
    assert stats.stages["transfer"].count > 0


@pytest.mark.cuda
def test_a_loader_for_a_gpu_gives_what_one_for_the_cpu_gives(mixture: Mixture) -> None:
    options: Any = {"batch_size": 8, "columns": ["label"], "normalise": ((0.5,) * 3, (0.25,) * 3), "form": "tuple"}
    turbo = dataclasses.replace(mixture, decoder="turbo")  # auto would be another decoder there
    with StreamLoader(turbo, **options) as here, StreamLoader(turbo, device="cuda", **options) as there:
        for wanted, got in zip(here, there, strict=False):
            assert all(tensor.is_cuda for tensor in got)
            for one, other in zip(got, wanted, strict=True):  # floats near 0 are differences of larger ones
                torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-6)
            if here.position == 80:
                break


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)

"""What was delivered is let go of, what is begun is bounded; no missing thread and no broken decoder makes it hang."""

import dataclasses
import gc
import threading
import time
import types
import weakref
from collections.abc import Sequence

import pytest

from headrace.pipeline import Mixture, Stream, open_stream, prefetch
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode import DECODERS, Images, Item
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError


def test_a_delivered_batch_is_let_go_of(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        images = weakref.ref(next(stream).images)
        gc.collect()
        assert images() is None


def test_a_stream_that_was_broken_by_its_decoder_names_the_fault_each_time(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Turbo):
        def decode(self, *_: object) -> list[SampleError | None]:
            raise RuntimeError("the device is lost")

    monkeypatch.setitem(DECODERS, "broken", Broken)
    with open_stream(dataclasses.replace(mixture, decoder="broken"), global_batch=8) as stream:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the device is lost"):
                next(stream)
        assert stream.position == 0


def test_a_fault_between_reading_and_decoding_is_raised_and_waited_for_by_nobody(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens in a callback of the read, whose exceptions a future would only log."""

    class Forgetful(Turbo):
        @property
        def items_per_call(self) -> int:
            raise MemoryError("nothing is left")

        @items_per_call.setter
        def items_per_call(self, _: int) -> None: ...

    monkeypatch.setitem(DECODERS, "forgetful", Forgetful)
    with (
        open_stream(dataclasses.replace(mixture, decoder="forgetful"), global_batch=8) as stream,
        pytest.raises(MemoryError, match="nothing is left"),
    ):
        next(stream)


def test_a_consumer_faster_than_the_decoder_has_no_batches_begun_without_bound(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Turbo):
        def decode(
            self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
        ) -> list[SampleError | None]:
            time.sleep(0.001)
            return super().decode(items, windows_per_view, out)

    monkeypatch.setitem(DECODERS, "slow", Slow)
    # A thread that a busy machine lets stand holds its batch up, and up to six later ones are begun meanwhile.
    monkeypatch.setattr(prefetch, "AHEAD_SHARE", 6 * 8 * 3 * mixture.image_size**2 / mixture.memory_bytes)
    begun = []
    with open_stream(dataclasses.replace(mixture, decoder="slow", prefetch_batches=2), global_batch=8) as stream:
        for _ in range(40):
            next(stream)
            begun.append(stream.stats().queues.begun_batches)
    assert max(begun) <= 2 + 6
    assert sorted(begun)[10] <= 4  # two ready, and of later ones what keeps two threads at work


def _closes(stream: Stream) -> bool:
    thread = threading.Thread(target=stream.close, daemon=True)
    thread.start()
    thread.join(30)
    return not thread.is_alive()


@pytest.mark.parametrize("name", ["headrace-plan", "headrace-read", "headrace-decode"])
def test_a_machine_without_a_thread_left_is_told_and_closing_ends(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    stream = open_stream(mixture, global_batch=8)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(stream)
    assert _closes(stream)


def test_a_stream_that_cannot_begin_may_be_closed_or_begun_later(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(prefetch, "_thread", types.SimpleNamespace(start_new_thread=fail))
        stream, other = (open_stream(mixture, global_batch=8) for _ in range(2))
        for one in (stream, other):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                next(one)
        assert _closes(other)
    assert next(stream).position.tolist() == list(range(8))
    assert _closes(stream)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_decoder_that_cannot_be_closed_does_not_hold_up_closing(
    mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Turbo):
        def close(self) -> None:
            raise RuntimeError("the device is lost")

    monkeypatch.setitem(DECODERS, "broken", Broken)
    stream = open_stream(dataclasses.replace(mixture, decoder="broken"), global_batch=8)
    next(stream)
    assert _closes(stream)

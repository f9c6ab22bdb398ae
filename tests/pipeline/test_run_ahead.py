"""A slow picture costs its own thread's time: later batches go on, the order stays, memory is bounded."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.pipeline import Batch, Mixture, open_stream, prefetch
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.decode import DECODERS, Images, Item
from headrace.pipeline.decode.turbo import Turbo
from headrace.pipeline.errors import SampleError
from headrace.shards.permutation import make_key

BATCH = 8


class Uneven(Turbo):
    """Sleeps before a picture as long as `seconds` says of its position."""

    seconds: Callable[[int], float] = staticmethod(lambda _: 0.0)

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        time.sleep(sum(Uneven.seconds(item.position) for item in items))
        return super().decode(items, windows_per_view, out)


@pytest.fixture
def uneven(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> Mixture:
    """The mixture, decoded by `Uneven` in four threads."""
    monkeypatch.setitem(DECODERS, "uneven", Uneven)
    return dataclasses.replace(mixture, decoder="uneven", decode_threads=4, prefetch_batches=2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    threads=st.integers(1, 6),
    batches=st.integers(1, 3),
    share=st.sampled_from([0.0, 1e-5, 0.25]),
)
def test_slow_pictures_change_neither_order_nor_pixels(
    uneven: Mixture,
    fingerprint: Callable[[Batch], tuple[object, ...]],
    seed: int,
    threads: int,
    batches: int,
    share: float,
) -> None:
    Uneven.seconds = staticmethod(lambda _: 0.0)
    with open_stream(uneven, global_batch=BATCH) as stream:
        expected = [fingerprint(next(stream)) for _ in range(8)]
    Uneven.seconds = staticmethod(lambda position: 0.03 * (make_key(seed, position) % 10 == 0))
    changed = dataclasses.replace(uneven, decode_threads=threads, prefetch_batches=batches)
    with pytest.MonkeyPatch.context() as patch, open_stream(changed, global_batch=BATCH) as stream:
        patch.setattr(prefetch, "AHEAD_SHARE", share)
        assert [fingerprint(next(stream)) for _ in range(8)] == expected


def test_while_one_slow_picture_is_waited_for_those_of_later_batches_are_decoded(uneven: Mixture) -> None:
    gate, decoded = threading.Event(), set()

    def seconds(position: int) -> float:
        if position == 2 * BATCH:
            gate.wait(200)
        decoded.add(position)
        return 0.0

    Uneven.seconds = staticmethod(seconds)
    with open_stream(uneven, global_batch=BATCH) as stream:
        next(stream)
        next(stream)
        slow: list[Batch] = []
        consumer = threading.Thread(target=lambda: slow.append(next(stream)))
        consumer.start()
        # With two batches ahead it would end at 4 of them, and three threads of four would stand still.
        _settled(lambda: len(decoded) >= 8 * BATCH)
        assert not slow
        gate.set()
        consumer.join()
        assert slow[0].position[0] == 2 * BATCH


def test_batches_begun_ahead_are_bounded_by_memory(uneven: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    Uneven.seconds = staticmethod(lambda position: 0.0 if position != 2 * BATCH else float(not gate.wait(200)))
    per_batch = BATCH * 3 * uneven.image_size**2
    monkeypatch.setattr(prefetch, "AHEAD_SHARE", 5 * per_batch / uneven.memory_bytes)
    with open_stream(uneven, global_batch=BATCH) as stream:
        next(stream)
        next(stream)
        slow: list[Batch] = []
        consumer = threading.Thread(target=lambda: slow.append(next(stream)))
        consumer.start()
        _settled(lambda: stream.stats().queues.begun_batches == 2 + 5)
        time.sleep(0.1)
        assert stream.stats().queues.begun_batches == 2 + 5
        gate.set()
        consumer.join()
        assert np.array_equal(slow[0].position, np.arange(2 * BATCH, 3 * BATCH))


def test_nothing_is_begun_ahead_while_nobody_waits(uneven: Mixture) -> None:
    gate = threading.Event()
    Uneven.seconds = staticmethod(lambda position: 0.0 if position != BATCH else float(not gate.wait(200)))
    with open_stream(uneven, global_batch=BATCH) as stream:
        next(stream)
        _settled(lambda: stream.stats().queues.whole_batches == 0 and stream.stats().queues.pictures == 1)
        time.sleep(0.1)
        assert stream.stats().queues.begun_batches == 2
        gate.set()


def _settled(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("batch_bytes", "batches"), [(1, 16), (32 * 150_528, 16), (256 * 150_528, 6), (1 << 30, 2)])
def test_small_batches_are_kept_ready_in_greater_number(batch_bytes: int, batches: int) -> None:
    assert prefetch.batches_ahead(batch_bytes) == batches

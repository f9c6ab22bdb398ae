"""What was delivered is let go of, what is begun is bounded, and a broken decoder is named."""

import dataclasses
import gc
import time
import weakref
from collections.abc import Sequence

import pytest

from headrace.pipeline import Mixture, open_stream
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
    begun = []
    with open_stream(dataclasses.replace(mixture, decoder="slow", prefetch_batches=2), global_batch=8) as stream:
        for _ in range(40):
            next(stream)
            begun.append(stream.stats().queues.begun_batches)
    assert max(begun) <= 4  # two ready, and of later ones what keeps two threads at work

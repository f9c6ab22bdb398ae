"""What was delivered is let go of, and a broken decoder is named."""

import dataclasses
import gc
import weakref

import pytest

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.decode import DECODERS
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

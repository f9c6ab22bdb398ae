"""Both resizers give the same squares to a level; which one ran is part of the state, and old states go on."""

import dataclasses
import sys
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from headrace.pipeline import Mixture, open_stream
from headrace.pipeline.decode import resize
from headrace.pipeline.decode.resize import FastResize, PillowResize, Span, resizer_of


@pytest.fixture
def without_fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has no wheel of fast_image_resize."""
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resize.fast_fault.cache_clear()
    yield
    resize.fast_fault.cache_clear()


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    beside=st.integers(0, 9),
    side=st.integers(1, 40),
    across=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_both_resizers_agree_to_a_level(
    height: int, width: int, beside: int, side: int, across: int, seed: int
) -> None:
    row_bytes = 4 * (width + beside)
    buffer = np.random.default_rng(seed).integers(0, 256, height * row_bytes, np.uint8)
    span = Span(buffer, row_bytes, height, width)
    # Not multiplied by the fourth byte, not reaching beside the window.
    expected = PillowResize()(span, side, across)[..., :3].astype(int)
    assert expected.shape == (side, across or side, 3)
    buffer.reshape(height, -1)[:, 4 * width :] = 0
    buffer[3::4] = 17
    assert np.abs(FastResize()(span, side, across)[..., :3] - expected).max() <= 1


def test_auto_is_the_fast_one_where_it_works_and_pillow_elsewhere(mixture: Mixture) -> None:
    assert resizer_of(mixture) == "fast"
    assert resizer_of(dataclasses.replace(mixture, resizer="pillow")) == "pillow"


@pytest.mark.usefixtures("without_fast")
def test_without_the_package_pillow_resizes_and_fast_is_refused_in_one_line(mixture: Mixture) -> None:
    assert resizer_of(mixture) == "pillow"
    with pytest.raises(ValueError, match=r"resizer: fast does not work here \(not installed\); pip install cykooz"):
        open_stream(dataclasses.replace(mixture, resizer="fast"), global_batch=8)


@pytest.mark.usefixtures("without_fast")
def test_a_state_of_a_resizer_that_is_not_here_is_refused(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        state = {**stream.state_dict(), "resizer": "fast"}
        with pytest.raises(ValueError, match="resizer was 'fast', this stream has 'pillow'; pip install"):
            stream.load_state_dict(state)


def test_a_state_is_continued_by_the_resizer_it_names(mixture: Mixture) -> None:
    by_pillow = dataclasses.replace(mixture, resizer="pillow")
    with open_stream(by_pillow, global_batch=8) as stream:
        batches = [next(stream).images for _ in range(3)]
    with open_stream(mixture, global_batch=8) as stream:
        fast = stream.state_dict()
        differ = next(stream).images != batches[0]
        assert differ.any()
        # As it was written before there was a choice: Pillow resized.
        old = {name: value for name, value in fast.items() if name not in ("resizer", "jpeg_scaling")}
        stream.load_state_dict({**old, "version": 2})
        assert stream.state_dict()["resizer"] == "pillow"
        assert all((next(stream).images == images).all() for images in batches)
        stream.load_state_dict(fast)
        assert ((next(stream).images != batches[0]) == differ).all()
    with (
        open_stream(by_pillow, global_batch=8) as stream,
        pytest.raises(ValueError, match="resizer was 'fast', this stream has 'pillow'; set resizer: fast"),
    ):
        stream.load_state_dict(fast)

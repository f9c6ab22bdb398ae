"""What an opening says before anything is read: weights that are off, windows that fit, classes in runs."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import Mixture, Source, open_stream
from headrace.pipeline.advice import describe_weight_error, fitting_window, is_loud
from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.order import build_order
from headrace.pipeline.order.quota import choose_rows, integer_parts, weight_errors
from headrace.shards.write import Sample, finish_dataset, write_shard


def parts_of(weights: list[float], lanes: int) -> list[int]:
    return integer_parts(weights, choose_rows(weights, lanes) * lanes)


def test_known_errors_of_long_cycles() -> None:
    """The two of the docs: 4,096 lanes leave four rows, and a weight in a thousand is a few picks."""
    error = weight_errors([0.8, 0.2], parts_of([0.8, 0.2], 4096))
    assert [round(one * 2e9) for one in error] == [-24414, 24414]
    assert not is_loud(0.2 + error[1], error[1])
    small = weight_errors([1.0, 0.001], parts_of([1.0, 0.001], 4096))
    assert round(small[1] * 2e9) == -44877
    assert is_loud(0.001 / 1.001 + small[1], small[1])
    assert weight_errors([0.8, 0.2], parts_of([0.8, 0.2], 64)) == pytest.approx([0, 0], abs=1e-12)


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.05, 10.0), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 12]),
    st.integers(0, 10**12),
)
def test_no_prefix_is_further_off_than_the_error_says(weights: list[float], lanes: int, samples: int) -> None:
    sources = [
        SourceOrder(name=f"{n}", num_samples=50, chunk_samples=4, shuffle_window=8, num_lanes=lanes, seed=0)
        for n in range(len(weights))
    ]
    order = build_order(sources, weights, lanes)
    for given_so_far, weight, error in zip(order.given(samples), weights, order.weight_errors, strict=True):
        off = abs(given_so_far - samples * weight / sum(weights))
        assert off <= abs(error) * samples + 1 + 1e-9 * samples


def write(folder: Path, labels: list[int]) -> str:
    image = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    write_shard(str(folder), "0", [Sample(f"{n:05d}", image, "jpg", {"label": one}) for n, one in enumerate(labels)])
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_weight_that_is_not_met_is_said_at_the_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.pipeline")
    url = write(tmp_path, list(range(8)))
    sources = (
        Source(name="a", url=url),
        Source(name="b", url=url, weight=0.00021),
        Source(name="c", url=url, weight=0.000083),
    )
    with open_stream(Mixture(lanes=2, sources=sources), global_batch=2) as stream:
        error, met = stream.weight_errors["b"], stream.weights["b"]
    assert met - error == pytest.approx(0.00021 / 1.000293)
    said = warnings_of(caplog)[0]
    assert said == describe_weight_error("b", met, error)
    assert "after 1,000,000,000 samples it is" in said
    assert "source a: 8 samples, 1 shards, 0.9997" in caplog.text
    assert "opened a mixture in 2 lanes of 3 sources, 24 samples: rank 0 of 1, batches of 2" in caplog.text


@pytest.mark.parametrize(
    ("labels", "is_sorted"),
    [
        ([number // 40 for number in range(200)], True),
        ([number % 5 for number in range(200)], False),
        (list(range(200)), False),
        ([0] * 200, False),
        ([int(number % 20 == 0) for number in range(200)], False),
        ([0] * 30 + [1] * 30, False),
    ],
)
def test_a_source_sorted_by_class_is_said_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[int], is_sorted: bool
) -> None:
    url = write(tmp_path, labels)
    mixture = Mixture(lanes=2, sources=(Source(name="a", url=url),))
    open_stream(mixture, global_batch=2, columns=("label",)).close()
    said = [line for line in warnings_of(caplog) if "looks sorted by label" in line]
    assert bool(said) == is_sorted
    if said:
        assert "chunk_samples to 1..16" in said[0]


def test_the_window_that_the_refusal_names_fits(mixture: Mixture) -> None:
    for memory in (100_000, 120_000, 140_000):
        small = dataclasses.replace(mixture, memory_bytes=memory)
        with pytest.raises(ValueError, match="or use more ranks") as refused:
            open_stream(small, global_batch=8)
        window = int(str(refused.value).split("), ")[1].split(" for every source fits")[0])
        sources = tuple(dataclasses.replace(one, shuffle_window=window) for one in small.sources)
        open_stream(dataclasses.replace(small, sources=sources), global_batch=8).close()


def test_the_largest_window_that_fits() -> None:
    orders = [
        SourceOrder(name=n, num_samples=10_000_000, chunk_samples=64, shuffle_window=16384, num_lanes=16, seed=0)
        for n in "abc"
    ]
    # Three sources of 113 kB images in 4 GiB, all lanes on one rank: the defaults need 5.5 GB.
    window = fitting_window(orders, [113_000] * 3, num_lanes=16, memory=4 << 30)
    assert 11_000 < window < 16_384
    for one, fits in ((window, True), (window + 1, False)):
        bytes_of = [16 * dataclasses.replace(order, shuffle_window=one).window_samples * 113_000 for order in orders]
        assert (sum(bytes_of) <= 4 << 30) == fits
    assert fitting_window(orders, [113_000] * 3, num_lanes=16, memory=1000) == 0

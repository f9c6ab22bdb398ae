"""Tuning finds what a machine is fastest with, believes no noise, and leaves the order alone."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from headrace.pipeline import Mixture, Segment, open_stream, tune
from headrace.pipeline.ceiling import LEAST_BATCHES, Ceiling, measure, measure_at
from headrace.pipeline.clock import StageStats
from headrace.pipeline.stats import STAGES, StreamStats

Speed = Callable[[Mixture], tuple[float, str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], list[int]]:
    """`machine(speed)`: one whose measurements are what `speed` says; returns the list of their first batches."""

    def pretend(speed: Speed) -> list[int]:
        firsts: list[int] = []

        def measured(mixture: Mixture, batch: int, *, global_batch: int, seconds: float) -> Ceiling:
            assert global_batch == 8
            assert seconds > 0
            firsts.append(batch)
            rate, bound = speed(mixture)
            stages = {stage: StageStats(p99_seconds=8 / rate) for stage in STAGES}
            return Ceiling(
                num_batches=10,
                num_images=80,
                seconds=80 / rate,
                images_per_second=rate,
                cpu_ms_per_image=1.0,
                first_batch_seconds=0.1,
                peak_memory_bytes=1,
                cores=2,
                decoder="turbo",
                stats=StreamStats(batches=11, bound_by=bound, stages=stages),
            )

        monkeypatch.setattr(tune, "measure_at", measured)
        return firsts

    return pretend


def _tune(mixture: Mixture, seconds: float = 50.0) -> tune.Tuning:
    return tune.tune(mixture, global_batch=8, seconds=seconds, on_trial=lambda _: None)


def test_it_climbs_to_the_threads_that_are_fastest(mixture: Mixture, machine: Callable[[Speed], list[int]]) -> None:
    firsts = machine(lambda one: (100.0 * min(one.decode_threads, 8), "decode"))
    found = _tune(dataclasses.replace(mixture, decode_threads=2))
    assert found.settings == {"decode_threads": 8, "io_threads": mixture.io_threads, "prefetch_batches": 2}
    assert (found.before, found.after, found.noise) == (200.0, 800.0, 1.0)
    assert firsts == sorted(set(firsts))  # no measurement begins where another was


def test_a_chunk_size_is_only_proposed(mixture: Mixture, machine: Callable[[Speed], list[int]]) -> None:
    machine(lambda one: (10.0 * one.sources[0].chunk_samples, "read"))
    found = _tune(mixture)
    assert found.chunk_samples > mixture.sources[0].chunk_samples
    assert "chunk_samples" not in found.settings


def test_chunks_whose_windows_do_not_fit_into_memory_are_left_out(
    mixture: Mixture, machine: Callable[[Speed], list[int]]
) -> None:
    def speed(one: Mixture) -> tuple[float, str]:
        if one.sources[0].chunk_samples > mixture.sources[0].chunk_samples:
            raise ValueError("the shuffle windows of 4 lanes hold 9 bytes, memory_bytes is 8")
        return 100.0, "read"

    machine(speed)
    assert _tune(mixture).chunk_samples == 0


def test_noise_changes_nothing_and_is_said(mixture: Mixture, machine: Callable[[Speed], list[int]]) -> None:
    noise = itertools.cycle([100.0, 160.0, 150.0, 110.0, 90.0])
    machine(lambda _: (next(noise), "decode"))
    found = _tune(dataclasses.replace(mixture, decode_threads=2))
    assert found.settings["decode_threads"] == 2
    assert found.noise > 1.2


def test_it_ends_in_time(mixture: Mixture, machine: Callable[[Speed], list[int]]) -> None:
    machine(lambda one: (float(one.decode_threads * one.io_threads), "decode"))
    assert len(_tune(mixture, seconds=1e-9).trials) == 2


def test_the_ceiling_is_that_of_all_batches_after_the_first(mixture: Mixture) -> None:
    with open_stream(mixture, global_batch=8) as stream:
        found = measure(stream, seconds=0.0, batches=5)
        assert stream.position == 8 * 6
    assert (found.num_batches, found.num_images) == (5, 40)
    assert found.images_per_second == pytest.approx(40 / found.seconds)
    assert found.cpu_ms_per_image > 0
    assert found.decoder.startswith("turbo: ")
    with open_stream(mixture, global_batch=8, once=True) as stream:
        assert measure(stream, seconds=60.0).num_images == 64 - 8  # it ends with the pass


def test_a_mixture_that_changes_is_measured_behind_its_changes(mixture: Mixture) -> None:
    changing = dataclasses.replace(mixture, segments=(Segment(start=16, weights={"small": 0.75}),))
    assert measure_at(changing, 10, global_batch=8, seconds=0).num_batches == LEAST_BATCHES

"""How well a mixture is shuffled is what its batches hold, and the changes that are named help."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.pipeline import Mixture, Source, open_stream
from headrace.pipeline.order.plan import EndlessPlan
from headrace.pipeline.quality import Quality, measure, spread


@pytest.fixture
def sorted_mixture(tmp_path: Path, write_dataset: Callable[..., str]) -> Mixture:
    """600 samples in 60 shards: one class a shard, if it were sorted by class."""
    source = Source(
        name="s", url=write_dataset(tmp_path / "data", 600, per_shard=10), chunk_samples=30, shuffle_window=120
    )
    return Mixture(lanes=4, image_size=16, sources=(source,))


def quality_of(mixture: Mixture, global_batch: int = 40) -> Quality:
    with open_stream(mixture, global_batch=global_batch) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        return measure(stream.plan, stream.sources)["s"]


def test_it_is_what_batches_hold(sorted_mixture: Mixture) -> None:
    found = quality_of(sorted_mixture)
    assert (found.samples, found.num_parts, found.num_shards) == (40, 60, 60)
    with open_stream(sorted_mixture, global_batch=40) as stream:
        shards = [len({int(key) // 10 for key in next(stream).key}) for _ in range(15)]
    assert abs(np.mean(shards) - found.shards.distinct) < 3
    assert found.shards.ideal == pytest.approx(60 * (1 - (59 / 60) ** 40))
    assert found.shards.distinct < 0.6 * found.shards.ideal
    assert found.shards.dispersion > 2


def test_each_change_that_is_named_mixes_better_and_is_what_it_says(sorted_mixture: Mixture) -> None:
    large = dataclasses.replace(sorted_mixture.sources[0], chunk_samples=60, shuffle_window=0)
    now = dataclasses.replace(sorted_mixture, sources=(large,))
    found = quality_of(now)
    kinds = [change.setting.split(":")[0] for change in found.changes]
    assert set(kinds) == {"chunk_samples", "shuffle_window"}
    for change in found.changes:
        settings = dict(pair.split(": ") for pair in change.setting.split(", "))
        source = dataclasses.replace(large, **{name: int(value) for name, value in settings.items()})
        assert quality_of(dataclasses.replace(now, sources=(source,))).parts == change.parts
        assert change.parts.distinct > found.parts.distinct


def test_a_good_shuffle_needs_no_change(sorted_mixture: Mixture) -> None:
    source = dataclasses.replace(sorted_mixture.sources[0], chunk_samples=1, shuffle_window=600)
    found = quality_of(dataclasses.replace(sorted_mixture, sources=(source,)))
    assert found.parts.is_good
    assert found.changes == ()


def test_a_perfect_shuffle_has_the_ideal_spread() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 50, 200)
    groups = np.repeat(np.arange(200), sizes)
    found = spread([rng.choice(groups, 300) for _ in range(40)], sizes)
    assert found.distinct == pytest.approx(found.ideal, rel=0.02)
    assert found.dispersion == pytest.approx(1, abs=0.1)
    clumped = spread([np.repeat(rng.choice(groups, 30), 10) for _ in range(40)], sizes)
    assert clumped.distinct < 0.5 * clumped.ideal
    assert clumped.dispersion == pytest.approx(10, rel=0.3)


def test_a_source_whose_end_begins_at_once_is_measured_as_if_it_went_on(
    tmp_path: Path, write_dataset: Callable[..., str]
) -> None:
    """118 samples over 48 lanes: in the first step of 144 a lane would begin the second epoch."""
    short, long = (write_dataset(tmp_path / str(size), size, per_shard=30) for size in (118, 120))
    sources = (Source(name="s", url=short, weight=3.0, repeat=1), Source(name="b", url=long))
    mixture = Mixture(lanes=48, image_size=16, sources=sources)
    endless = dataclasses.replace(mixture, sources=(dataclasses.replace(sources[0], repeat=0), sources[1]))
    assert quality_of(mixture, 144) == quality_of(endless, 144)


def test_a_mixture_that_ends_before_its_first_batch_has_no_quality(sorted_mixture: Mixture) -> None:
    source = dataclasses.replace(sorted_mixture.sources[0], repeat=1)
    with open_stream(dataclasses.replace(sorted_mixture, sources=(source,)), global_batch=604) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        assert measure(stream.plan, stream.sources) == {}
        with pytest.raises(ValueError, match="at position 0 every source has come to its end"):
            next(stream)

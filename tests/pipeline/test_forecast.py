"""A plan of a mixture says what its steps then give."""

import dataclasses
import time
from collections import Counter

import pytest

from headrace.pipeline import Mixture, Segment, Source, open_stream
from headrace.pipeline.forecast import Forecast, forecast
from headrace.pipeline.order.plan import EndlessPlan

STEPS = 40


def plan(mixture: Mixture, steps: int) -> Forecast:
    with open_stream(mixture, global_batch=8) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        return forecast(stream.plan, stream.sources, steps)


@pytest.fixture
def changing(mixture: Mixture, datasets: tuple[str, str]) -> Mixture:
    late = Source(name="late", url=datasets[1], weight=0.0, repeat=2, fraction=0.5)
    segments = (Segment(start=40, weights={"late": 0.5}, lanes=2), Segment(start=120, lanes=8))
    return dataclasses.replace(mixture, sources=(*mixture.sources, late), segments=segments)


def test_the_plan_is_what_the_steps_give(changing: Mixture) -> None:
    seen: list[list[tuple[int, int]]] = []
    with open_stream(changing, global_batch=8) as stream:
        assert isinstance(stream.plan, EndlessPlan)
        for step in range(STEPS):
            placed = stream.plan.batch(step).placed
            seen.append(list(zip(placed.source.tolist(), placed.epoch.tolist(), strict=True)))
        found = forecast(stream.plan, stream.sources, STEPS)
        sizes = [source.num_samples for source in stream.sources]
    assert [(part.first_step, part.last_step, part.num_lanes) for part in found.segments] == [
        (1, 5, 4),
        (6, 15, 2),
        (16, STEPS, 8),
    ]
    for part in found.segments:
        counts = Counter(source for step in seen[part.first_step - 1 : part.last_step] for source, _ in step)
        named = {changing.sources[number].name: count for number, count in counts.items()}
        assert {name: share.num_samples for name, share in part.sources.items()} == named
    for number, (name, source) in enumerate(found.sources.items()):
        steps = [step for step, rows in enumerate(seen, 1) if number in {row[0] for row in rows}]
        again = [step for step, rows in enumerate(seen, 1) if any(row[0] == number and row[1] > 0 for row in rows)]
        assert name == changing.sources[number].name
        assert source.first_repeat == (again[0] if again else None)
        assert source.last_step == (steps[-1] if name == "late" else None)
        assert source.total.epochs == source.total.num_samples / sizes[number]
    assert found.sources["late"].total.epochs == 2


def test_a_billion_steps_are_planned_at_once(changing: Mixture) -> None:
    begun = time.process_time()
    found = plan(changing, 10**9)
    assert time.process_time() - begun < 5
    assert sum(source.total.num_samples for source in found.sources.values()) == 8 * 10**9
    assert found.segments[-1].last_step == 10**9


def test_a_mixture_that_ends_is_planned_to_its_end(mixture: Mixture) -> None:
    alone = dataclasses.replace(mixture, sources=(dataclasses.replace(mixture.sources[0], repeat=2),))
    found = plan(alone, 1000)
    assert found.num_steps == 11
    assert found.sources["large"].total.num_samples == 88
    assert found.sources["large"].last_step is None
    assert plan(alone, 3).sources["large"].first_repeat is None

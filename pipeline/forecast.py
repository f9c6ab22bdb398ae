"""What a mixture will give in so many steps, without reading a picture: arithmetic on its parts, whatever the steps.

Steps are numbered as a run's metrics number them: step 1 is the first, and takes positions 0 to global_batch - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.order.plan import EndlessPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What is given of one source in some steps."""

    num_samples: int
    epochs: float
    """Samples over those of the source that are used."""
    num_bytes: int
    """By the mean size of its samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentForecast:
    """What one segment of the mixture gives."""

    first_step: int
    last_step: int
    num_lanes: int
    sources: dict[str, Share]
    """Those that give anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceForecast:
    """What becomes of one source."""

    total: Share
    first_repeat: int | None
    """The first step that gives a sample of its second epoch; None = none of these steps does."""
    last_step: int | None
    """The step in which its `repeat` is over; None = not in these steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What so many steps give."""

    num_steps: int
    """As many as there are, where every source ends before."""
    global_batch: int
    segments: tuple[SegmentForecast, ...]
    sources: dict[str, SourceForecast]


def forecast(plan: EndlessPlan, sources: Sequence[OpenedSource], steps: int) -> Forecast:
    """Return what the first `steps` steps of a mixture give."""
    timeline, batch = plan.timeline, plan.global_batch
    last = timeline.parts[-1]
    if last.order is None:
        steps = min(steps, last.start // batch)
    bounds: dict[int, tuple[int, int]] = {}
    for part in timeline.parts:
        first, end = part.start // batch, steps if part.end is None else min(steps, part.end // batch)
        if first < end:
            bounds[part.segment] = (bounds.get(part.segment, (first, end))[0], end)
    segments = tuple(_segment(plan, sources, first, end) for first, end in bounds.values())
    total = _shares(sources, [0] * len(sources), plan.given(steps * batch))
    return Forecast(
        num_steps=steps,
        global_batch=batch,
        segments=segments,
        sources={
            source.config.name: SourceForecast(
                total=share,
                first_repeat=_within(timeline.steps_before(number, 1, batch), steps),
                last_step=_within(timeline.last_step(number, source.config.repeat * source.num_samples, batch), steps),
            )
            for number, (source, share) in enumerate(zip(sources, total, strict=True))
        },
    )


def _segment(plan: EndlessPlan, sources: Sequence[OpenedSource], first: int, end: int) -> SegmentForecast:
    before, after = (plan.given(step * plan.global_batch) for step in (first, end))
    shares = _shares(sources, before, after)
    return SegmentForecast(
        first_step=first + 1,
        last_step=end,
        num_lanes=plan.timeline.parts[plan.timeline.part_at(first * plan.global_batch)].num_lanes,
        sources={source.config.name: share for source, share in zip(sources, shares, strict=True) if share.num_samples},
    )


def _shares(sources: Sequence[OpenedSource], before: Sequence[int], after: Sequence[int]) -> list[Share]:
    given = [end - start for start, end in zip(before, after, strict=True)]
    return [
        Share(num_samples=count, epochs=count / source.num_samples, num_bytes=count * source.mean_bytes)
        for source, count in zip(sources, given, strict=True)
    ]


def _within(step: int | None, steps: int) -> int | None:
    return None if step is None or step >= steps else step + 1

"""Find the settings of a mixture with which this machine is fastest, in a given time.

One setting is changed at a time, the one that would relieve what the stream is bound by. Others use the machine too,
so a change counts only if both of its measurements are faster, by `WORTH`, than every one of the settings so far, one
of which lies between them. No trial reads what an earlier one has read, unless the dataset is smaller than the trials.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from headrace.pipeline.ceiling import Ceiling, measure_at
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.mixture import Mixture

WORTH = 1.05
"""A setting that is faster by less is left as it is."""
TRIALS = 14
"""So many fit into the time."""
MOST = {"decode_threads": 256, "io_threads": 256, "chunk_samples": 512}
MAX_AHEAD_BYTES = 1 << 30
"""Memory of the batches kept ready, at most."""

log = logging.getLogger(__name__)

Measure = Callable[[Mixture], Ceiling]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One measurement."""

    settings: Mapping[str, int]
    images_per_second: float
    bound_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What was found."""

    settings: Mapping[str, int]
    """Keys of the mixture and their values; none of them changes the order."""
    chunk_samples: int
    """What the sources' `chunk_samples` would best be; 0 = as it is. It is part of the order: for a new run only."""
    before: float
    """Images per second as the mixture is."""
    after: float
    """With `settings`, and with `chunk_samples` if there is one: the slowest measurement of these."""
    noise: float
    """The fastest measurement of one and the same settings, as a multiple of the slowest: 1.0 on a quiet machine."""
    trials: tuple[Trial, ...]
    seconds: float
    """How long it took."""


def tune(mixture: Mixture, *, global_batch: int, seconds: float, on_trial: Callable[[Trial], None]) -> Tuning:
    """Try settings for `seconds` at most; `on_trial` is called with each measurement."""
    begun = time.monotonic()
    search = _Search(_measurer(global_batch, seconds / TRIALS), begun + seconds * (1 - 1 / TRIALS), on_trial)
    start = dataclasses.replace(mixture, decode_threads=mixture.decode_threads or own_cores())
    search.measure(start)
    best = search.climb(start)
    if len(search.speeds(best)) == 1:
        search.measure(best)
    settings = {
        "decode_threads": best.decode_threads,
        "io_threads": best.io_threads,
        "prefetch_batches": _batches_ahead(best, search.last, global_batch),
    }
    chunk = best.sources[0].chunk_samples
    return Tuning(
        settings=settings,
        chunk_samples=0 if chunk == start.sources[0].chunk_samples else chunk,
        before=min(search.speeds(start)),
        after=min(search.speeds(best)),
        noise=max(max(speeds) / min(speeds) for speeds in map(search.speeds, (start, best))),
        trials=tuple(search.trials),
        seconds=time.monotonic() - begun,
    )


class _Search:
    """Goes from setting to setting as long as one is better and there is time."""

    def __init__(self, measure: Measure, deadline: float, on_trial: Callable[[Trial], None]) -> None:
        self.trials: list[Trial] = []
        self._measure = measure
        self._deadline = deadline
        self._on_trial = on_trial

    def measure(self, mixture: Mixture) -> float:
        """Measure once more and return images per second."""
        self.last = self._measure(mixture)
        speed, bound = self.last.images_per_second, self.last.stats.bound_by
        self.trials.append(Trial(settings=_settings_of(mixture), images_per_second=speed, bound_by=bound))
        self._on_trial(self.trials[-1])
        return speed

    def speeds(self, mixture: Mixture) -> list[float]:
        """Return every measurement of these settings."""
        settings = _settings_of(mixture)
        return [trial.images_per_second for trial in self.trials if trial.settings == settings]

    def climb(self, best: Mixture) -> Mixture:
        """Return the best settings that one change after the other leads to."""
        while True:
            bound = next(trial.bound_by for trial in self.trials if trial.settings == _settings_of(best))
            untried = (one for one in _candidates(best, bound) if not self.speeds(one))
            better = next((one for one in untried if self._is_better(one, best)), None)
            if better is None:
                return best
            best = better

    def _is_better(self, candidate: Mixture, best: Mixture) -> bool:
        for mixture in (candidate, best, candidate):
            if time.monotonic() > self._deadline:
                return False
            try:
                self.measure(mixture)
            except ValueError as error:  # larger chunks of a mixture whose windows just fit into memory
                log.info("%s cannot be tried: %s", _settings_of(candidate), error)
                return False
            if min(self.speeds(candidate)) < WORTH * max(self.speeds(best)):
                return False
        return True


def _candidates(mixture: Mixture, bound: str) -> Iterator[Mixture]:
    """Yield what might relieve `bound`, the likeliest first."""
    if bound == "read":
        yield from _scaled(mixture, "io_threads", 2.0)
        chunk = min(2 * mixture.sources[0].chunk_samples, MOST["chunk_samples"])
        sources = [dataclasses.replace(source, chunk_samples=chunk) for source in mixture.sources]
        yield dataclasses.replace(mixture, sources=tuple(sources))
    elif bound in ("decode", "augment", "plan"):
        # Half as many may be faster, where threads are two a core or wait for the interpreter.
        for factor in (2.0, 0.5, 1.5):
            yield from _scaled(mixture, "decode_threads", factor)
    yield from _scaled(mixture, "io_threads", 0.5)


def _scaled(mixture: Mixture, name: str, factor: float) -> Iterator[Mixture]:
    number = min(max(1, round(getattr(mixture, name) * factor)), MOST[name])
    if number != getattr(mixture, name):
        yield dataclasses.replace(mixture, **{name: number})


def _settings_of(mixture: Mixture) -> dict[str, int]:
    return {
        "decode_threads": mixture.decode_threads,
        "io_threads": mixture.io_threads,
        "chunk_samples": mixture.sources[0].chunk_samples,
    }


def _measurer(global_batch: int, seconds: float) -> Measure:
    """Return what measures a mixture, each time behind what was delivered before."""
    position = 0

    def measure(changed: Mixture) -> Ceiling:
        nonlocal position
        found = measure_at(changed, position, global_batch=global_batch, seconds=seconds)
        position += found.num_batches + found.stats.queues.planned_batches + found.stats.queues.begun_batches + 1
        return found

    return measure


def _batches_ahead(mixture: Mixture, found: Ceiling, global_batch: int) -> int:
    """Return how many batches bridge a usual long pause: p99 of the wait for one, in mean times of one."""
    mean = found.seconds / max(1, found.num_batches)
    wanted = math.ceil(found.stats.stages["wait"].p99_seconds / mean) + 1
    batch_bytes = global_batch * 3 * mixture.image_size**2
    return max(2, min(wanted, 16, MAX_AHEAD_BYTES // batch_bytes))

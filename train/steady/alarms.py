"""Spikes and dips: what goes wrong in a run for a while and passes, told from its metrics as they are written.

A ViT that is trained contrastively may lose accuracy for some thousand steps and come back, and its loss hardly shows
it; the gradient of its first layer jumps before (MoCo v3, arXiv:2104.02057, section 4). What is told here is a function
of the lines of `metrics.jsonl` alone: a run that was killed and goes on says the same as one that was not.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Line = dict[str, Any]

SPIKE, DIP, RECOVERED = "spike", "dip", "recovered"

SCATTER = 6.0
"""Nothing counts that lies less than so many standard deviations out, as the values before scatter."""
NORMAL = 1.4826
"""Standard deviations of a normal distribution in a median absolute deviation."""
LEAST_LINES = 20
"""Lines of gradients or losses that must come first."""
LEAST_LOOKS = 8
"""Values of a monitor or of validation that must come first."""
RECENT = 50
"""Latest values that scatter is taken from."""
FEW = 6
"""Of so many differences the scatter counts twice."""
STAYED = 20
"""Lines after which a jump of the training loss is no dip but its new level."""
LEVEL = 5
"""Latest training losses whose median is the level that a jump is measured from."""
LEAST_ACCURACY = 0.01
"""A dip of accuracy has at least one point of a hundred."""
LEAST_LOSS = 0.01
"""A dip of a loss has at least this share of its size."""
TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """What counts as a spike of a gradient, and as a dip of a curve. Both must also stand out of the curve's noise."""

    spike_times: float = 5.0
    """The largest gradient of a layer spikes where it is so many times its running median; needs `gradient_norms`."""
    spike_window: int = 50
    """Lines of gradients that the median is taken over, at most."""
    dip_share: float = 0.1
    """Accuracy or validation loss dips where it loses this share of what it had gained since its first value; the
    training loss where it jumps by this share of it."""

    def __post_init__(self) -> None:
        if not 1 < self.spike_times < math.inf:
            raise ValueError(f"spike_times must be above 1 and finite, got {self.spike_times}")
        if not LEAST_LINES <= self.spike_window <= 10_000:
            raise ValueError(f"spike_window must be {LEAST_LINES}..10000, got {self.spike_window}")
        if not 0 < self.dip_share < math.inf:
            raise ValueError(f"dip_share must be above 0 and finite, got {self.dip_share}")


class Alarms:
    """Follows a run's lines of metrics, on rank 0."""

    def __init__(self, config: AlarmConfig | None, lines: Iterable[Line] = ()) -> None:
        """Begin behind `lines`, those of the run so far; None = nothing is ever told."""
        self._config = config
        self._spikes: _Spikes | None = None
        self._curves: dict[str, _Best | _Level] = {}
        self.missed: list[Line] = []
        """What the last step of `lines` should have told, and a kill kept from being written."""
        if config is not None:
            self._catch_up(list(lines))

    def _catch_up(self, lines: Sequence[Line]) -> None:
        last = max((line["step"] for line in lines), default=0)
        told = [(line["event"], line["step"], line.get("curve")) for line in lines]
        for line in lines:
            for one in self._take(line):
                if one["step"] == last and (one["event"], last, one.get("curve")) not in told:
                    self.missed.append(one)

    def take(self, line: Line) -> list[Line]:
        """Return the alarms that a new line gives, as lines of metrics, and log each."""
        told = self._take(line)
        for one in told:
            _say(one)
        return told

    def _take(self, line: Line) -> list[Line]:
        if self._config is None:
            return []
        if line["event"] == "gradients":
            if self._spikes is None:
                self._spikes = _Spikes(self._config)
            return self._spikes.take(line)
        told = []
        for name, value, sign in _values(line):
            if name not in self._curves:
                kind = _Level if name == "train/loss" else _Best
                self._curves[name] = kind(name, share=self._config.dip_share, sign=sign)
            if (one := self._curves[name].take(line["step"], value)) is not None:
                told.append(one)
        return told


def _say(line: Line) -> None:
    """Log one alarm in a line."""
    step = line["step"]
    if line["event"] == SPIKE:
        others = len(line["layers"]) - 1
        also = f"; {others} other layer{'s' if others > 1 else ''} too" if others else ""
        log.warning(
            "step %d: spike: the largest gradient of %s is %.3g, %.1f times its running median%s",
            *(step, line["layer"], line["max"], line["times"], also),
        )
    elif line["event"] == DIP:
        log.warning(
            "step %d: dip: %s is %.4g, and was %.4g at step %d",
            *(step, line["curve"], line["value"], line["before"], line["before_step"]),
        )
    else:
        log.warning(
            "step %d: %s is back at %.4g from the dip of step %d, which went to %.4g",
            *(step, line["curve"], line["value"], line["dip_step"], line["worst"]),
        )


def _values(line: Line) -> Iterable[tuple[str, float, int]]:
    """Yield name, value and direction (1 = more is better) of the curves that a line has a point of."""
    event = str(line["event"])
    if event.startswith("monitor/"):
        wanted = {"accuracy": 1}
    else:
        wanted = {"train": {"loss": -1}, "validation": {"loss": -1, "ema_loss": -1, "top1": 1}}.get(event, {})
    for name, sign in wanted.items():
        value: Any = line.get(name)
        if type(value) in (int, float) and math.isfinite(value):  # a step that was left out has none
            yield f"{event}/{name}", float(value), sign


class _Spikes:
    """Finds layers whose largest gradient is far above its running median."""

    def __init__(self, config: AlarmConfig) -> None:
        self._least = math.log(config.spike_times)
        self._names: list[str] = []
        self._past: deque[NDArray[np.float64]] = deque(maxlen=config.spike_window)
        self._high: NDArray[np.bool_] = np.zeros(0, bool)

    def take(self, line: Line) -> list[Line]:
        """Return the line of a spike, or nothing. A layer that stays high is told once, until it has come down."""
        names = [name for name in line if name.startswith("max/")]
        if names != self._names:  # another version of the model: what came before does not compare
            self._names, self._high = names, np.zeros(len(names), bool)
            self._past.clear()
        given = [line[name] for name in names]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in given):
            return []  # the step was left out, and is told as such
        log_L = np.log(np.maximum(np.array(given, float), TINY))
        told = self._spike(line, log_L) if len(self._past) >= LEAST_LINES else []
        self._past.append(log_L)
        return told

    def _spike(self, line: Line, log_L: NDArray[np.float64]) -> list[Line]:
        past_NL = np.array(self._past)
        middle_L = np.median(past_NL, axis=0)
        scatter_L = NORMAL * np.median(np.abs(past_NL - middle_L), axis=0)
        above_L, least_L = log_L - middle_L, np.maximum(self._least, SCATTER * scatter_L)
        # A layer without a gradient has a median of 0, and nothing is a multiple of that.
        spikes_L = (above_L > least_L) & (middle_L > math.log(TINY) + 1)
        new_L = spikes_L & ~self._high
        self._high = spikes_L | (self._high & (above_L > least_L / 2))
        if not new_L.any():
            return []
        times = {self._names[i].removeprefix("max/"): round(math.exp(above_L[i]), 2) for i in np.flatnonzero(new_L)}
        layer = max(times, key=lambda name: times[name])
        facts = {"layer": layer, "max": line[f"max/{layer}"], "times": times[layer], "layers": times}
        return [{"event": SPIKE, "step": line["step"], **facts}]


@dataclass(slots=True)
class _Dip:
    """A dip that is under way."""

    step: int
    back_at: float
    """Value, times the sign, at which it is over."""
    worst: float


@dataclass(slots=True)
class _Best:
    """A curve that is compared with the best that it had: of a monitor, of validation."""

    name: str
    share: float
    sign: int
    values: list[float] = field(default_factory=list)
    """So far, times the sign: more is better."""
    best: tuple[int, float] = (0, -math.inf)
    dip: _Dip | None = None

    def take(self, step: int, value: float) -> Line | None:
        """Return the line of a dip that this value begins or ends; None = neither."""
        now, told = self.sign * value, None
        if self.dip is not None:
            told = _end_of(self, step, now)
        elif len(self.values) >= LEAST_LOOKS:
            at, best = self.best
            least = LEAST_ACCURACY if self.sign > 0 else LEAST_LOSS * abs(best)
            threshold = max(self.share * (best - self.values[0]), SCATTER * scatter(self.values[-RECENT:]), least)
            if best - now > threshold:
                self.dip = _Dip(step, best - threshold / 2, now)
                told = _beginning_of(self, step, now, before=best, before_step=at)
        self.values.append(now)
        if now > self.best[1]:
            self.best = (step, now)
        return told


@dataclass(slots=True)
class _Level:
    """A curve that is compared with its own latest values: the training loss, one step's each."""

    name: str
    share: float
    sign: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """So far, times the sign."""
    levels: tuple[float, float] = (math.inf, -math.inf)
    """Lowest and highest level so far."""
    dip: _Dip | None = None
    lines: int = 0
    """Since the dip began."""
    last_step: int = 0

    def take(self, step: int, value: float) -> Line | None:
        """Return the line of a jump that this value begins or ends; None = neither."""
        now, told = self.sign * value, None
        level = median(list(self.recent)[-LEVEL:]) if self.recent else now
        if self.dip is not None:
            self.lines += 1
            told = _end_of(self, step, now)
            if self.lines >= STAYED:
                self.dip = None  # it stayed: from here on that is the level
        elif len(self.recent) >= LEAST_LINES:
            low, high = self.levels
            # About 0: of a loss that rises smoothly, as contrastive ones do at first, the slope is no jump.
            noise = SCATTER * scatter(list(self.recent), drift=0.0)
            threshold = max(self.share * (high - low), noise, LEAST_LOSS * abs(level))
            if level - now > threshold:
                self.dip, self.lines = _Dip(step, level - threshold / 2, now), 0
                told = _beginning_of(self, step, now, before=level, before_step=self.last_step)
        self.recent.append(now)
        if len(self.recent) >= LEVEL:
            level = median(list(self.recent)[-LEVEL:])
            self.levels = (min(self.levels[0], level), max(self.levels[1], level))
        self.last_step = step
        return told


def scatter(values: Sequence[float], *, drift: float | None = None) -> float:
    """Return the standard deviation of the differences from one value to the next, outliers aside.

    About `drift`, or about their median. Of few differences it may come out far too low by chance, and is raised.
    """
    steps = [after - before for before, after in itertools.pairwise(values)]
    middle = median(steps) if drift is None else drift
    return NORMAL * median(abs(step - middle) for step in steps) * (1 + FEW / len(steps))


def _beginning_of(curve: _Best | _Level, step: int, now: float, *, before: float, before_step: int) -> Line:
    facts = {"value": curve.sign * now, "before": curve.sign * before, "before_step": before_step}
    return {"event": DIP, "step": step, "curve": curve.name, **facts}


def _end_of(curve: _Best | _Level, step: int, now: float) -> Line | None:
    """Return the line that says a dip is over, and end it; None while it goes on."""
    dip = curve.dip
    assert dip is not None
    dip.worst = min(dip.worst, now)
    if now < dip.back_at:
        return None
    curve.dip = None
    facts = {"value": curve.sign * now, "worst": curve.sign * dip.worst, "dip_step": dip.step}
    return {"event": RECOVERED, "step": step, "curve": curve.name, **facts}

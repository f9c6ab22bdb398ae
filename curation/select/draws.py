"""Rounds of draws by softmax of the scores among very many rows, without a look at every row in every round.

A draw of some rows without replacement takes the largest of score + Gumbel noise, that is the first arrivals -log(u) of
clocks that run at the rates exp(score). The noise of a row is made from the top down (Maddison, Tarlow, Minka: A*
Sampling, arXiv:1411.0030): its first arrival of a block of rounds is one number; it lies in either half by the toss of
a coin, and in the other half it comes later by as much as a fresh clock takes. So a row whose first arrival of a block
is too late for all rounds of it is seen once there. What is too late is guessed from the rounds before; a round that
finds too few rows above the guess is done again by a lower one, so no guess shows in what is drawn.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Scores = NDArray[np.float64]
Rows = NDArray[np.intp]

# Rows of which noise is made at a time.
CHUNK_ROWS = 1 << 20
SAMPLE_ROWS = 1 << 16
WINDOW_ROUNDS = 64


def mixed_keys(keys: Keys, number: int) -> Keys:
    """Return 64 random bits of each row, others for each number (mixed as SplitMix64 mixes them)."""
    mixed = keys + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: Keys = mixed ^ (mixed >> np.uint64(31))
    return bits


def exponential(bits: Keys) -> Scores:
    """Return the time that a clock of rate 1 takes, by the upper 52 bits of each number."""
    times: Scores = -np.log(((bits >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52)
    return times


def draw_in_blocks(scores: Scores, keys: Keys, *, draws: int, round_size: int, penalty: float) -> NDArray[np.int64]:
    """Return how often each row is drawn; `keys` are 64 random bits of each, in the order that decides ties.

    The law is that of `draw_counts`; the noise, and so the rows drawn, are others.
    """
    if draws <= 0 or not len(scores):
        return np.zeros(len(scores), np.int64)
    rounds = _Rounds(scores.copy(), keys, draws, min(round_size, len(scores)), penalty)
    while rounds.left_over:
        rounds.go_on()
    return rounds.times


@dataclass(slots=True)
class _Rounds:
    """Rounds that are done, and what is known of the scores at which they cut."""

    scores: Scores
    """Those of now: each draw took its penalty off."""
    keys: Keys
    left_over: int
    """Draws still to make."""
    round_size: int
    penalty: float
    times: NDArray[np.int64] = field(init=False)
    done: int = 0
    _count: int = field(init=False)
    """All rounds."""
    _cuts: list[float] = field(init=False)
    """The least score + noise that was drawn in each round; before the first one, what it should be."""
    _slack: float = 0.0
    _margin: float = field(init=False)
    """More than a score loses where it is rounded."""

    def __post_init__(self) -> None:
        self.times = np.zeros(len(self.scores), np.int64)
        self._count = -(-self.left_over // self.round_size)
        self._cuts = [_expected_cut(self.scores, self.round_size)]
        self._margin = 1e-9 + 1e-14 * (float(np.abs(self.scores).max()) + self.penalty * self._count)

    def go_on(self) -> None:
        """Do rounds until all are done, or one of them finds too few rows."""
        size = 1 << (self._count - 1).bit_length()
        floor = self._floor(self._count - self.done)
        rows, arrivals = [], []
        for start in range(0, len(self.keys), CHUNK_ROWS):
            arrival = exponential(mixed_keys(self.keys[start : start + CHUNK_ROWS], 1)) / size
            early = self._early(arrival, self.scores[start : start + CHUNK_ROWS], floor)
            rows.append(early + start)
            arrivals.append(arrival[early])
        if not self._block(1, 0, size, np.concatenate(rows), np.concatenate(arrivals), floor):
            self._slack = max(0.25, 2 * self._slack)

    def _block(self, node: int, first: int, size: int, rows: Rows, arrivals: Scores, floor: float) -> bool:
        """Do the rounds `first` to `first + size - 1` that are not done; False: one finds too few rows.

        `rows` are all whose first arrival brings them above `floor`; `node`: the number of the block in a heap.
        """
        if first >= self._count or first + size <= self.done:
            return True
        if size == 1:
            return self._round(rows, arrivals, floor)
        half = size // 2
        bits = mixed_keys(self.keys[rows], node + 1)
        later = arrivals + exponential(bits) / half
        second = (bits & np.uint64(1)).astype(bool)
        for place, begin in enumerate((first, first + half)):
            # What was too late for the whole is not known any more.
            bound = max(floor, self._floor(half))
            arrival = np.where(second == bool(place), arrivals, later)
            early = self._early(arrival, self.scores[rows], bound)
            if not self._block(2 * node + place, begin, half, rows[early], arrival[early], bound):
                return False
        return True

    def _round(self, rows: Rows, arrivals: Scores, floor: float) -> bool:
        size = min(self.round_size, self.left_over)
        if len(rows) < size:
            return False
        noisy = self.scores[rows] - np.log(arrivals)
        cut = float(np.partition(noisy, len(noisy) - size)[len(noisy) - size])
        if cut <= floor + self._margin:
            return False
        above = np.flatnonzero(noisy > cut)
        taken = rows[np.concatenate([above, np.flatnonzero(noisy == cut)[: size - len(above)]])]
        self.times[taken] += 1
        self.scores[taken] -= self.penalty
        self.left_over -= size
        self.done += 1
        self._slack *= 0.9
        self._cuts = [*self._cuts[-2 * WINDOW_ROUNDS :], cut] if self.done > 1 else [cut]
        return True

    def _early(self, arrivals: Scores, scores: Scores, floor: float) -> Rows:
        """Return which rows may come above `floor`."""
        with np.errstate(over="ignore", under="ignore"):
            return np.flatnonzero(arrivals <= np.exp(scores - floor))

    def _floor(self, num_rounds: int) -> float:
        """Return a score that the cuts of so many rounds to come should stay above."""
        if self.round_size == len(self.scores):
            return -math.inf
        window = max(1, len(self._cuts) // 2)
        before, last = self._cuts[-2 * window : -window], self._cuts[-window:]
        fall = max(0.0, float(np.mean(before) - np.mean(last)) / window) if before else 0.0
        # The noise of the cut of m rows is some 1 / sqrt(m).
        return float(np.mean(last[-8:])) - fall * (num_rounds + 4) - 4 / math.sqrt(self.round_size) - 0.05 - self._slack


def _expected_cut(scores: Scores, size: int) -> float:
    """Return about the least score + noise among the `size` largest, from a sample of the rows."""
    some = scores[:: -(-len(scores) // SAMPLE_ROWS)]
    share = size / len(scores)
    low, high = float(some.min()) - 50, float(some.max()) + 50
    for _ in range(40):
        middle = (low + high) / 2
        with np.errstate(over="ignore", under="ignore"):
            above = float(np.mean(-np.expm1(-np.exp(some - middle))))
        low, high = (middle, high) if above > share else (low, middle)
    return low

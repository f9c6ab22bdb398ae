"""Was too much damaged? A verdict that may be asked for after every batch of a run without end.

`max_bad_fraction` p0 is a share of damaged samples that is accepted. Counts wander: of 100 samples at 0.2 % damage two
are bad once in 60 times, so a rule that compares counts with a budget of 1 % stops healthy runs, and sooner the more
ranks and batches there are. So a run stops only when its counts refute "the share is at most p0".

The evidence is a likelihood ratio of p1 > p0 against p0, averaged over several p1. While the share is at most p0 it is
a supermartingale that begins at 1: it ever passes 1 / ALPHA with a probability of at most ALPHA, however often it is
looked at (Ville's inequality; Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference", 2023).
At 0.2 % damage against 1 % that is 1e-16 a run; 5 % is seen after some 450 samples, 2 % after 4,400.

Damage comes in heaps: a block of zeros in a shard damages 64 neighbours, and that is one event. So the same bet is
also made with chunks as units and the damaged share of each as its outcome (Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", 2024). Both must agree.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

ALPHA = 1e-6
"""A run whose damage is at most `max_bad_fraction` is stopped once in so many."""
JUDGED_AFTER = 100
TIMES = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 90.0)
"""The p1 that are tried, as multiples of p0."""
REMEMBERED_CHUNKS = 4096
"""Damaged chunks that may still give samples; the windows of a rank hold fewer."""

_ENOUGH = math.log(1 / ALPHA)

ChunkKey = tuple[int, int, int]
"""Source, epoch and number: samples that lie together and are read together."""


@dataclass(frozen=True, slots=True)
class DamageTally:
    """What was given so far. It is a value: whoever is interrupted while he adds to it still has the old one."""

    seen: int = 0
    damaged: int = 0
    chunks_seen: float = 0.0
    """Samples seen, each as its part of a chunk."""
    shares: Mapping[ChunkKey, float] = field(default_factory=dict)
    """The damaged part of each chunk that has any, the newest last."""
    gains: tuple[float, ...] = ()
    """For each p1 what those chunks say more than whole ones would, in logarithms."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The accepted share, and the bets against it."""

    max_fraction: float

    @property
    def rivals(self) -> list[float]:
        """The shares p1 that are tried."""
        return [p for p in (self.max_fraction * times for times in TIMES) if p < 1] or [(1 + self.max_fraction) / 2]

    def add(
        self, tally: DamageTally, *, seen: int, chunks_seen: float, damaged: Iterable[tuple[ChunkKey, int]]
    ) -> DamageTally:
        """Return the tally after `seen` samples more, of which `damaged` names the chunk and its size for each."""
        named = list(damaged)
        after = replace(tally, seen=tally.seen + seen, chunks_seen=tally.chunks_seen + chunks_seen)
        if not named or not 0 < self.max_fraction < 1:
            return replace(after, damaged=after.damaged + len(named))
        shares, rivals = dict(tally.shares), self.rivals
        gains = list(tally.gains or [0.0] * len(rivals))
        for key, size in named:
            before = shares.pop(key, 0.0)
            shares[key] = min(1.0, before + 1 / size)
            for place, rival in enumerate(rivals):
                gains[place] += self._gain(shares[key], rival) - self._gain(before, rival)
        for key in list(shares)[:-REMEMBERED_CHUNKS]:
            del shares[key]
        return replace(after, damaged=after.damaged + len(named), shares=shares, gains=tuple(gains))

    def is_spent(self, tally: DamageTally) -> bool:
        """True if the damage is more than chance and a share of at most `max_fraction` explain."""
        if tally.seen < JUDGED_AFTER or self.max_fraction >= 1 or not tally.damaged:
            return False
        if not self.max_fraction:
            return True
        whole = tally.seen - tally.damaged
        by_sample = [
            tally.damaged * math.log(rival / self.max_fraction) + whole * self._loss(rival) for rival in self.rivals
        ]
        by_chunk = [
            gain + tally.chunks_seen * self._loss(rival) for gain, rival in zip(tally.gains, self.rivals, strict=True)
        ]
        return min(_log_of_mean(by_sample), _log_of_mean(by_chunk)) >= _ENOUGH

    def _loss(self, rival: float) -> float:
        """What a whole sample, or chunk, says for p1."""
        return math.log((1 - rival) / (1 - self.max_fraction))

    def _gain(self, share: float, rival: float) -> float:
        """What a chunk of which `share` is damaged says for p1 more than a whole one."""
        if not share:
            return 0.0
        bet = (rival - self.max_fraction) / (self.max_fraction * (1 - self.max_fraction))
        return math.log1p(bet * (share - self.max_fraction)) - self._loss(rival)


def _log_of_mean(logarithms: list[float]) -> float:
    largest = max(logarithms)
    return largest + math.log(sum(math.exp(value - largest) for value in logarithms) / len(logarithms))

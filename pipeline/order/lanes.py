"""Rows of the cycle dealt to lanes, so that every lane sees every source in proportion.

The cycle is a table of L tracks by R steps. Lane l walks track l, then l + 1, and so on around: its row q stands at
place (l * R + q) mod M of the tracks laid end to end, which makes "how many samples of source s has lane l given before
its row q" two look-ups (`given`). Column t of the table holds exactly the picks of row t, so the global order stays
exact.

A plain rotation of the rows is not enough. Three equal sources, 64 lanes and
a rotation by one a row hand a lane the same source 64 times in a row (63 divides by 3); any fixed stride has such
weights. Measured over random weights: a lane is never more than 5 picks off for five sources, 7 for ten.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Which lane takes which pick of a cycle."""

    num_lanes: int
    picks: NDArray[np.int16]
    """[M] the source of each place in the global order."""
    track: NDArray[np.int32]
    """[M] the track that each place in the global order belongs to."""
    slot: NDArray[np.int32]
    """[L, R] where in row t the pick of a track stands."""
    counts: NDArray[np.int32]
    """[S, M + 1] picks of each source before each place of the tracks laid end to end."""

    @property
    def rows(self) -> int:
        """Rows in one cycle."""
        return len(self.picks) // self.num_lanes

    def lane_of(self, position: IntArray) -> tuple[IntArray, IntArray]:
        """Return (lane, row of that lane) of global positions."""
        cycle, place = np.divmod(position, len(self.picks))
        lane = (self.track[place].astype(np.int64) - cycle) % self.num_lanes
        return lane, position // self.num_lanes

    def position_of(self, lane: IntArray, row: IntArray) -> IntArray:
        """Return the global position of a lane's row: the inverse of `lane_of`."""
        cycle, step = np.divmod(row, self.rows)
        return row * self.num_lanes + self.slot[(lane + cycle) % self.num_lanes, step]

    def given(self, source: IntArray, lane: IntArray, row: IntArray) -> IntArray:
        """Return how many samples of `source` the lane has given before its row `row`."""
        start = lane * self.rows
        cycles, place = np.divmod(start + row, len(self.picks))
        counts = self.counts
        number: IntArray = cycles * counts[source, -1] + counts[source, place] - counts[source, start]
        return number

    def row_of(self, source: int, lane: IntArray, number: IntArray) -> IntArray:
        """Return the row in which each lane gives its `number`-th sample of one source: the inverse of `given`."""
        start, counts = lane * self.rows, self.counts[source]
        cycles, rest = np.divmod(number + counts[start], counts[-1])
        # Counts stay the same up to the pick itself: behind the last place with so many before it, it is given.
        place = np.searchsorted(counts, rest, side="right").astype(np.int64) - 1
        row: IntArray = cycles * len(self.picks) + place - start
        return row


def deal(picks: NDArray[np.int16], num_lanes: int) -> Lanes:
    """Deal a cycle of picks, a whole number of rows of `num_lanes`, to lanes."""
    cycle = len(picks)
    rows = cycle // num_lanes
    parts = np.bincount(picks).astype(np.int64)
    tracks = _order_tracks(_fill_tracks(picks.reshape(rows, num_lanes), parts), parts)
    track = np.empty((rows, num_lanes), np.int32)
    slot = np.empty((num_lanes, rows), np.int32)
    for step in range(rows):
        # Of one source in one row, the first pick goes to the first track that wants it.
        places = np.argsort(picks[step * num_lanes : (step + 1) * num_lanes], kind="stable")
        takers = np.argsort(tracks[:, step], kind="stable")
        track[step, places] = takers
        slot[takers, step] = places
    flat = tracks.reshape(-1)
    counts = np.zeros((len(parts), cycle + 1), np.int32)
    for source in range(len(parts)):
        np.cumsum(flat == source, out=counts[source, 1:])
    return Lanes(num_lanes=num_lanes, picks=picks, track=track.reshape(-1), slot=slot, counts=counts)


def _fill_tracks(by_row: NDArray[np.int16], parts: IntArray) -> NDArray[np.int16]:
    """Give each row's picks to the tracks that are furthest behind, in whole numbers: every machine agrees."""
    rows, num_lanes = by_row.shape
    tracks = np.empty((num_lanes, rows), np.int16)
    have = np.zeros((num_lanes, len(parts)), np.int64)
    everyone = np.arange(num_lanes)
    for step in range(rows):
        behind = (step + 1) * parts[None] - by_row.size * have
        left = np.bincount(by_row[step], minlength=len(parts)).tolist()
        took = [-1] * num_lanes
        missing = num_lanes
        for number in np.argsort(-behind, axis=None, kind="stable").tolist():
            lane, source = divmod(number, len(parts))
            if took[lane] < 0 and left[source]:
                took[lane] = source
                left[source] -= 1
                missing -= 1
                if not missing:
                    break
        tracks[:, step] = took
        have[everyone, tracks[:, step]] += 1
    return tracks


def _order_tracks(tracks: NDArray[np.int16], parts: IntArray) -> NDArray[np.int16]:
    """Put next to each other the tracks whose surpluses cancel: a lane that walks them never drifts (Steinitz)."""
    num_lanes = len(tracks)
    surplus = np.stack([(tracks == source).sum(axis=1) for source in range(len(parts))], axis=1) * num_lanes - parts
    running = np.zeros(len(parts), np.int64)
    left = np.arange(num_lanes)
    order = np.empty(num_lanes, np.int64)
    for place in range(num_lanes):
        after = running + surplus[left]
        worst = np.abs(after).max(axis=1)
        best = np.flatnonzero(worst == worst.min())
        chosen = int(best[np.argmin((after[best] ** 2).sum(axis=1))])
        order[place] = left[chosen]
        running = after[chosen]
        left = np.delete(left, chosen)
    assert not running.any()
    return tracks[order]

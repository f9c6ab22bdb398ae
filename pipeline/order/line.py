"""One source's draws, lane by lane, over every number of lanes that a run had.

When the lanes change, what the old lanes have not given of the epochs they began is laid end to end, old lane after old
lane, and cut into one share for each new lane. New lanes give their share of it first, then shares of whole epochs. So
nothing is lost and nothing comes twice, also where the lanes change again before the leftover is used up: a leftover
may be made of an older one.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.epoch import Draws, SourceOrder
from headrace.shards.permutation import make_key, permute, unpermute

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """What draws are: arrays side by side, one element a draw."""

    epoch: IntArray
    place: IntArray
    """Place inside the lane's share of the epoch, as it was cut when the epoch began."""
    ordinal: IntArray
    """Number among the source's samples that are used."""


@dataclass(frozen=True, slots=True, eq=False)
class Leftover:
    """Draws that some lanes did not give, laid end to end."""

    line: "Line"
    """The lanes that did not give them."""
    first: IntArray
    """[L] the first draw of each lane that it did not give."""
    starts: IntArray
    """[L + 1] where each lane's draws begin in the leftover; the last is its size."""

    @property
    def size(self) -> int:
        """Draws in all."""
        return int(self.starts[-1])

    def locate(self, place: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Return (lane, number of its draw, draws of that lane from here on) of places in the leftover."""
        lane = np.searchsorted(self.starts, place, side="right").astype(np.int64) - 1
        return lane, self.first[lane] + place - self.starts[lane], self.starts[lane + 1] - place

    def find(self, ordinal: IntArray, epoch: int) -> tuple[IntArray, IntArray]:
        """Return (which of `ordinal`, place in the leftover) of those whose draw of an epoch was left over."""
        which, lane, number = self.line.find(ordinal, epoch)
        left = (number >= self.first[lane]) & (number - self.first[lane] < np.diff(self.starts)[lane])
        which, lane, number = which[left], lane[left], number[left]
        return which, self.starts[lane] + number - self.first[lane]


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The n-th draw of each lane of one source, for ever."""

    order: SourceOrder
    first_epoch: int = 0
    """The first epoch that is cut into shares of these lanes."""
    leftover: Leftover | None = None
    """What these lanes give before it."""

    def look_up(self, lane: IntArray, number: IntArray) -> Found:
        """Return what each lane's `number`-th draw is."""
        fresh = number - self._share(lane)
        if self.leftover is None or not np.any(fresh < 0):
            return self._fresh(lane, fresh)
        result = Found(*(np.empty_like(number) for _ in range(3)))
        old, new = np.flatnonzero(fresh < 0), np.flatnonzero(fresh >= 0)
        before, earlier, _ = self.leftover.locate(self._place(lane[old], number[old]))
        for where, found in (
            (old, self.leftover.line.look_up(before, earlier)),
            (new, self._fresh(lane[new], fresh[new])),
        ):
            for name in ("epoch", "place", "ordinal"):
                getattr(result, name)[where] = getattr(found, name)
        return result

    def find(self, ordinal: IntArray, epoch: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return (which of `ordinal`, lane, number of its draw) of those that these lanes give in an epoch."""
        if epoch >= self.first_epoch:
            draws = self.order.draws_of(ordinal, np.full_like(ordinal, epoch))
            number = draws.place + self.order.draws_before(draws.lane, draws.epoch)
            number += self._share(draws.lane) - self._skipped(draws.lane, self.first_epoch)
            return np.arange(len(ordinal), dtype=np.int64), draws.lane, number
        nothing = np.zeros(0, np.int64)
        if self.leftover is None:
            return nothing, nothing, nothing
        which, place = self.leftover.find(ordinal, epoch)
        size, num_lanes = self.leftover.size, self.order.num_lanes
        # Lane l gives the places from l * size // L on: the last lane for which that is not behind the place.
        lane = ((place + 1) * num_lanes - 1) // size
        return which, lane, place - lane * size // num_lanes

    def first_epoch_behind(self, given: IntArray) -> int:
        """Return the first epoch of which lanes that have given so many draws may give another; 0 if not known."""
        lane = np.arange(self.order.num_lanes, dtype=np.int64)
        fresh = given - self._share(lane)
        return 0 if int(fresh.min()) < 0 else int(self._draws(lane, fresh).epoch.min())

    def last_epoch(self, given: IntArray) -> int:
        """Return the last epoch of which lanes that have given so many draws may have given one."""
        fresh = given - self._share(np.arange(self.order.num_lanes, dtype=np.int64))
        begun = np.flatnonzero(fresh > 0).astype(np.int64)
        if not begun.size:
            return self.first_epoch - 1
        return int(self._draws(begun, fresh[begun] - 1).epoch.max())

    def run(self, lane: int, number: int) -> int:
        """Return how many draws of a lane, from `number` on, stand in one shuffle window.

        Of an old window, that of fewer lanes, no more than a window of these: memory was counted by it.
        """
        one, place = np.array([lane], np.int64), np.array([number], np.int64)
        share = int(self._share(one)[0])
        if self.leftover is not None and number < share:
            before, earlier, left = self.leftover.locate(self._place(one, place))
            run = self.leftover.line.run(int(before[0]), int(earlier[0]))
            return min(run, share - number, int(left[0]), self.order.window_samples)
        draws = self._draws(one, place - share)
        return int(self.order.window(draws)[2][0] - draws.place[0])

    def replacement(self, lane: int, number: int, steps: int) -> int:
        """Return the ordinal `steps` after a draw in the same lane share, round its end."""
        one, place = np.array([lane], np.int64), np.array([number], np.int64)
        fresh = place - self._share(one)
        if self.leftover is not None and fresh[0] < 0:
            before, earlier, _ = self.leftover.locate(self._place(one, place))
            return self.leftover.line.replacement(int(before[0]), int(earlier[0]), steps)
        draws = self._draws(one, fresh)
        later = draws.after(steps, self.order.share_size(draws.lane, draws.epoch))
        return int(self.order.samples(later)[0])

    def draws_before(self, epoch: int) -> IntArray:
        """Return [L]: draws of each lane before an epoch that is cut into shares of these lanes."""
        lane = np.arange(self.order.num_lanes, dtype=np.int64)
        return self._share(lane) + self._skipped(lane, epoch) - self._skipped(lane, self.first_epoch)

    def rest(self, given: IntArray, epoch: int) -> Leftover:
        """Return what is left before `epoch` when each lane has given so many draws."""
        left = self.draws_before(epoch) - given
        assert int(left.min()) >= 0
        return Leftover(self, given, np.concatenate([[0], np.cumsum(left)]).astype(np.int64))

    def in_lanes(self, num_lanes: int, given: IntArray) -> "Line":
        """Return the line that goes on in so many lanes when each of these has given so many draws."""
        begun = np.flatnonzero(given > 0)
        epoch = self.first_epoch
        if begun.size:
            epoch = max(epoch, 1 + int(self.look_up(begun.astype(np.int64), given[begun] - 1).epoch.max()))
        rest = self.rest(given, epoch)
        order = dataclasses.replace(self.order, num_lanes=num_lanes)
        return Line(order, epoch, rest if rest.size else None)

    def _draws(self, lane: IntArray, fresh: IntArray) -> Draws:
        return self.order.draws(lane, fresh + self._skipped(lane, self.first_epoch))

    def _fresh(self, lane: IntArray, fresh: IntArray) -> Found:
        draws = self._draws(lane, fresh)
        return Found(draws.epoch, draws.place, self.order.samples(draws))

    def _skipped(self, lane: IntArray, epoch: int) -> IntArray:
        """Draws of a lane in the epochs before `epoch`, had there been no other lanes."""
        return self.order.draws_before(lane, np.full_like(lane, epoch))

    def _share(self, lane: IntArray) -> IntArray:
        """How much of the leftover a lane gives."""
        if self.leftover is None:
            return np.zeros_like(lane)
        size, num_lanes = self.leftover.size, self.order.num_lanes
        return (lane + 1) * size // num_lanes - lane * size // num_lanes

    def _place(self, lane: IntArray, number: IntArray) -> IntArray:
        assert self.leftover is not None
        return lane * self.leftover.size // self.order.num_lanes + number


@dataclass(frozen=True, slots=True, eq=False)
class Drain:
    """The end of a source that has an end: what its lanes have not given, in the order of the whole mixture.

    Lanes are never at exactly the same draw, so shares of lanes do not end at one position. The last draws of a source
    are therefore given by whichever lane has its next pick, in a keyed order: each comes once, and then it is over.
    """

    leftover: Leftover

    def look_up(self, number: IntArray) -> Found:
        """Return what the `number`-th draws of the drain are."""
        lane, draw, _ = self.leftover.locate(permute(number, self.leftover.size, self._key))
        return self.leftover.line.look_up(lane, draw)

    def find(self, ordinal: IntArray, epoch: int) -> tuple[IntArray, IntArray]:
        """Return (which of `ordinal`, number of its draw) of those that the drain gives in an epoch."""
        which, place = self.leftover.find(ordinal, epoch)
        return which, unpermute(place, self.leftover.size, self._key)

    def first_of(self, epoch: int) -> int | None:
        """Return the first draw of `epoch` or a later one; None = there is none."""
        late = np.flatnonzero(self.look_up(np.arange(self.leftover.size, dtype=np.int64)).epoch >= epoch)
        return int(late[0]) if late.size else None

    def replacement(self, number: int, steps: int) -> int:
        """Return the ordinal that replaces a draw: the one `steps` after it in the share it was left of."""
        lane, draw, _ = self.leftover.locate(permute(np.array([number], np.int64), self.leftover.size, self._key))
        return self.leftover.line.replacement(int(lane[0]), int(draw[0]), steps)

    @property
    def _key(self) -> int:
        return make_key(self.leftover.line.order.seed, self.leftover.line.order.name, "drain")

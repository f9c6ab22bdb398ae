"""The order of one source: which sample a lane's n-th draw is, for ever.

An epoch is the source's chunks (a chunk = `chunk_samples` consecutive samples of the concatenated index) in the order
of a keyed permutation, the one short chunk last; it is cut into one share a lane; inside a share the samples are
permuted within windows of whole chunks. Every sample comes once an epoch. Shares differ by one sample, and the longer
ones rotate with the epoch, so lanes may stand in adjacent epochs at the same row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.order.subset import Subset
from headrace.shards.permutation import make_key, mix_keys, permute, unpermute

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draws:
    """Where draws of one source stand: arrays side by side, one element a draw."""

    lane: IntArray
    epoch: IntArray
    place: IntArray
    """Place inside the lane's share of the epoch."""

    def after(self, steps: int, share: IntArray) -> "Draws":
        """Return the draws that stand `steps` later in the same share, round its end."""
        return Draws(self.lane, self.epoch, (self.place + steps) % share)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOrder:
    """The arithmetic of one source. Raises ValueError if it has fewer samples than there are lanes."""

    name: str
    num_samples: int
    chunk_samples: int
    shuffle_window: int
    """Samples, for the whole job: a lane gets its part of it, at least one chunk."""
    num_lanes: int
    seed: int
    subset: Subset | None = None
    """Which samples of the index are used; None = all. `num_samples` counts those."""

    def __post_init__(self) -> None:
        if self.num_samples < self.num_lanes:
            raise ValueError(
                f"source {self.name!r} has {self.num_samples} samples for {self.num_lanes} lanes; "
                f"set lanes to {self.num_samples} or less, or leave this source out"
            )

    @property
    def window_chunks(self) -> int:
        """Chunks in a lane's window."""
        return max(1, self.shuffle_window // self.num_lanes // self.chunk_samples)

    @property
    def window_samples(self) -> int:
        """Samples in a lane's window, at most."""
        share = -(-self.num_samples // self.num_lanes)
        return min(self.window_chunks * self.chunk_samples, share)

    def draws(self, lane: IntArray, number: IntArray) -> Draws:
        """Return where each lane's `number`-th draw of this source stands."""
        # The shares of all epochs together are as long as if sample z of the endless epochs went to lane z mod L.
        epoch = (lane + number * self.num_lanes) // self.num_samples
        return Draws(lane, epoch, number - self.draws_before(lane, epoch))

    def share_size(self, lane: IntArray, epoch: IntArray) -> IntArray:
        """Return the length of the lane's share of an epoch."""
        return self.draws_before(lane, epoch + 1) - self.draws_before(lane, epoch)

    def draws_before(self, lane: IntArray, epoch: IntArray) -> IntArray:
        """Return how many draws of a lane stand before an epoch."""
        return (epoch * self.num_samples - lane + self.num_lanes - 1) // self.num_lanes

    def window(self, draws: Draws) -> tuple[IntArray, IntArray, IntArray]:
        """Return (number, first place, end place) of the window each draw stands in, places within the share."""
        start = self._share_start(draws.lane, draws.epoch)
        size = self.window_chunks * self.chunk_samples
        base = self._window_base(draws, start)
        number = (start + draws.place - base) // size
        first = np.maximum(0, base + number * size - start)
        return number, first, np.minimum(self.share_size(draws.lane, draws.epoch), base + (number + 1) * size - start)

    def samples(self, draws: Draws) -> IntArray:
        """Return the sample, a number among those of the source that are used, of each draw."""
        first, size, keys = self._mixing(draws)
        mixed = first + permute(draws.place - first, size, keys)
        chunk, inside = np.divmod(self._share_start(draws.lane, draws.epoch) + mixed, self.chunk_samples)
        whole = self.num_samples // self.chunk_samples
        moved = chunk.copy()
        full = chunk < whole
        if full.any():
            moved[full] = permute(chunk[full], whole, self._keys("chunk", draws.epoch[full]))
        return moved * self.chunk_samples + inside

    def draws_of(self, ordinal: IntArray, epoch: IntArray) -> Draws:
        """Return the draw that gives each sample in an epoch: the inverse of `samples`."""
        chunk, inside = np.divmod(ordinal, self.chunk_samples)
        whole = self.num_samples // self.chunk_samples
        moved = chunk.copy()
        full = chunk < whole
        if full.any():
            moved[full] = unpermute(chunk[full], whole, self._keys("chunk", epoch[full]))
        at = moved * self.chunk_samples + inside
        lane = self._lane_at(at, epoch)
        mixed = Draws(lane, epoch, at - self._share_start(lane, epoch))
        first, size, keys = self._mixing(mixed)
        return Draws(lane, epoch, first + unpermute(mixed.place - first, size, keys))

    def ordinal(self, sample: IntArray) -> IntArray:
        """Return the numbers among the samples that are used, -1 for those that are not: the inverse of `index`."""
        return sample if self.subset is None else self.subset.ordinals(sample)

    def index(self, ordinal: IntArray) -> IntArray:
        """Return the numbers in the source's concatenated index of samples that are used."""
        return ordinal if self.subset is None else self.subset.samples(ordinal)

    def _mixing(self, draws: Draws) -> tuple[IntArray, IntArray, NDArray[np.uint64]]:
        """Return (first place, size, key) of the window that each draw is permuted in; its places stay within."""
        number, first, end = self.window(draws)
        return first, end - first, mix_keys(mix_keys(self._keys("window", draws.epoch), draws.lane), number)

    def _lane_at(self, at: IntArray, epoch: IntArray) -> IntArray:
        """Return the lane whose share holds each place of an epoch's chunks."""
        low, high = np.zeros_like(at), np.full_like(at, self.num_lanes)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            behind = self._share_start(middle, epoch) <= at
            low, high = np.where(behind, middle, low), np.where(behind, high, middle)
        return low

    def _share_start(self, lane: IntArray, epoch: IntArray) -> IntArray:
        shortest, longer = divmod(self.num_samples, self.num_lanes)
        first = (epoch * longer) % self.num_lanes  # lanes first .. first + longer - 1, round the end, have one more
        ahead = np.clip(lane - first, 0, longer) + np.clip(np.minimum(lane, first + longer - self.num_lanes), 0, None)
        start: IntArray = lane * shortest + ahead
        return start

    def _window_base(self, draws: Draws, start: IntArray) -> IntArray:
        """Where the first window would begin: at a chunk, and by a keyed number of chunks early.

        Without the latter all lanes would open a new window at the same row, and read in bursts.
        """
        early = mix_keys(self._keys("early", draws.epoch), draws.lane) % np.uint64(self.window_chunks)
        return (start // self.chunk_samples - early.astype(np.int64)) * self.chunk_samples

    def _keys(self, use: str, epoch: IntArray) -> NDArray[np.uint64]:
        distinct, where = np.unique(epoch, return_inverse=True)
        named = [make_key(self.seed, self.name, use, int(number)) for number in distinct]
        keys: NDArray[np.uint64] = np.array(named, np.uint64)[where]
        return keys

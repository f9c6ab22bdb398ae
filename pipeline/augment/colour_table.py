"""Colours of many rows as columns, and which rows do the same at the same time: what a device works by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.augment.colour import DRAWS, JITTERS, MIDDLE, ORDERS, UNTOUCHED, Colour, ColourDraw, taps_of
from headrace.pipeline.augment.philox import draws_at

NONE = -1
TAPS_STEP = 6
"""Blurs whose kernels need about as many taps are one group; the time goes with the taps."""


class Group(NamedTuple):
    """One step of every row that takes it at this time."""

    operation: str
    kernel: int
    """Taps of a blur, else 0."""
    rows: NDArray[np.int64]
    values: NDArray[np.float64]
    """A factor, turn, sigma or threshold for each row."""


@dataclass(frozen=True, slots=True, eq=False)
class ColourTable(Sequence[Colour]):
    """What `Colour` says, of B rows; a sequence of them too."""

    jitter: NDArray[np.int64]
    """[B, P] number in `JITTERS` of the operation at each place, `NONE` where there is none."""
    factors: NDArray[np.float64]
    """[B, P] its factor, or turn."""
    grayscale: NDArray[np.bool_]
    blur_sigma: NDArray[np.float64]
    blur_kernel: NDArray[np.int64]
    solarize_threshold: NDArray[np.int64]

    @classmethod
    def of(cls, colours: Sequence[Colour]) -> "ColourTable":
        """Return the table of any colours."""
        if isinstance(colours, cls):
            return colours
        places = max((len(colour.jitter) for colour in colours), default=0)
        jitter, factors = np.full((len(colours), places), NONE), np.zeros((len(colours), places))
        for row, colour in enumerate(colours):
            for place, (name, factor) in enumerate(colour.jitter):
                jitter[row, place], factors[row, place] = JITTERS.index(name), factor
        return cls(
            jitter,
            factors,
            np.array([colour.grayscale for colour in colours], np.bool_),
            np.array([colour.blur_sigma for colour in colours], np.float64),
            np.array([colour.blur_kernel for colour in colours], np.int64),
            np.array([colour.solarize_threshold for colour in colours], np.int64),
        )

    def __len__(self) -> int:
        return len(self.grayscale)

    @overload
    def __getitem__(self, rows: int) -> Colour: ...
    @overload
    def __getitem__(self, rows: slice) -> "ColourTable": ...
    def __getitem__(self, rows: int | slice) -> "Colour | ColourTable":
        """Return one row's colour, or the table of some."""
        if isinstance(rows, slice):
            return ColourTable(*(getattr(self, column.name)[rows] for column in fields(self)))
        steps = zip(self.jitter[rows].tolist(), self.factors[rows].tolist(), strict=True)
        return Colour(
            tuple((JITTERS[which], factor) for which, factor in steps if which != NONE),
            bool(self.grayscale[rows]),
            float(self.blur_sigma[rows]),
            int(self.blur_kernel[rows]),
            int(self.solarize_threshold[rows]),
        )

    def groups(self) -> Iterator[Group]:
        """Give the steps of all rows in their order, those that are the same at the same place as one."""
        for place in range(self.jitter.shape[1]):
            for which, name in enumerate(JITTERS):
                yield from _group(name, 0, self.jitter[:, place] == which, self.factors[:, place])
        yield from _group("grayscale", 0, self.grayscale, self.blur_sigma)
        taps = self._taps()
        for kernel in np.unique(taps[taps > 0]).tolist():
            yield from _group("blur", kernel, taps == kernel, self.blur_sigma)
        is_solarized = self.solarize_threshold < UNTOUCHED
        yield from _group("solarize", 0, is_solarized, self.solarize_threshold.astype(np.float64))

    def _taps(self) -> NDArray[np.int64]:
        """Return the taps of each row's blur: a function of its own sigma alone, whatever rows are beside it."""
        needed = taps_of(self.blur_sigma, self.blur_kernel)
        rounded = np.minimum(-(-(needed - 1) // TAPS_STEP) * TAPS_STEP + 1, self.blur_kernel)
        return np.where(self.blur_sigma > 0, rounded, 0)


def draw_table(draw: ColourDraw, position: NDArray[np.int64], valid: NDArray[np.bool_] | None = None) -> ColourTable:
    """Return what `draw` gives at each position; nothing for rows that are not valid."""
    augment, is_valid = draw.augment, np.ones(len(position), np.bool_) if valid is None else valid
    draws = draws_at(draw.key, position, DRAWS)
    jittered, grey, blurred, solarized = (
        (draws[:, column] < share) & is_valid
        for column, share in (
            (0, augment.colour_jitter_probability),
            (6, augment.grayscale_probability),
            (7, augment.blur_probability),
            (9, augment.solarize_probability),
        )
    )
    strengths, (low, high) = np.array(augment.colour_jitter), augment.blur_sigma
    order = np.array(ORDERS)[(draws[:, 5] * len(ORDERS)).astype(np.int64)]
    factors = np.array(MIDDLE) + (2 * draws[:, 1:5] - 1) * strengths
    return ColourTable(
        jitter=np.where(jittered[:, None] & (strengths[order] > 0), order, NONE),
        factors=np.take_along_axis(factors, order, axis=1),
        grayscale=grey,
        blur_sigma=np.where(blurred, low + draws[:, 8] * (high - low), 0.0),
        blur_kernel=np.where(blurred, draw.kernel, 0),
        solarize_threshold=np.where(solarized, augment.solarize_threshold, UNTOUCHED),
    )


def _group(operation: str, kernel: int, chosen: NDArray[np.bool_], values: NDArray[np.float64]) -> Iterator[Group]:
    rows = np.flatnonzero(chosen)
    if len(rows):
        yield Group(operation, kernel, rows, values[rows])

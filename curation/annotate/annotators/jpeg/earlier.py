"""The quality of an earlier saving that the coefficients of a picture show, by likelihood.

A picture that was saved with steps q and again with steps t has coefficients round(round(x / q) q / t): of the
multiples of t some are missing and some come twice, in a pattern that q and t alone decide. So the earlier steps are
found even where they are hardly coarser than the last (80 under 85), or finer (90 under 85), and the table of the last
saving is known from the file. Every quality of libjpeg's tables is tried; what wins must explain the counts of all
frequencies together far better than no earlier saving does. What was cut, turned or resized in between lies on another
grid, and shows nothing here.
Source: J. Lukas and J. Fridrich, "Estimation of primary quantization matrix in double compressed JPEG images", DFRWS
2003: the pattern; a family of smooth densities stands here in place of their recompressed crops.
"""

from functools import cache
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.jpeg.history import LOSSLESS, STEPS_AT_50

# The 20 lowest frequencies but the mean: the others hold few coefficients beside 0.
MAX_ORDER = 5
FREQUENCIES = np.array([place for place in range(1, 64) if place // 8 + place % 8 <= MAX_ORDER])
MAX_LEVEL = 128
"""Coefficients beyond are rare."""
MIN_QUALITY = 20
MAX_STEP, MAX_LAST_STEP = 60, 40
STEPS = np.concatenate([[0], np.arange(1, 30, 0.5), np.arange(30, MAX_STEP + 1)]).astype(np.float64)
"""Earlier steps that are looked for; 0: none."""
# A picture that was made brighter or given more contrast shows its first steps that much larger.
CONTRASTS = (1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
# Densities exp(-(|x| / scale) ** shape) of coefficients before any saving.
SCALES, SHAPES = np.geomspace(0.7, 60, 10), (0.6, 1.0, 2.0)
CELL = 0.25
"""Levels between the points at which a density is taken."""
# Rounding to whole pixels and colours between two savings blurs a coefficient by about so much; other savings by a
# tenth of a step.
MIN_BLUR, BLUR = 0.55, 0.1
# A share of the picture may have been painted over.
CHANGED = 0.12
# Of 10 photographs made smaller, 2 of 30 that were saved once gained it (75, 85, 96), 29 of 30 saved twice (80 then 85,
# 90 then 85, 75 then 96).
MIN_GAIN, MIN_GAIN_OF_CONTRAST = 60.0, 90.0
# Rounding of pixels hides what moved by less.
MIN_STEP_OF_MOVES = 3
# Coefficients that lie farther than that from the multiples of the file's steps, in mean, are not of that table.
MAX_OFF_GRID = 0.17


def earlier_saving(coefficients: NDArray[np.float32], steps: NDArray[np.float64] | None) -> tuple[int, float]:
    """Return the JPEG quality, 20 to 99, of an earlier saving that coefficients [N, 64] of luminance show; 100: none.

    And how far they have moved since: the root mean square of what they are off its multiples, in its steps. Each later
    saving adds to it; 0 if none shows, about 0.29 by chance. `steps` [64] are those of the file, row by row; None if it
    is no JPEG.
    """
    last = np.ones(64, np.int64) if steps is None else np.maximum(1, np.rint(steps)).astype(np.int64)
    if len(coefficients) == 0:
        return LOSSLESS, 0.0
    chosen = coefficients[:, FREQUENCIES]
    steps_of = last[FREQUENCIES]
    if steps is not None and not _on_grid(chosen, steps_of):
        steps_of = np.ones_like(steps_of)
    gains = np.zeros((len(FREQUENCIES), len(STEPS)))
    for step in np.unique(steps_of[steps_of <= MAX_LAST_STEP]).tolist():
        of_step = np.flatnonzero(steps_of == step)
        fits = (_models(step) @ _counts(chosen[:, of_step], step)).max(axis=1)
        gains[of_step] = (fits - fits[0]).T
    total = gains[np.arange(len(FREQUENCIES)), _places()].sum(axis=2)
    contrast, quality = divmod(int(total.argmax()), total.shape[1])
    if contrast > 0 and total[contrast, quality] < MIN_GAIN_OF_CONTRAST:
        contrast, quality = 0, int(total[0].argmax())
    if total[contrast, quality] < MIN_GAIN:
        return LOSSLESS, 0.0
    return MIN_QUALITY + quality, _moved(chosen, _tables()[contrast, quality])


def _moved(chosen: NDArray[np.float32], steps: NDArray[np.float64]) -> float:
    """Return the root mean square of what coefficients outside the middle are off the multiples, in steps."""
    in_steps = chosen / steps
    levels = np.rint(in_steps)
    off = (in_steps - levels)[(levels != 0) & (steps >= MIN_STEP_OF_MOVES)]
    return round(float(np.sqrt(np.mean(off**2))), 4) if off.size else 0.0


def _on_grid(chosen: NDArray[np.float32], steps: NDArray[np.int64]) -> bool:
    """Tell whether coefficients are multiples of the steps: those of CMYK or of colour without luminance are not."""
    in_steps = chosen / steps
    far = np.abs(in_steps - np.rint(in_steps))[:, steps >= 3][np.abs(in_steps[:, steps >= 3]) > 0.5]
    return far.size == 0 or bool(far.mean() <= MAX_OFF_GRID)


def _counts(chosen: NDArray[np.float32], step: int) -> NDArray[np.float64]:
    """Return how many coefficients [N, F] are 1 to K steps from 0, rounded: [K, F]."""
    num_levels, num_frequencies = MAX_LEVEL // step, chosen.shape[1]
    levels = np.minimum(np.abs(np.rint(chosen / step)), num_levels + 1).astype(np.int64)
    places = levels + np.arange(num_frequencies) * (num_levels + 2)
    counts = np.bincount(places.ravel(), minlength=num_frequencies * (num_levels + 2))
    return counts.reshape(num_frequencies, -1)[:, 1:-1].T.astype(np.float64)


@cache
def _models(last: int) -> NDArray[np.float64]:
    """Return log probabilities of 1 to K steps `last` from 0, [earlier step, density, K]; earlier step 0: none.

    Only what is outside the middle counts, since anything explains 0.
    """
    num_levels = MAX_LEVEL // last
    points = (np.arange(int(1.6 * MAX_LEVEL / CELL)) + 0.5) * CELL
    densities = np.stack([np.exp(-((points / scale) ** shape)) for shape in SHAPES for scale in SCALES])
    sums = np.pad(np.cumsum(densities, axis=1) / densities.sum(axis=1, keepdims=True), ((0, 0), (1, 0)))

    def below(levels: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.stack([np.interp(levels, np.arange(sums.shape[1]) * CELL, one) for one in sums])

    edges = (np.arange(1, num_levels + 2) - 0.5) * last
    single = _shares(np.diff(below(edges), axis=1))
    models = [single]
    for earlier in STEPS[1:]:
        multiples = earlier * np.arange(1, int(1.3 * MAX_LEVEL / earlier) + 1)
        weights = below(multiples + earlier / 2) - below(multiples - earlier / 2)
        blur = max(MIN_BLUR, BLUR * last)
        moved = np.diff(_normal_below((edges - multiples[:, None]) / blur), axis=1)
        models.append((1 - CHANGED) * _shares(weights @ moved) + CHANGED * single)
    return np.log(np.stack(models))


def _shares(masses: NDArray[np.float64]) -> NDArray[np.float64]:
    masses = masses + 1e-12
    return np.asarray(masses / masses.sum(axis=1, keepdims=True), np.float64)


def _normal_below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.vectorize(erf, otypes=[np.float64])(values / sqrt(2))), np.float64)


@cache
def _places() -> NDArray[np.int64]:
    """Return where each step of `_tables` stands in STEPS; that of none for those too fine or coarse to tell."""
    tables = _tables()
    nearest = np.abs(STEPS - tables[..., None]).argmin(axis=-1)
    return np.where((tables > 1) & (tables <= MAX_STEP), nearest, 0)


@cache
def _tables() -> NDArray[np.float64]:
    """Return steps [contrast, quality from MIN_QUALITY to 99, frequency]. Source: libjpeg, jcparam.c."""
    quality = np.arange(MIN_QUALITY, LOSSLESS)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    steps = np.clip((STEPS_AT_50[FREQUENCIES].astype(np.int64) * scale + 50) // 100, 1, 255)
    return np.asarray(steps * np.array(CONTRASTS)[:, None, None], np.float64)

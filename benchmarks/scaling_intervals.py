"""How often the 95 % intervals of `headrace scaling` hold the next larger size, and how wide they are.

    python benchmarks/scaling_intervals.py --studies 2000

Each study draws runs of sizes between 5e7 and 1e9 from a law, with noise, fits the law, and asks for a run twice as
large. In brackets: how often the interval of the constant held it. Width is that of the interval over the standard
deviation of the noise: 3.9 where the law is known.
"""

import argparse

import numpy as np

from headrace.train.scaling.fits import POWER, fit

FACTOR, EXPONENT, FLOOR = 2.0, 0.2, 0.4
SIZES = (5e7, 1e9)
RUNS = (4, 5, 6, 8, 12)
NOISES = (0.0003, 0.001, 0.003)


def study(runs: int, noise: float, *, studies: int, seed: int) -> tuple[float, float, float]:
    """Return the shares of intervals that hold the next run and the constant, and the median width in noises."""
    random = np.random.default_rng((seed, runs, round(noise * 1e6)))
    sizes = np.geomspace(*SIZES, runs)
    following = 2 * SIZES[1]
    held, held_floor, widths = 0, 0, []
    for _ in range(studies):
        found = fit(POWER, sizes[:, None], _losses(sizes) + noise * random.standard_normal(runs))
        interval, floor = found.interval_at(following), found.intervals["c"]
        assert interval is not None
        reached = float(_losses(np.array(following)) + noise * random.standard_normal())
        held += interval.low <= reached <= interval.high
        held_floor += floor.low <= FLOOR <= floor.high
        widths.append((interval.high - interval.low) / noise)
    return held / studies, held_floor / studies, float(np.median(widths))


def _losses(sizes: np.ndarray) -> np.ndarray:
    return np.asarray(FACTOR * sizes**-EXPONENT + FLOOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| runs | " + " | ".join(f"noise {noise:g}" for noise in NOISES) + " |")
    print("| --- |" + " --- |" * len(NOISES))
    for runs in RUNS:
        cells = []
        for noise in NOISES:
            held, floor, width = study(runs, noise, studies=given.studies, seed=given.seed)
            cells.append(f"{100 * held:.1f} % ({100 * floor:.1f} %), {width:.1f}")
        print(f"| {runs} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

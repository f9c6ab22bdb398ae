"""Counts over a column of any length in constant memory: histograms, most frequent values, distinct values.

All three merge, so they are filled shard by shard. A histogram is first counted in thousands of fine bins and cut into
bins for the eye only at the end, when its quantiles are known.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NUM_FINE, NUM_BINS = 4096, 40
"""Bins that are counted, and at most shown."""
# Two in a thousand at each end would otherwise squeeze all others into one bin.
TAIL = 0.002
MAX_TALLY = 200_000
HLL_PRECISION = 14
"""2^14 registers: a standard error of 0.8 %."""

_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/?#]*@)?(?P<host>\[[^\]]*\]|[^/:?#]*)"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """Fine bins over a range; logarithmic where a long tail of sizes or lengths is to be expected."""

    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        """True if the fine bins widen with the value."""
        return self.low >= 0 and self.high > 50

    def edges(self) -> Floats:
        """Return the borders of the fine bins."""
        high = self.high if self.high > self.low else self.low + 1
        if self.logarithmic:
            return np.expm1(np.linspace(math.log1p(self.low), math.log1p(high), NUM_FINE + 1)).astype(np.float64)
        return np.asarray(np.linspace(self.low, high, NUM_FINE + 1), np.float64)

    def bins(self, values: Floats) -> NDArray[np.int64]:
        """Return the fine bin of each value."""
        edges = self.edges()
        return np.asarray(np.clip(np.searchsorted(edges, values, "right") - 1, 0, NUM_FINE - 1), np.int64)


@dataclass(kw_only=True, slots=True)
class Histogram:
    """Counts of one column, before and after selection."""

    scale: Scale
    integral: bool
    before: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_FINE, np.int64))
    after: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_FINE, np.int64))
    missing: int = 0

    def add(self, before: Floats, after: Floats) -> None:
        """Count the values of rows before selection and of those that are kept, NaN where missing."""
        self.missing += int((~np.isfinite(before)).sum())
        for counts, values in ((self.before, before), (self.after, after)):
            counts += np.bincount(self.scale.bins(values[np.isfinite(values)]), minlength=NUM_FINE)

    def as_dict(self) -> dict[str, Any]:
        """Return display bins: edges, and counts before and after; values beyond the ends are in the end bins."""
        total = int(self.before.sum())
        if not total or self.scale.low == self.scale.high:
            value = None if not total else self.scale.low
            return {"edges": [], "before": [], "after": [], "missing": self.missing, "constant": value}
        shown, (before, after) = binned(self, [self.before, self.after])
        return {"edges": shown, "before": before, "after": after, "missing": self.missing, "constant": None}


def binned(histogram: Histogram, layers: Sequence[NDArray[np.int64]]) -> tuple[list[float], list[list[int]]]:
    """Return bins for the eye, cut by the quantiles of the first layer, and the counts of each layer of fine bins."""
    edges, total = histogram.scale.edges(), int(layers[0].sum())
    cumulative = np.cumsum(layers[0])
    first = int(np.searchsorted(cumulative, TAIL * total, "right"))
    last = int(np.searchsorted(cumulative, (1 - TAIL) * total))
    shown = _display_edges(
        float(edges[first]),
        float(edges[last + 1]),
        integral=histogram.integral,
        num_bins=min(NUM_BINS, max(10, 2 * math.isqrt(total))),
    )
    centres = (edges[:-1] + edges[1:]) / 2
    places = np.clip(np.searchsorted(shown, centres, "right") - 1, 0, len(shown) - 2)
    counts = [np.bincount(places, layer, len(shown) - 1).astype(int).tolist() for layer in layers]
    return [float(f"{edge:.6g}") for edge in shown], counts


def _display_edges(low: float, high: float, *, integral: bool, num_bins: int) -> Floats:
    if not integral:
        return np.linspace(low, high if high > low else low + 1, num_bins + 1).astype(np.float64)
    # Whole numbers get bins of equal, whole width; single ones stand in the middle of theirs.
    first, last = math.floor(low + 1e-6), math.ceil(high - 1e-6)
    width = max(1, math.ceil((last - first + 1) / num_bins))
    count = max(1, math.ceil((last - first + (width == 1)) / width))
    return first + width * np.arange(count + 1, dtype=np.float64) - (0.5 if width == 1 else 0.0)


class Ranges:
    """Lowest and highest finite value of each numeric column, over all tables."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float, bool]] = {}

    def add(self, table: pa.Table, columns: Iterable[str]) -> None:
        """Widen the ranges by the values of a table."""
        for name in columns:
            values = numbers(table[name])
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high, integral = self._found.get(name, (math.inf, -math.inf, True))
                integral = integral and pa.types.is_integer(table.schema.field(name).type)
                self._found[name] = (min(low, float(finite.min())), max(high, float(finite.max())), integral)

    def histograms(self) -> dict[str, Histogram]:
        """Return an empty histogram for each column that has a value, in the order they came."""
        return {
            name: Histogram(scale=Scale(low, high), integral=integral)
            for name, (low, high, integral) in self._found.items()
        }


def numbers(column: pa.ChunkedArray) -> Floats:
    """Return a numeric column as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def is_numeric(kind: pa.DataType) -> bool:
    """True for a column that a histogram can show."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


class Counts:
    """Counts of the most frequent values; rare ones are forgotten when there are too many, and it says so."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.forgot = False

    def add(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Count every value of a string column; null counts as an empty string."""
        for item in pc.value_counts(pc.fill_null(column, "")).to_pylist():
            self.counts[item["values"]] += item["counts"]
        if len(self.counts) > MAX_TALLY:
            self.counts = Counter(dict(self.top(MAX_TALLY // 2)))
            self.forgot = True

    def top(self, count: int) -> list[tuple[str, int]]:
        """Return the most frequent values, ties by name."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:count]


def hosts(urls: pa.ChunkedArray) -> pa.Array:
    """Return the lower-case host of each URL; empty where there is none."""
    found = pc.extract_regex(urls.combine_chunks(), _HOST)
    return pc.fill_null(pc.utf8_lower(pc.struct_field(found, "host")), "")


class Distinct:
    """About how many different values there are (HyperLogLog++; Heule et al. 2013)."""

    def __init__(self, precision: int = HLL_PRECISION) -> None:
        self._sketch = _new_sketch(precision)
        self._precision = precision

    def add(self, values: Iterable[str | bytes | None]) -> None:
        """Count values through a sketch of their own, merged into this one; None counts nothing."""
        sketch = _new_sketch(self._precision)
        for value in values:
            if value is not None:
                sketch.update(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
        self._sketch.merge(sketch)

    def count(self) -> int:
        """Return the estimate."""
        return round(float(self._sketch.count()))


def _new_sketch(precision: int) -> Any:
    from datasketch import HyperLogLogPlusPlus

    return HyperLogLogPlusPlus(p=precision, hashfunc=_hash64)


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

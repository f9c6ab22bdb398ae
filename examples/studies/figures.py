"""Tables and drawings of a study's numbers, for Markdown pages; the same numbers give the same bytes."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle

from headrace.page.charts import ticks

# Okabe and Ito's colours, which people who see few colours tell apart, without yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 700, 320, 60, 150, 20, 46
# From this many standard errors on a difference is called one. Three, as a study asks several questions at once.
CLEAR = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart. Lines of one name share a colour and a place in the legend: one a seed."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def chart(lines: Sequence[Line], *, title: str, x_label: str) -> str:
    """Return an SVG file."""
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    margin = 0.05 * (max(ys) - min(ys)) or 1.0
    low, high = min(ys) - margin, max(ys) + margin
    names = list(dict.fromkeys(line.name for line in lines))
    colours = dict(zip(names, cycle(COLOURS), strict=False))

    def place(x: float, y: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        return f"{right:.1f} {TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low):.1f}"

    parts = []
    for tick in ticks(low, high, 5):
        left, height = place(min(xs), tick).split()
        parts.append(f'<path class="grid" d="M{left} {height}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height}" dy="4" text-anchor="end">{tick:g}</text>')
    for tick in ticks(min(xs), max(xs), 8):
        left, _ = place(tick, low).split()
        parts.append(f'<text x="{left}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) // 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for line in lines:
        path, dash = "L".join(place(*point) for point in line.points), ' stroke-dasharray="4 3"' * line.dashed
        parts.append(f'<path class="line" stroke="{colours[line.name]}"{dash} d="M{path}"/>')
    for number, name in enumerate(names):
        y = TOP + 8 + 18 * number
        parts.append(f'<path class="line" stroke="{colours[name]}" d="M{WIDTH - RIGHT + 14} {y}h22"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 44}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="system-ui, sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            "<style>text { fill: #1c2b33 } .grid { stroke: #d5dde2 } .line { fill: none; stroke-width: 1.5 }</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        )
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_text(values: Sequence[float], pattern: str) -> str:
    """Return the mean, and the standard deviation where there are several values."""
    mean = pattern.format(statistics.mean(values))
    return f"{mean} ({pattern.format(statistics.stdev(values))})" if len(values) > 1 else mean


def spread(groups: Iterable[Sequence[float]]) -> float:
    """Return the standard deviation of one value among seeds, pooled over groups; nan if no group has two."""
    several = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / freedom) if freedom else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference of two means over seeds."""

    what: str
    value: float
    error: float
    """Its standard error; nan where one seed was done."""
    pattern: str = "{:+.4f}"

    @property
    def finding(self) -> str:
        """What may be said of it."""
        if math.isnan(self.error):
            return "not known from one seed"
        if abs(self.value) < CLEAR * self.error:
            return "within the seeds' spread"
        return "higher" if self.value > 0 else "lower"


def difference(
    what: str, first: Sequence[float], second: Sequence[float], *, deviation: float, pattern: str = "{:+.4f}"
) -> Difference:
    """Return how much the mean of `first` is above that of `second`; `deviation` is one value's, as of `spread`."""
    error = deviation * math.sqrt(1 / len(first) + 1 / len(second))
    value = statistics.mean(first) - statistics.mean(second)
    return Difference(what=what, value=value, error=error, pattern=pattern)


def difference_table(differences: Iterable[Difference]) -> str:
    """Return a Markdown table of what differs and what does not."""
    rows = [
        (
            item.what,
            item.pattern.format(item.value),
            "unknown" if math.isnan(item.error) else item.pattern.format(item.error).lstrip("+"),
            item.finding,
        )
        for item in differences
    ]
    return table(("difference", "of means", "standard error", "finding"), rows)

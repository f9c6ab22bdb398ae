"""Charts of a page as inline SVG: bars, histograms, lines, rows of marks.

Every text goes through `escape`, every place is a number with two digits, so equal values give equal bytes. Colours are
classes of page.css: the page's policy forbids style attributes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from headrace.page.html import Html, escape, join, show

NUM_COLOURS = 5

# Colour 0 is the quiet one: behind in histograms, the rest of a bar.
_PART_COLOURS, _LAYER_COLOURS, _LINE_COLOURS = (1, 0, 2, 3, 4), (0, 1, 2, 3, 4), (1, 2, 3, 4, 0)

# So many lines as colours times dashes can be told apart.
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

_WIDTH, _HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 18, 44
_ROW = 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a bar chart."""

    label: str
    parts: tuple[float, ...]
    """Lengths of the coloured parts, in the order of the legend."""
    value: str
    """Text at the right end."""


def bar_chart(bars: Sequence[Bar], *, legend: Sequence[str] = ()) -> Html:
    """Horizontal bars on one scale, each of stacked parts."""
    if not bars:
        return Html('<p class="empty">None.</p>')
    longest = max(sum(bar.parts) for bar in bars) or 1
    rows = []
    for bar in bars:
        rects, start = [], 0.0
        for number, part in enumerate(bar.parts):
            size = 1000 * part / longest
            colour = _PART_COLOURS[number % NUM_COLOURS]
            rects.append(f'<rect class="fill{colour}" x="{start:.2f}" width="{size:.2f}" height="10"/>')
            start += size
        drawing = f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'
        label, value = escape(bar.label, limit=60), escape(bar.value)
        rows.append(f'<div class="label">{label}</div><div>{drawing}</div><div class="value">{value}</div>')
    return join(_legend(legend, _PART_COLOURS), Html(f'<div class="bars">{"".join(rows)}</div>'))


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The frame of a chart and how values become places in it."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> str:
        """Return where an x value stands."""
        low, high = self.x
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / ((high - low) or 1):.2f}"

    def at_y(self, value: float) -> str:
        """Return where a y value stands."""
        low, high = self.y
        return f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / ((high - low) or 1):.2f}"

    def draw(
        self,
        x_label: str,
        *,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> str:
        """Return grid lines, numbers and the name of the x axis; ticks are (place, text), else round numbers."""
        parts = []
        for tick, text in _numbered(self.y, 4) if y_ticks is None else y_ticks:
            y = self.at_y(tick)
            parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{escape(text)}</text>')
        for tick, text in _numbered(self.x, 7) if x_ticks is None else x_ticks:
            x = self.at_x(tick)
            parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{escape(text)}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) // 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def histogram(
    edges: Sequence[float],
    layers: Sequence[tuple[str, Sequence[int]]],
    *,
    x_label: str,
    cuts: Sequence[tuple[str, float]] = (),
) -> Html:
    """Counts between `edges`, the layers in front of each other (put the largest first), with lines at the cuts."""
    if len(edges) < 2 or any(len(counts) != len(edges) - 1 for _, counts in layers):
        raise ValueError(f"a histogram of {len(edges)} edges needs {len(edges) - 1} counts in each layer")
    top = max((count for _, counts in layers for count in counts), default=0)
    inside = [value for _, value in cuts if math.isfinite(value)]
    axes = Axes(x=(min([edges[0], *inside]), max([edges[-1], *inside])), y=(0, 1.12 * (top or 1)))
    parts = [axes.draw(x_label)]
    colours = _LAYER_COLOURS if len(layers) > 1 else _LINE_COLOURS
    for (name, counts), colour in zip(layers, cycle(colours), strict=False):
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            if count:
                x, y = axes.at_x(low), axes.at_y(count)
                width, height = float(axes.at_x(high)) - float(x), float(axes.at_y(0)) - float(y)
                title = f"{show(low)} to {show(high)}: {name} {show(count)}"
                parts.append(
                    f'<rect class="fill{colour}" x="{x}" y="{y}" width="{max(width - 1, 0.5):.2f}" '
                    f'height="{height:.2f}"><title>{escape(title)}</title></rect>'
                )
    parts.extend(_cut(axes, label, value) for label, value in cuts if math.isfinite(value))
    return join(_legend([name for name, _ in layers], colours), _chart(f"Histogram of {x_label}", parts))


def line_chart(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    cuts: Sequence[tuple[str, float]] = (),
) -> Html:
    """Lines through (x, y) points, with lines at the cuts; points that are not finite are left out, as a gap."""
    points = [point for _, line in series for point in line if all(map(math.isfinite, point))]
    if not points:
        return Html('<p class="empty">None.</p>')
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = (max(ys) - min(ys)) * 0.05 or abs(ys[0]) * 0.05 or 1.0
    axes = Axes(x=(min(xs), max(xs)), y=(min(ys) - margin, max(ys) + margin))
    parts = [axes.draw(x_label)]
    for number, (name, line) in enumerate(series):
        path, pen = [], "M"
        for x, y in line:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{axes.at_x(x)} {axes.at_y(y)}")
            pen = "L"
        parts.append(f'<path {line_pencil(number)} d="{"".join(path)}"><title>{escape(name)}</title></path>')
    parts.extend(_cut(axes, label, value) for label, value in cuts if axes.x[0] <= value <= axes.x[1])
    return join(legend_of_lines([name for name, _ in series]), _chart(f"{y_label} by {x_label}", parts))


def heat(edges: Sequence[float], counts: Sequence[Sequence[int]], *, x_label: str, y_label: str) -> Html:
    """Counts over two numbers with the same edges, `counts[y][x]`; more is darker, on a scale of square roots."""
    most = max((count for row in counts for count in row), default=0)
    filled = [place for place, row in enumerate(counts) if any(row)]
    filled += [place for row in counts for place, count in enumerate(row) if count]
    if not most:
        return Html('<p class="empty">None.</p>')
    low, high = min(filled), max(filled) + 1
    size = (_HEIGHT - _TOP - _BOTTOM) / (high - low)
    parts = []
    for y in range(low, high):
        for x in range(low, high):
            if counts[y][x]:
                top = _HEIGHT - _BOTTOM - size * (y - low + 1)
                title = f"{show(edges[x])} to {show(edges[x + 1])} by {show(edges[y])} to {show(edges[y + 1])}"
                parts.append(
                    f'<rect class="fill1" x="{_LEFT + size * (x - low):.2f}" y="{top:.2f}" width="{size:.2f}" '
                    f'height="{size:.2f}" fill-opacity="{0.12 + 0.88 * math.sqrt(counts[y][x] / most):.3f}">'
                    f"<title>{escape(f'{title}: {show(counts[y][x])}')}</title></rect>"
                )
    every = max(1, math.ceil(36 / size))
    for place in range(low, high + 1, every):
        across, up = _LEFT + size * (place - low), _HEIGHT - _BOTTOM - size * (place - low)
        text = escape(number_label(float(edges[place])))
        parts.append(f'<text x="{across:.2f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{text}</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{up:.2f}" dy="4" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{escape(f"{x_label} across, {y_label} up")}</text>')
    return _chart(f"{y_label} by {x_label}", parts)


def mark_rows(rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], *, x: tuple[float, float], x_label: str) -> Html:
    """Rows of marks along one axis: each mark is a place, and a text that shows where the pointer rests on it."""
    height, left = _ROW * len(rows) + _TOP + _BOTTOM, 190
    axis = height - _BOTTOM
    scale = (_WIDTH - left - _RIGHT) / ((x[1] - x[0]) or 1)
    parts = []
    for tick in ticks(*x, 6):
        at = f"{left + scale * (tick - x[0]):.2f}"
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{_TOP}" y2="{axis}"/>')
        parts.append(f'<text x="{at}" y="{axis + 17}" text-anchor="middle">{escape(number_label(tick))}</text>')
    for number, (name, marks) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        parts.append(f'<text x="{left - 8}" y="{y:.2f}" dy="4" text-anchor="end">{escape(name, limit=28)}</text>')
        for at_x, text in marks:
            place = f'cx="{left + scale * (at_x - x[0]):.2f}" cy="{y:.2f}"'
            parts.append(f'<circle class="fill1" {place} r="3.5"><title>{escape(text)}</title></circle>')
    parts.append(f'<text x="{(left + _WIDTH) // 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return _chart(f"marks by {x_label}", parts, height=height)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next((factor for factor in (1, 2, 5) if step * factor * count >= high - low), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number_label(value: float) -> str:
    """Return a number as it stands at an axis: 4 digits, k, M and G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _cut(axes: Axes, label: str, value: float) -> str:
    x = axes.at_x(value)
    right = float(x) > _WIDTH * 0.7
    anchor, shift = ("end", -5) if right else ("start", 5)
    return (
        f'<line class="cut" x1="{x}" x2="{x}" y1="{_TOP - 6}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="cutlabel" x="{x}" dx="{shift}" y="{_TOP + 4}" text-anchor="{anchor}">'
        f"{escape(label, limit=60)}</text>"
    )


def _legend(names: Sequence[str], colours: Sequence[int]) -> Html:
    if not names:
        return Html("")
    keys = "".join(
        f'<span><i class="fill{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(names, cycle(colours), strict=False)
    )
    return Html(f'<div class="legend">{keys}</div>')


def _numbered(span: tuple[float, float], count: int) -> list[tuple[float, str]]:
    return [(tick, number_label(tick)) for tick in ticks(*span, count)]


def line_pencil(number: int, *, mark: bool = False) -> str:
    """Return how a line is drawn: in the colours, then in the colours again with dashes of another length.

    A `mark` is filled, in the colour of the line.
    """
    if mark:
        return f'class="fill{_LINE_COLOURS[number % NUM_COLOURS]}"'
    dashes = _DASHES[number // NUM_COLOURS % len(_DASHES)]
    pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'class="line line{_LINE_COLOURS[number % NUM_COLOURS]}"{pattern}'


def legend_of_lines(names: Sequence[str]) -> Html:
    """Return what says which line is which."""
    if len(names) <= NUM_COLOURS:
        return _legend(names, _LINE_COLOURS)
    mark = '<svg width="28" height="11" aria-hidden="true"><line {} x1="0" y1="5" x2="24" y2="5"/></svg>'
    keys = (f"<span>{mark.format(line_pencil(number))}{escape(name)}</span>" for number, name in enumerate(names))
    return Html(f'<div class="legend">{"".join(keys)}</div>')


def plot(label: str, parts: Sequence[str], legend: Html) -> Html:
    """Return a chart of what `Axes` placed, under its legend."""
    return join(legend, _chart(label, parts))


def _chart(label: str, parts: Sequence[str], *, height: int = _HEIGHT) -> Html:
    return Html(
        f'<div class="chart"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )

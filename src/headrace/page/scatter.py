"""Points and curves on axes that may be logarithmic, as inline SVG."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.page.charts import Axes, legend_of_lines, line_pencil, number_label, plot, ticks
from headrace.page.html import Html, escape

Point = tuple[float, float, str]
"""x, y, and the text that shows where the pointer rests on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One colour of a chart."""

    name: str
    points: Sequence[Point] = ()
    curve: Sequence[tuple[float, float]] = ()
    """Drawn as a line."""


def scatter_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, log_x: bool = False, log_y: bool = False
) -> Html:
    """Points and lines; what is not finite, or not above zero on a logarithmic axis, is left out."""
    drawn = [(x, y) for one in series for x, y in _all(one) if _fits(x, log_x) and _fits(y, log_y)]
    if not drawn:
        return Html('<p class="empty">None.</p>')
    to_x, to_y = (math.log10 if log else float for log in (log_x, log_y))
    xs, ys = [to_x(x) for x, _ in drawn], [to_y(y) for _, y in drawn]
    axes = Axes(x=_wider(xs), y=_wider(ys))
    parts = [axes.draw(x_label, x_ticks=_ticks(axes.x, log_x, 7), y_ticks=_ticks(axes.y, log_y, 4))]
    for number, one in enumerate(series):
        path = [
            f"{axes.at_x(to_x(x))} {axes.at_y(to_y(y))}" for x, y in one.curve if _fits(x, log_x) and _fits(y, log_y)
        ]
        if path:
            parts.append(f'<path {line_pencil(number)} d="M{"L".join(path)}"><title>{escape(one.name)}</title></path>')
        for x, y, text in one.points:
            if _fits(x, log_x) and _fits(y, log_y):
                place = f'cx="{axes.at_x(to_x(x))}" cy="{axes.at_y(to_y(y))}"'
                parts.append(
                    f'<circle {line_pencil(number, mark=True)} {place} r="3.5"><title>{escape(text)}</title></circle>'
                )
    return plot(f"{y_label} by {x_label}", parts, legend_of_lines([one.name for one in series]))


def _all(one: Series) -> Iterator[tuple[float, float]]:
    yield from one.curve
    for x, y, _ in one.points:
        yield x, y


def _fits(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _wider(values: Sequence[float]) -> tuple[float, float]:
    margin = (max(values) - min(values)) * 0.05 or abs(values[0]) * 0.05 or 1.0
    return min(values) - margin, max(values) + margin


def _ticks(span: tuple[float, float], log: bool, count: int) -> list[tuple[float, str]]:
    """Return places on the axis and their numbers; a logarithmic one has 1, 2, 5 or 1 of each power of ten, or some."""
    if not log:
        return [(at, number_label(at)) for at in ticks(*span, count)]
    for factors in ((1, 2, 5), (1,)):
        found = [
            math.log10(factor) + power
            for power in range(math.floor(span[0]), math.ceil(span[1]) + 1)
            for factor in factors
            if span[0] <= math.log10(factor) + power <= span[1]
        ]
        if len(found) >= 2 and (len(found) <= 2 * count or factors == (1,)):
            every = -(-len(found) // (2 * count))
            return [(at, number_label(10**at)) for at in found[::every]]
    # Less than a factor of two or so: round numbers, which are then not evenly spaced.
    return [
        (math.log10(value), number_label(value)) for value in ticks(10 ** span[0], 10 ** span[1], count) if value > 0
    ]

"""One self-contained HTML file: text, tables, charts and pictures that open offline.

Invariant: the file asks nothing of the network (a content security policy forbids it), and every text from data is
escaped here, because only this module makes `Html`. Same blocks, same bytes: no times, no random ids. The one thing a
reader would get wrong: the policy also forbids style attributes, so looks come from classes and SVG attributes only.
"""

import base64
import hashlib
import html
import importlib.resources
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import NewType

Html = NewType("Html", str)
"""Text that is already safe HTML. Made by this module only."""

Value = str | int | float | bool | None

MAX_TEXT_CHARS = 400
SEARCHABLE_ROWS = 8
NUM_COLOURS = 5

# Colour 0 is the quiet one: behind in histograms, the rest of a bar.
_PART_COLOURS, _LAYER_COLOURS, _LINE_COLOURS = (1, 0, 2, 3, 4), (0, 1, 2, 3, 4), (1, 2, 3, 4, 0)

_WIDTH, _HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 18, 44


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a bar chart."""

    label: str
    parts: tuple[float, ...]
    """Lengths of the coloured parts, in the order of the legend."""
    value: str
    """Text at the right end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of a gallery."""

    data: bytes
    """A whole JPEG, PNG or WebP file."""
    title: str
    lines: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class Page:
    """An HTML page in the making: sections in the order they are added."""

    title: str
    subtitle: str = ""
    footer: str = ""
    _sections: list[tuple[str, Html]] = field(default_factory=list)

    def section(self, title: str, *blocks: Html) -> None:
        """Add a section of `blocks`; a page without content for it should not call this."""
        self._sections.append((title, join(*blocks)))

    def render(self) -> bytes:
        """Return the whole file."""
        css, script = (_asset(name) for name in ("page.css", "page.js"))
        links = "".join(f'<a href="#s{number}">{escape(title)}</a>' for number, (title, _) in enumerate(self._sections))
        sections = "\n".join(
            f'<section id="s{number}"><h2>{escape(title)}</h2>\n{body}</section>'
            for number, (title, body) in enumerate(self._sections)
        )
        policy = (
            f"default-src 'none'; img-src data:; style-src {_hash(css)}; script-src {_hash(script)}; base-uri 'none'"
        )
        text = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{css}</style></head>\n<body>"
            f'<header><h1>{escape(self.title)}</h1><p class="soft">{escape(self.subtitle)}</p><nav>{links}</nav>'
            f"</header>\n<main>\n{sections}\n</main>\n<footer>{escape(self.footer)}</footer><script>{script}</script></body></html>\n"
        )
        return text.encode()


def escape(value: Value, *, limit: int = MAX_TEXT_CHARS) -> Html:
    """Return `value` as text that is safe anywhere in HTML; long text is cut, control characters are made visible."""
    text = show(value)
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    # Controls hide text, bidirectional overrides reorder it, lone surrogates cannot be encoded.
    text = "".join(
        "\ufffd" if unicodedata.category(char) in _UNSHOWN and char not in _ALLOWED else char for char in text
    )
    return Html(html.escape(text, quote=True))


_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# Persian and Hindi words, and pictures of families, hold joiners.
_ALLOWED = frozenset("\n\u200c\u200d")


def show(value: Value) -> str:
    """Return a value as a person reads it: thousands apart, four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def join(*blocks: Html) -> Html:
    """Put blocks one after another."""
    return Html("\n".join(block for block in blocks if block))


def columns(*blocks: Html) -> Html:
    """Put blocks beside each other where the window is wide enough."""
    return Html(f'<div class="columns">{"".join(f"<div>{block}</div>" for block in blocks if block)}</div>')


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{escape(text, limit=4000)}</p>")


def heading(text: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def code(text: str) -> Html:
    """Text as it is, in a fixed width."""
    return Html(f"<pre>{escape(text, limit=200_000)}</pre>")


def details(title: str, *blocks: Html) -> Html:
    """Blocks that open on a click."""
    return Html(f"<details><summary>{escape(title)}</summary>{join(*blocks)}</details>")


def facts(items: Sequence[tuple[str, Value]]) -> Html:
    """A few numbers in large type."""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return Html(f'<dl class="facts">{tiles}</dl>')


def table(head: Sequence[str], rows: Sequence[Sequence[Value]], *, caption: str = "") -> Html:
    """A table that sorts by a click on a heading; a long one can be searched."""
    if not rows:
        return Html('<p class="empty">None.</p>')
    numeric = [
        all(not isinstance(row[column], str) for row in rows) and any(row[column] is not None for row in rows)
        for column in range(len(head))
    ]
    heads = "".join(
        f'<th scope="col"{_number_class(is_number)}><button type="button">{escape(name)}</button></th>'
        for name, is_number in zip(head, numeric, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(_cell(value, is_number) for value, is_number in zip(row, numeric, strict=True))}</tr>"
        for row in rows
    )
    find = ""
    if len(rows) >= SEARCHABLE_ROWS:
        find = (
            '<div class="find" hidden><input type="search" placeholder="Search" aria-label="Search this table">'
            '<span class="count" aria-live="polite"></span></div>'
        )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(
        f'<div>{find}<div class="scroll"><table data-sort>{title}<thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div></div>"
    )


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(value: Value, is_number: bool) -> str:
    if is_number and isinstance(value, int | float):
        return f'<td class="number" data-value="{float(value)!r}">{escape(value)}</td>'
    return f"<td{_number_class(is_number)}>{escape(value)}</td>"


def gallery(pictures: Sequence[Picture]) -> Html:
    """Pictures in a grid, each with a title and lines of text."""
    if not pictures:
        return Html('<p class="empty">None.</p>')
    return Html(f'<div class="gallery">{"".join(_figure(picture) for picture in pictures)}</div>')


def _figure(picture: Picture) -> str:
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp"}
    if picture.data[:2] not in kinds:
        raise ValueError(f"a picture starts with {picture.data[:2]!r}, not as JPEG, PNG or WebP")
    source = f"data:image/{kinds[picture.data[:2]]};base64,{base64.b64encode(picture.data).decode()}"
    lines = "<br>".join(escape(line, limit=120) for line in picture.lines)
    return (
        f'<figure><div class="frame"><img loading="lazy" src="{source}" alt="{escape(picture.title, limit=120)}"></div>'
        f"<figcaption><b>{escape(picture.title, limit=120)}</b>{lines}</figcaption></figure>"
    )


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

    def draw(self, x_label: str) -> str:
        """Return grid lines, numbers and the name of the x axis."""
        parts = []
        for tick in ticks(*self.y, 4):
            y = self.at_y(tick)
            parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" dy="4" text-anchor="end">{escape(_short(tick))}</text>')
        for tick in ticks(*self.x, 7):
            x = self.at_x(tick)
            parts.append(
                f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{escape(_short(tick))}</text>'
            )
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


def line_chart(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, x_label: str, y_label: str) -> Html:
    """Lines through (x, y) points; points that are not finite are left out, as a gap."""
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
        pencil = f"line line{_LINE_COLOURS[number % NUM_COLOURS]}"
        parts.append(f'<path class="{pencil}" d="{"".join(path)}"><title>{escape(name)}</title></path>')
    legend = _legend([name for name, _ in series], _LINE_COLOURS)
    return join(legend, _chart(f"{y_label} by {x_label}", parts))


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next((factor for factor in (1, 2, 5) if step * factor * count >= high - low), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
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


def _chart(label: str, parts: Sequence[str]) -> Html:
    return Html(
        f'<div class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _asset(name: str) -> str:
    text = importlib.resources.files("headrace.page").joinpath(name).read_text(encoding="utf-8")
    # Inside <style> and <script> only a closing tag could end the text early.
    assert not re.search(r"</(style|script)", text, re.IGNORECASE), name
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

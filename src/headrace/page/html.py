"""One self-contained HTML file: text, tables and pictures that open offline; charts.py draws the charts.

Invariant: the file asks nothing of the network (a content security policy forbids it), and every text from data is
escaped, because only this module and charts.py make `Html`. Same blocks, same bytes: no times, no random ids. The
policy also forbids style attributes, so looks come from classes and SVG attributes only.
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
from typing import NewType
from urllib.parse import quote

Html = NewType("Html", str)
"""Text that is already safe HTML. Made by this module and charts.py only."""

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A cell, or a line under a picture, that a click copies: a uid."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A cell that leads to another file."""

    path: tuple[str, ...]
    """Names from the folder of the page to the file; it never leads elsewhere, whatever is in them."""
    text: str


MAX_TEXT_CHARS = 400
SEARCHABLE_ROWS = 8
WORD_LETTERS = 24
"""A name up to this long stays in one piece; the table scrolls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of a gallery."""

    data: bytes
    """A whole JPEG, PNG or WebP file; empty: there is none, and the first of `lines` says why."""
    title: str
    lines: tuple[str, ...] = ()
    uid: str = ""
    """Shown last, to copy; empty: none."""


@dataclass(kw_only=True, slots=True)
class Page:
    """An HTML page in the making: sections in the order they are added."""

    title: str
    subtitle: str = ""
    footer: str = ""
    _sections: list[tuple[str, Html, bool]] = field(default_factory=list)

    def section(self, title: str, *blocks: Html, closed: bool = False) -> None:
        """Add a section of `blocks`, which a click opens and closes; one without content should not be added."""
        self._sections.append((title, join(*blocks), closed))

    def render(self) -> bytes:
        """Return the whole file."""
        css, script = (_asset(name) for name in ("page.css", "page.js"))
        titles = [escape(title) for title, _, _ in self._sections]
        links = "".join(f'<a href="#s{number}">{title}</a>' for number, title in enumerate(titles))
        sections = "\n".join(
            f'<section id="s{number}"><details{"" if closed else " open"}><summary><h2>{escape(title)}</h2></summary>\n'
            f"{body}</details></section>"
            for number, (title, body, closed) in enumerate(self._sections)
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
            f'<header><h1>{escape(self.title)}</h1><p class="soft">{escape(self.subtitle)}</p><nav>{links}'
            '<button type="button" class="all" hidden>Open all</button></nav>'
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


def human_bytes(count: int) -> str:
    """Return a size as a person reads it: 1,536 is 1.54 kB."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while abs(value) >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if units[0] != "bytes" else f"{count} bytes"


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


def table(head: Sequence[str], rows: Sequence[Sequence[Value | Link | Copy]], *, caption: str = "") -> Html:
    """A table that sorts by a click on a heading; a long one can be searched."""
    if not rows:
        return Html('<p class="empty">None.</p>')
    numeric = [
        all(not isinstance(row[column], str | Link | Copy) for row in rows)
        and any(row[column] is not None for row in rows)
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


def _cell(value: Value | Link | Copy, is_number: bool) -> str:
    if isinstance(value, Copy):
        return f"<td>{_copy(value.text)}</td>"
    if isinstance(value, Link):
        return f'<td><a href="{_relative(value.path)}">{escape(value.text)}</a></td>'
    if is_number and isinstance(value, int | float):
        return f'<td class="number" data-value="{float(value)!r}">{escape(value)}</td>'
    return f"<td{_number_class(is_number) or _word_class(value)}>{escape(value)}</td>"


def _word_class(value: Value) -> str:
    """Return what keeps a short name in one piece where a narrow screen breaks long texts anywhere."""
    is_word = isinstance(value, str) and 0 < len(value) <= WORD_LETTERS and value.isascii() and " " not in value
    return ' class="word"' if is_word else ""


def _relative(path: Sequence[str]) -> str:
    if any(name in ("", ".", "..") or "/" in name for name in path):
        raise ValueError(f"a link leads to a file beside the page or below, got {path}")
    return "/".join((".", *(quote(name, safe="") for name in path)))


def gallery(pictures: Sequence[Picture], *, wide: bool = False) -> Html:
    """Pictures in a grid, each with a title and lines of text; `wide` has room for several beside each other in one."""
    if not pictures:
        return Html('<p class="empty">None.</p>')
    kind = "gallery wide" if wide else "gallery"
    return Html(f'<div class="{kind}">{"".join(_figure(picture) for picture in pictures)}</div>')


def pairs(items: Sequence[tuple[Picture, Picture, str]]) -> Html:
    """Pictures side by side, each two with a line that says why they are compared."""
    if not items:
        return Html('<p class="empty">None.</p>')
    drawn = "".join(
        f'<div class="pair"><div class="sides">{_figure(left)}{_figure(right)}</div><p>{escape(note)}</p></div>'
        for left, right, note in items
    )
    return Html(f'<div class="pairs">{drawn}</div>')


def _figure(picture: Picture) -> str:
    lines = "<br>".join(escape(line, limit=120) for line in picture.lines)
    copied = _copy(picture.uid) if picture.uid else ""
    words = f"<figcaption><b>{escape(picture.title, limit=120)}</b>{lines}{copied}</figcaption>"
    if not picture.data:
        return f'<figure class="none"><div class="frame">not shown</div>{words}</figure>'
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp"}
    if picture.data[:2] not in kinds:
        raise ValueError(f"a picture starts with {picture.data[:2]!r}, not as JPEG, PNG or WebP")
    source = f"data:image/{kinds[picture.data[:2]]};base64,{base64.b64encode(picture.data).decode()}"
    # A button, so that the keyboard reaches it; without a script it does nothing.
    return (
        '<figure><div class="frame"><button type="button" class="zoom" aria-haspopup="dialog">'
        f'<img loading="lazy" src="{source}" alt="{escape(picture.title, limit=120)}"></button></div>'
        f"{words}</figure>"
    )


def _copy(text: str) -> str:
    shown = escape(text, limit=64)
    return f'<button type="button" class="copy" title="Copy">{shown}</button>'


def _asset(name: str) -> str:
    text = importlib.resources.files("headrace.page").joinpath(name).read_text(encoding="utf-8")
    # Inside <style> and <script> only a closing tag could end the text early.
    assert not re.search(r"</(style|script)", text, re.IGNORECASE), name
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""The page shows hostile text as text, asks nothing of the network, and is the same bytes every time."""

import base64
import hashlib
import io
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.page import charts
from headrace.page import html as page
from headrace.page.charts import Bar
from headrace.page.html import Copy, Page, Picture

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "</style></script><!--",
    "' onmouseover='alert(1)",
    "\u202egnp.exe",
    "a\x00b\x1b[31m\ud800",
    "&lt;b&gt;",
    "http://evil.test/?<svg/onload=alert(1)>",
]


class Elements(HTMLParser):
    """Every tag and attribute, and the text outside style and script."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._raw = ""
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag

    def handle_data(self, data: str) -> None:
        if self._raw not in ("style", "script"):
            self.text.append(data)


def jpeg(colour: str = "red") -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(output, "JPEG")
    return output.getvalue()


def everything(text: str) -> bytes:
    made = Page(title=text, subtitle=text, footer=text)
    made.section(
        text,
        page.paragraph(text),
        page.heading(text),
        page.code(text),
        page.details(text, page.paragraph(text)),
        page.facts([(text, text)]),
        page.table([text, "n"], [(text, number) for number in range(20)], caption=text),
        page.gallery([Picture(data=jpeg(), title=text, lines=(text, text), uid=text)]),
        page.pairs([(Picture(data=jpeg(), title=text, uid=text), Picture(data=b"", title=text, lines=(text,)), text)]),
        page.table(["a", "b"], [(Copy(text=text), text)]),
        charts.heat([1, 2, 4], [[1, 0], [0, 3]], x_label=text, y_label=text),
        charts.bar_chart([Bar(label=text, parts=(1, 2), value=text)], legend=(text, text)),
        charts.histogram([0, 1, 2], [(text, [1, 2]), ("b", [0, 1])], x_label=text, cuts=[(text, 1.5)]),
        page.columns(charts.line_chart([(text, [(0, 1), (1, 2)])], x_label=text, y_label=text)),
    )
    return made.render()


PLAIN_TAGS = [tag for tag, _ in Elements(everything("plain")).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_and_no_attribute(text: str) -> None:
    found = Elements(everything(text))
    assert [tag for tag, _ in found.tags] == PLAIN_TAGS
    names = {name for _, attributes in found.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "srcset", "action", "formaction")}


@given(st.text(min_size=1, max_size=60))
def test_any_text_adds_no_element(text: str) -> None:
    assert [tag for tag, _ in Elements(everything(text)).tags] == PLAIN_TAGS


def test_nothing_on_the_page_points_outside() -> None:
    for text in HOSTILE:
        for tag, attributes in Elements(everything(text)).tags:
            for name in ("src", "href", "xlink:href", "data"):
                value = attributes.get(name)
                assert value is None or value.startswith(("data:", "#s")), (tag, value)
    assert b"url(" not in everything("plain")


def test_the_policy_allows_exactly_the_inline_style_and_script() -> None:
    text = everything("plain").decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy


def test_controls_and_direction_overrides_are_made_visible() -> None:
    shown = page.escape("a\u202eb\x00c\u200bd\ud800e")
    assert shown == "a\ufffdb\ufffdc\ufffdd\ufffde"
    everything("\ud800").decode()


def test_words_of_other_scripts_are_shown_as_written() -> None:
    # Joiners stand inside Persian and Hindi words and in pictures of families.
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469\u200d\U0001f467"):
        assert page.escape(text) == text


def test_the_same_blocks_give_the_same_bytes() -> None:
    assert everything("same") == everything("same")


def test_long_text_is_cut_and_says_so() -> None:
    assert page.escape("x" * 1000) == "x" * 397 + "..."


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12345, "12,345"), (0.123456, "0.1235"), (1e6, "1,000,000"), (None, ""), (True, "yes"), (math.nan, "nan")],
)
def test_values_are_shown_for_people(value: float | None, shown: str) -> None:
    assert page.show(value) == shown


def test_a_table_sorts_by_value_not_by_text() -> None:
    text = page.table(["n"], [(1000,), (9,), (None,)])
    assert 'data-value="1000.0">1,000<' in text
    assert 'data-value="9.0"' in text


def test_a_short_name_stays_in_one_piece_and_a_long_text_may_break() -> None:
    text = page.table(["step", "url"], [("exact_duplicates", "https://example.org/" + "a" * 80), ("two words", "")])
    assert '<td class="word">exact_duplicates</td>' in text
    assert text.count('class="word"') == 1


def test_only_a_long_table_has_a_search_field() -> None:
    assert 'type="search"' not in page.table(["n"], [(1,)] * 7)
    assert 'type="search"' in page.table(["n"], [(1,)] * 8)


def test_a_picture_must_be_a_picture() -> None:
    with pytest.raises(ValueError, match="not as JPEG, PNG or WebP"):
        page.gallery([Picture(data=b"<svg onload=alert(1)>", title="x")])

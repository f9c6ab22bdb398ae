"""Which row of a group is kept: by an order that the recipe gives, or else the best copy of the picture.

The best copy is found by one test after the other, each among those that passed the ones before: the largest picture
(without border) that is not blown up, without an added border, in colour, not cut, not blurred, near to what most of
its group are, of the highest quality that its pixels show, not saved from another one, saved once. Each test has a
tolerance relative to the best of the group, as no copy measures exactly as its original.
Bytes a pixel are no test: a copy saved again at a higher quality, or without loss, has more of them and less to show.
Measured in docs/select.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any, Literal

from headrace.curation.select.expression import Checker, OrderItem
from headrace.curation.select.load import CAPTION_CHARS, CAPTION_CODE, IDENTITY, MADE_COLUMNS

Captions = Literal["own", "fill", "longest", "best_score", "merge"]
"""Which caption the row that is kept of a group takes; `merge`: all of them."""

BEST_COPY_COLUMNS = (
    *("content_width", "content_height", "border", "sharpness", "colourfulness"),
    *("picture_quality", "encoded_quality", "file_bytes"),
)
SCORE = "clip_score"

SINCE_VERSION_2 = ("earlier_quality", "moved_since", "fine_detail")
"""What tables of `quality` lack that an older headrace began: their groups are decided as they were then."""

MIN_SIZE = 0.85
BORDER_SLACK, BORDER_SLACK_INSIDE = 0.03, 0.06
MIN_COLOUR, COLOUR_SLACK = 0.6, 3
QUALITY_SLACK = 4
AGAIN_SLACK = 1
# An image is blurred where its sharpness is below 0.75 of the sharpest of its group. In tables of version 1 that is the
# sign of a blown-up one too: then its size shrinks fast.
BLURRED, SHRINK_POWER = 0.75, 8
# An image is blown up if it shows less than 0.65 of the sharpness of one with at most this share of its pixels, or so
# many bits less of the finest detail: for each of the first per doubling of the sides, and for any the second. Measured
# at 110, 125, 150 and 200 % of the size on 50 photographs. Poor JPEGs have detail of their own.
MAX_SMALLER, BLOWN_UP, DETAIL_PER_DOUBLING, DETAIL_SLACK, MIN_TRUE_QUALITY = 0.887, 0.65, 3, 0.2, 60
# A border was put around a picture if one of at most this share of its pixels has less of it.
MAX_INSIDE = 0.98
# Less than this share of the pixels is left of a picture that was cut or made a little smaller.
MIN_AREA = 0.985
# Copies that show nothing but JPEG differ by 0 to 4 bits from what most of their group have.
APART_SLACK = 3
MOVED_SLACK, MIN_MOVED = 1.05, 0.002
# An earlier saving of nearly the last quality cannot be told from it.
NEVER, NEARLY = 100, 2

# Each: true for a row that passes; {best} is over the rows of its group that passed all tests before, {true} over those
# of them that are no poor JPEGs, {smaller} over those of these with fewer pixels, {inside} over those with a few less.
_SIZE = f"__size >= {MIN_SIZE} * max(__size) {{best}}"
_COLOUR = f"colourfulness >= {MIN_COLOUR} * max(colourfulness) {{best}} - {COLOUR_SLACK}"
_SHOWN = f"__shown >= max(__shown) {{best}} - {QUALITY_SLACK}"
_AGAIN = f"__again <= min(__again) {{best}} + {AGAIN_SLACK}"
_BORDER = f"border <= min(border) {{best}} + {BORDER_SLACK}"
_TESTS_OF_VERSION_1 = (_SIZE, _BORDER, _COLOUR, _SHOWN, _AGAIN)
_TESTS = (
    f"coalesce(sharpness >= {BLOWN_UP} * max(sharpness) {{smaller}}, true)",
    f"coalesce(__detail >= max(__detail) {{smaller}} - {DETAIL_SLACK}, true)",
    _SIZE,
    f"border <= coalesce(min(border) {{inside}}, border) + {BORDER_SLACK_INSIDE}",
    _COLOUR,
    f"__size >= {MIN_AREA} * max(__size) {{best}} OR __whole >= {MIN_AREA} * max(__whole) {{best}}",
    f"sharpness >= {BLURRED} * coalesce(max(sharpness) {{true}}, 0)",
    f"__apart <= min(__apart) {{best}} + {APART_SLACK}",
    _SHOWN,
    # It is a copy of another of the group if its earlier saving is the last one of that.
    "NOT __twice OR (bit_or(__saved) {best} & (1::HUGEINT << earlier_quality)) = 0",
    f"__moved <= {MOVED_SLACK} * min(__moved) {{best}} + {MIN_MOVED}",
    _BORDER,
    _AGAIN,
)
_PASSED = "FILTER (WHERE __passed)"
_TRUE = f"FILTER (WHERE __passed AND __shown >= {MIN_TRUE_QUALITY})"
_GROUP = "PARTITION BY label"


def _with_less(share: float) -> str:
    """Return the window of rows with at most a share of the pixels."""
    return f"OVER ({_GROUP} ORDER BY ln(__whole) RANGE BETWEEN UNBOUNDED PRECEDING AND {-log(share):.4f} PRECEDING)"


_WINDOWS = {
    "best": f"{_PASSED} OVER ({_GROUP})",
    "true": f"{_TRUE} OVER ({_GROUP})",
    "smaller": f"{_TRUE} {_with_less(MAX_SMALLER)}",
    "inside": f"{_PASSED} {_with_less(MAX_INSIDE)}",
}
# What the tests compare beside columns.
_VALUES_OF_VERSION_1 = f"""
    picture_quality AS __shown, encoded_quality - __shown AS __again,
    content_width::DOUBLE * content_height
        * least(1, pow(sharpness / ({BLURRED} * greatest(max(sharpness) OVER ({_GROUP}), 0.001)), {SHRINK_POWER}))
        AS __size"""
_VALUES = f"""
    least(picture_quality, earlier_quality) AS __shown, encoded_quality - __shown AS __again,
    content_width::DOUBLE * content_height AS __size, greatest(__size / greatest(1 - border, 0.001), 1) AS __whole,
    fine_detail + {DETAIL_PER_DOUBLING} / 2 * log2(__whole) AS __detail,
    earlier_quality <> {NEVER} AND abs(earlier_quality - encoded_quality) > {NEARLY} AS __twice,
    CASE WHEN __twice THEN moved_since ELSE 0 END AS __moved, 7::HUGEINT << (encoded_quality - 1) AS __saved"""

_TIES = tuple(f"{name} ASC NULLS LAST" for name in IDENTITY)


@dataclass(frozen=True, slots=True)
class Ranking:
    """SQL that orders the rows of each group."""

    tables: str
    """Common table expressions that read `here` and `repeated` (`__row`, `label` of the groups of several rows). The
    last is `ordered`: `__row`, `label`, and what the two orders name."""
    order: str
    """What follows ORDER BY, so that the row to keep comes first."""
    caption_order: str
    """The same, so that the row with the caption to take comes first."""
    columns: tuple[str, ...]
    """The columns of `here` it reads."""
    by_centre: bool = False
    """True if it also reads `centred`, of `centre`."""


def given_order(order: Sequence[OrderItem], captions: Captions) -> Ranking:
    """Return the ranking by the expressions of a recipe: nulls and NaN last, ties by uid, input_file, input_row."""
    caption = _of_caption(captions)
    columns = dict.fromkeys([*IDENTITY, *caption, *(name for item in order for name in item.expression.columns)])
    values = [f"{item.expression.sql} AS __order_{number}" for number, item in enumerate(order)]
    values += [f"{name} AS {alias}" for name, alias in caption.items()]
    keys = []
    for number, item in enumerate(order):
        key = _no_nan(f"__order_{number}") if item.expression.is_float else f"__order_{number}"
        keys.append(f"{key} {'DESC' if item.descending else 'ASC'} NULLS LAST")
    # Evaluated over `here` alone, so that an expression may name a column `label`.
    tables = f"""
        valued AS (SELECT {", ".join(["__row", *IDENTITY, *values])} FROM here),
        ordered AS (SELECT * FROM repeated JOIN valued USING (__row))"""
    return _ranking(tables, keys, captions, columns)


def best_copy(checker: Checker, captions: Captions, *, by_centre: bool = False) -> Ranking:
    """Return the ranking by what copies lose; the score of the caption comes after that, if there is one.

    `by_centre`: the step can make the table `centred`.
    """
    caption = _of_caption(captions)
    # A list may carry a column of that name as text, which has no order worth a tie.
    score = [SCORE] if SCORE in checker.names() and checker.check(SCORE, SCORE).is_number else []
    newer = SINCE_VERSION_2 if set(SINCE_VERSION_2) <= set(checker.names()) else ()
    tests, compared = (_TESTS, _VALUES) if newer else (_TESTS_OF_VERSION_1, _VALUES_OF_VERSION_1)
    columns = dict.fromkeys([*IDENTITY, *BEST_COPY_COLUMNS, *newer, *score, *caption])
    values = [f"here.{name}" for name in columns if name not in caption or name in score]
    values += [f"here.{name} AS {alias}" for name, alias in caption.items()]
    by_centre = by_centre and bool(newer)
    apart, centred = ("coalesce(apart, 0)", "LEFT JOIN centred USING (__row)") if by_centre else ("0", "")
    tables = f"""
        valued AS (
            SELECT __row, repeated.label, {", ".join(values)}, {apart} AS __apart
            FROM repeated JOIN here USING (__row) {centred}),
        passed_0 AS (SELECT *, {compared}, true AS __passed, 0 AS __tests FROM valued)"""
    for number, test in enumerate(tests, start=1):
        passed = f"coalesce({test.format_map(_WINDOWS)}, false)"
        tables += f""",
        tried_{number} AS (SELECT *, __passed AND {passed} AS __passes FROM passed_{number - 1}),
        passed_{number} AS (
            SELECT * EXCLUDE (__passed, __tests, __passes), __passes AS __passed,
                __tests + __passes::INTEGER AS __tests
            FROM tried_{number})"""
    tables += f""",
        ordered AS (SELECT * FROM passed_{len(tests)})"""
    keys = ["__tests DESC", "__shown DESC NULLS LAST", "file_bytes DESC NULLS LAST"]
    keys += [f"{_no_nan(name)} DESC NULLS LAST" for name in score]
    return replace(_ranking(tables, keys, captions, columns), by_centre=by_centre)


def check_captions(checker: Checker, captions: Captions, where: str) -> None:
    """Raise ValueError if captions cannot be compared by their scores."""
    if captions == "best_score":
        checker.check_number(SCORE, f"{where}: captions")


def caption_columns(captions: Captions) -> tuple[str, ...]:
    """Return the columns of the tables by which a caption is chosen."""
    return tuple(name for name in _of_caption(captions) if name not in MADE_COLUMNS)


def without_idle(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a step without those that mean nothing: what it said before it had them stays so."""
    merges = settings["captions"] == "merge"
    return {name: value for name, value in settings.items() if merges or name != "max_captions"}


def _ranking(tables: str, keys: Sequence[str], captions: Captions, columns: Iterable[str]) -> Ranking:
    present = "(__chars IS NOT NULL) DESC"
    first = {
        "own": [],
        "fill": [present],
        "longest": ["__chars DESC NULLS LAST"],
        "best_score": [present, f"{_no_nan('__score')} DESC NULLS LAST"],
        "merge": [present],
    }[captions]
    order = [*keys, *_TIES]
    return Ranking(tables, ", ".join(order), ", ".join([*first, *order]), tuple(columns))


def _of_caption(captions: Captions) -> dict[str, str]:
    """Return column -> its name in `ordered`."""
    return {
        "own": {},
        "fill": {CAPTION_CHARS: "__chars"},
        "longest": {CAPTION_CHARS: "__chars"},
        "best_score": {CAPTION_CHARS: "__chars", SCORE: "__score"},
        "merge": {CAPTION_CHARS: "__chars", CAPTION_CODE: "__code"},
    }[captions]


def _no_nan(name: str) -> str:
    return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"

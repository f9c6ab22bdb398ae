"""Which row of a group is kept: by an order that the recipe gives, or else the best copy of the picture.

The best copy is found by one test after the other, each among those that passed the ones before: the largest picture
(without border; blown-up ones count less), without a border, in colour, of the highest quality that its pixels show,
saved once. Each test has a tolerance relative to the best of the group, as no copy measures exactly as its original.
Bytes a pixel are no test: a copy saved again at a higher quality, or without loss, has more of them and less to show.
Measured in docs/select.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.curation.select.expression import Checker, OrderItem
from headrace.curation.select.load import CAPTION_CHARS, IDENTITY

Captions = Literal["own", "fill", "longest", "best_score"]
"""Which caption the row that is kept of a group takes."""

BEST_COPY_COLUMNS = (
    *("content_width", "content_height", "border", "sharpness", "colourfulness"),
    *("picture_quality", "encoded_quality", "file_bytes"),
)
SCORE = "clip_score"

# An image is blown up where its sharpness is below 0.75 of the sharpest of its group; then its size shrinks fast.
BLOWN_UP, SHRINK_POWER = 0.75, 8
MIN_SIZE = 0.85
BORDER_SLACK = 0.03
MIN_COLOUR, COLOUR_SLACK = 0.6, 3
QUALITY_SLACK = 4
AGAIN_SLACK = 1

# Each: true for a row that passes; {best} is over the rows of its group that passed all tests before.
_TESTS = (
    f"__size >= {MIN_SIZE} * max(__size) {{best}}",
    f"border <= min(border) {{best}} + {BORDER_SLACK}",
    f"colourfulness >= {MIN_COLOUR} * max(colourfulness) {{best}} - {COLOUR_SLACK}",
    f"picture_quality >= max(picture_quality) {{best}} - {QUALITY_SLACK}",
    f"__again <= min(__again) {{best}} + {AGAIN_SLACK}",
)


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


def best_copy(checker: Checker, captions: Captions) -> Ranking:
    """Return the ranking by what copies lose; the score of the caption comes after that, if there is one."""
    caption = _of_caption(captions)
    # A list may carry a column of that name as text, which has no order worth a tie.
    score = [SCORE] if SCORE in checker.names() and checker.check(SCORE, SCORE).is_number else []
    columns = dict.fromkeys([*IDENTITY, *BEST_COPY_COLUMNS, *score, *caption])
    values = [f"here.{name}" for name in columns if name not in caption or name in score]
    values += [f"here.{name} AS {alias}" for name, alias in caption.items()]
    group = "(PARTITION BY label)"
    size = f"least(1, pow(sharpness / ({BLOWN_UP} * greatest(max(sharpness) OVER {group}, 0.001)), {SHRINK_POWER}))"
    tables = f"""
        valued AS (
            SELECT repeated.__row, repeated.label, {", ".join(values)}, encoded_quality - picture_quality AS __again,
                content_width::DOUBLE * content_height * {size} AS __size
            FROM repeated JOIN here USING (__row)),
        passed_0 AS (SELECT *, true AS __passed, 0 AS __tests FROM valued)"""
    for number, test in enumerate(_TESTS, start=1):
        passed = f"coalesce({test.format(best=f'FILTER (WHERE __passed) OVER {group}')}, false)"
        tables += f""",
        tried_{number} AS (SELECT *, __passed AND {passed} AS __passes FROM passed_{number - 1}),
        passed_{number} AS (
            SELECT * EXCLUDE (__passed, __tests, __passes), __passes AS __passed,
                __tests + __passes::INTEGER AS __tests
            FROM tried_{number})"""
    tables += f""",
        ordered AS (SELECT * FROM passed_{len(_TESTS)})"""
    keys = ["__tests DESC", "picture_quality DESC NULLS LAST", "file_bytes DESC NULLS LAST"]
    return _ranking(tables, keys + [f"{_no_nan(name)} DESC NULLS LAST" for name in score], captions, columns)


def check_captions(checker: Checker, captions: Captions, where: str) -> None:
    """Raise ValueError if captions cannot be compared by their scores."""
    if captions == "best_score":
        checker.check_number(SCORE, f"{where}: captions")


def caption_columns(captions: Captions) -> tuple[str, ...]:
    """Return the columns by which a caption is chosen."""
    return tuple(_of_caption(captions))


def _ranking(tables: str, keys: Sequence[str], captions: Captions, columns: Iterable[str]) -> Ranking:
    present = "(__chars IS NOT NULL) DESC"
    first = {
        "own": [],
        "fill": [present],
        "longest": ["__chars DESC NULLS LAST"],
        "best_score": [present, f"{_no_nan('__score')} DESC NULLS LAST"],
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
    }[captions]


def _no_nan(name: str) -> str:
    return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"

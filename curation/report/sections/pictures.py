"""Everything with pictures: around each cut, pairs, groups, extremes, faces, samples."""

from collections.abc import Mapping
from typing import Any

from headrace.curation.report.galleries import Galleries, Pair, Shown
from headrace.page import html as page
from headrace.page.html import Copy, Html, Page, Picture, Value

Numbers = Mapping[str, Any]


def add_pictures(result: Page, report: Numbers, galleries: Galleries) -> None:
    """Add the sections that have something to show."""
    for name, threshold, near, under in galleries.cuts:
        blocks = [page.paragraph(f"Threshold {page.show(threshold)}: the pictures nearest to it.")]
        for word, items in (("Kept", near), ("Dropped", under)):
            if items:
                blocks += [page.heading(word), gallery(items)]
        result.section(f"Around the cut: {name}", *blocks, closed=True)
    _add_pairs(result, galleries)
    _add_groups(result, report, galleries)
    _add_extremes(result, galleries)
    if galleries.faces or report["remarks"]:
        told = [page.paragraph(text) for text in report["remarks"]]
        result.section("Blurred faces", *told, gallery(galleries.faces), closed=True)
    if galleries.kept:
        result.section("Samples kept", gallery(galleries.kept), closed=True)
    if galleries.dropped:
        blocks = [page.join(page.heading(name), gallery(items)) for name, items in galleries.dropped.items()]
        result.section("Samples dropped", *blocks, closed=True)


def _add_pairs(result: Page, galleries: Galleries) -> None:
    for name, dropped, pairs in galleries.pairs:
        told = f"{page.show(dropped)} rows were dropped as copies. "
        told += (
            "Each is shown beside what it is a copy of."
            if len(pairs) >= dropped
            else f"{page.show(len(pairs))} are shown, the least certain first; the others' pictures may not be shown, "
            "or are more than the page holds (report.pairs)."
        )
        result.section(f"Pairs: {name}", page.paragraph(told), _pairs(pairs), closed=True)
    for name, distance, compared, pairs in galleries.beyond:
        told = (
            f"Kept pictures that are nearest to each other, or to an evaluation image, beyond the distance of "
            f"{page.show(distance)} bits; of {page.show(compared)} kept rows that were compared."
        )
        result.section(f"Just beyond: {name}", page.paragraph(told), _pairs(pairs), closed=True)


def _pairs(pairs: list[Pair]) -> Html:
    return page.pairs([(picture(pair.left), picture(pair.right), pair.note) for pair in pairs])


def _add_groups(result: Page, report: Numbers, galleries: Galleries) -> None:
    if not galleries.groups and not report["duplicates"]["num_groups"]:
        return
    blocks = []
    for _, dropped, items in galleries.groups:
        blocks += [page.heading(f"{page.show(dropped + 1)} alike"), gallery(items)]
    num_groups, num_dropped = (page.show(report["duplicates"][name]) for name in ("num_groups", "num_dropped"))
    sizes = sorted((int(size), count) for size, count in report["duplicates"]["group_sizes"].items())
    note = f"{num_groups} groups; {num_dropped} rows dropped. The largest groups: the best, and some dropped for it."
    table = page.details("Groups by size", page.table(["rows in the group", "groups"], sizes))
    result.section("Near-duplicates", page.paragraph(note), table, *blocks, closed=True)


def _add_extremes(result: Page, galleries: Galleries) -> None:
    outliers, captions = [], []
    for extreme, items, rows in galleries.extremes:
        title = page.heading(f"{extreme.title} ({extreme.column})")
        if extreme.of_caption:
            listed: list[list[Value | Copy]] = [
                [row["value"], row["caption"] or "(no caption)", Copy(text=row["uid"] or "")] for row in rows
            ]
            table = page.table([extreme.column, "caption", "uid"], listed)
            captions += [title, gallery(items), page.details("As a table", table)] if items else [title, table]
        else:
            outliers += [title, gallery(items) if items else _rows(extreme.column, rows)]
    if outliers:
        note = page.paragraph("Of what is kept, the pictures at the ends of each number.")
        result.section("Outliers", note, *outliers, closed=True)
    if captions:
        note = page.paragraph("Of what is kept, the captions at the ends of score and length.")
        result.section("Captions", note, *captions, closed=True)


def _rows(column: str, rows: list[dict[str, Any]]) -> Html:
    return page.table([column, "url", "uid"], [[row["value"], row["url"], Copy(text=row["uid"] or "")] for row in rows])


def gallery(items: list[Shown]) -> Html:
    """Pictures in a grid."""
    return page.gallery([picture(item) for item in items])


def picture(item: Shown) -> Picture:
    """One picture, or that it is not shown."""
    uid, thumbnail = item.row["uid"] or "", item.thumbnail
    if thumbnail is None:
        return Picture(data=b"", title=item.note, lines=("faces not looked for, or no longer there",), uid=uid)
    lines = tuple(filter(None, (*thumbnail.more, item.note, thumbnail.url)))
    return Picture(data=thumbnail.data, title=thumbnail.caption or "(no caption)", lines=lines, uid=uid)

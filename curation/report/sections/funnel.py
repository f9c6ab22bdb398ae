"""What the steps did: the funnel, what each step changed, and what other thresholds would keep."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headrace.page import charts
from headrace.page import html as page
from headrace.page.charts import Bar
from headrace.page.html import Html, Value

Numbers = Mapping[str, Any]

MAX_BARS = 400


def percent(part: int, whole: int) -> float:
    """Return a share in percent, to two digits."""
    return round(100 * part / whole, 2) if whole else 0.0


def funnel(steps: Sequence[Numbers]) -> list[Html]:
    """Rows left after each step, and why the others were dropped."""
    bars = [
        Bar(
            label=step["name"],
            parts=(step["rows_out"], step["rows_in"] - step["rows_out"]),
            value=f"{page.show(step['rows_out'])} left, {page.show(step['rows_in'] - step['rows_out'])} dropped",
        )
        for step in steps
    ]
    rows: list[list[Value]] = []
    for step in steps:
        drops = sorted(step["dropped"].items(), key=lambda item: (-item[1], item[0]))
        for reason, count in drops or [("", 0)]:
            rows.append([step["name"], reason, count, percent(count, step["rows_in"]), step["threshold"]])
    head = ["step", "reason", "dropped", "% of the step's rows", "threshold"]
    told = [_details(steps)] if any(step["details"] for step in steps) else []
    return [charts.bar_chart(bars, legend=("left", "dropped")), page.heading("Reasons"), page.table(head, rows), *told]


def effects(steps: Sequence[Numbers]) -> list[Html]:
    """The numbers that each step moved most, before and after it."""
    blocks = [
        page.paragraph(
            "For each step the numbers whose distribution it moved most: the rows that reach it, and those it leaves. "
            "The shift is the largest difference of the two cumulative shares."
        )
    ]
    for step in steps:
        drawn = []
        for item in step["numbers"]:
            layers = [("reach the step", item["before"]), ("left", item["after"])]
            was, now = (page.show(value) for value in item["median"])
            told = f"median {was} to {now}, mean {page.show(item['mean'][0])} to {page.show(item['mean'][1])}"
            drawn.append(
                page.join(
                    charts.histogram(item["edges"], layers, x_label=item["number"]),
                    page.paragraph(f"{item['number']}: {told}; shift {page.show(item['shift'])}."),
                )
            )
        blocks += [page.heading(step["step"]), page.columns(*drawn)]
    return blocks


def thresholds(curves: Sequence[Numbers], distances: Sequence[Numbers]) -> list[Html]:
    """Exact counts of what other thresholds would keep."""
    blocks = [
        page.paragraph(
            "Rows that a step would leave with another threshold, of those that reach it as things are. The counts are "
            "exact. The second line counts those among them that are kept in the end; it says nothing of rows that a "
            "later step would judge for the first time."
        )
    ]
    drawn = [_curve(curve) for curve in curves] + [_distances(item) for item in distances]
    return [*blocks, page.columns(*drawn)]


def _curve(curve: Numbers) -> Html:
    points = curve["points"]
    lines = [
        ("left after the step", [(x, left) for x, left, _ in points]),
        ("of them kept in the end", [(x, kept) for x, _, kept in points]),
    ]
    rows: list[list[Value]] = [[f"{x:.6g}", left, kept] for x, left, kept in points]
    told = f"{curve['step']} keeps {curve['expression']} {curve['keeps']} {page.show(curve['threshold'])}."
    if curve["without_number"]:
        told += f" {page.show(curve['without_number'])} rows have no such number."
    if not curve["exact"]:
        told += " The step looks at more than this number, so the curve is of the number alone."
    return page.join(
        page.heading(curve["step"]),
        page.paragraph(told),
        charts.line_chart(lines, x_label=curve["expression"], y_label="rows", cuts=[("now", curve["threshold"])]),
        page.details("Numbers", page.table(["threshold", "left after the step", "kept in the end"], rows)),
    )


def _distances(item: Numbers) -> Html:
    """How far dropped copies are from what they were dropped for; `counts` may be of distances or of likeness."""
    counts, likeness = item["counts"], item["measured"] != "distance"
    told = "How near the rows that were dropped are to what they were dropped for."
    head = [item["measured"], "dropped at it"]
    rows: list[list[Value]] = []
    total = 0
    for value, count in reversed(counts) if likeness else counts:
        total += count
        left = item["rows_in"] - item["unjudged"] - total
        rows.append([f"{value:g}", count, *([left] if item["exact"] else [])])
    if item["exact"]:
        head.append("a limit here would leave")
        told += " Each row is judged alone, so the counts of stricter limits are exact."
    else:
        told += " With another limit the groups would be others, so this is no count of what it would keep."
    unit = 1 if all(float(value).is_integer() for value, _ in counts) else 0.01
    first, last = (round(value / unit) for value in (counts[0][0], counts[-1][0]))
    found = {round(value / unit): count for value, count in counts}
    blocks = [page.heading(item["step"]), page.paragraph(told)]
    if last - first <= MAX_BARS:
        edges = [(place - 0.5) * unit for place in range(first, last + 2)]
        layer = ("dropped", [found.get(place, 0) for place in range(first, last + 1)])
        blocks.append(charts.histogram(edges, [layer], x_label=head[0]))
    return page.join(*blocks, page.details("Numbers", page.table(head, rows)))


def _details(steps: Sequence[Numbers]) -> Html:
    """What the steps say of themselves: groups, images compared, measured recall."""
    rows: list[list[Value]] = []
    for step in steps:
        rows += [[step["name"], name, value] for name, value in _flat(step["details"])]
    return page.details("What the steps say of themselves", page.table(["step", "what", "value"], rows))


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    items = list(found.items())
    if all(name.isdecimal() for name in found):  # distances: by number, not by letter
        items.sort(key=lambda item: int(item[0]))
    for name, value in items:
        words = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{words}, ")
        else:
            yield words, _told(value)


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return page.show(value) if isinstance(value, str | int | float | None) else str(value)

"""The numbers of a report as lines of a terminal, at most 80 columns wide."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headrace.text import cut_line, printable

WIDTH = 80
_NAME = 28


def report_lines(facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the numbers of the overview, then one line a step."""
    from headrace.curation.report.render import FACTS

    for name, value in facts.items():
        yield f"  {FACTS.get(name, name):<{_NAME}} {_value(name, value):>14}"
    if funnel:
        yield f"  {'step':<{_NAME}} {'rows in':>13} {'dropped':>13} {'left':>13} {'%':>6}"
    for step in funnel:
        lost = step["rows_in"] - step["rows_out"]
        share = f"{100 * step['rows_out'] / step['rows_in']:.1f}" if step["rows_in"] else ""
        yield f"  {_cut(step['name'])} {step['rows_in']:>13,} {lost:>13,} {step['rows_out']:>13,} {share:>6}"


def compare_lines(facts: Sequence[Mapping[str, Any]], overlap: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield the numbers of two sides beside each other, then what they share."""
    from headrace.curation.report.render import FACTS

    yield f"  {'':<{_NAME}} {'A':>14} {'B':>14} {'both':>14}"
    for name in [name for name in FACTS if any(name in side for side in facts)]:
        first, second = (_value(name, side[name]) if name in side else "" for side in facts)
        yield f"  {FACTS[name]:<{_NAME}} {first:>14} {second:>14}"
    for name, found in overlap.items():
        if found["a"] or found["b"]:
            yield f"  {'different ' + name:<{_NAME}} {found['a']:>14,} {found['b']:>14,} {found['both']:>14,}"


def _value(name: str, value: Any) -> str:
    from headrace.page.html import human_bytes, show

    return human_bytes(value) if name == "num_bytes" and isinstance(value, int) else show(value)


def _cut(name: str) -> str:
    text = cut_line(printable(name))
    return f"{text if len(text) <= _NAME else text[: _NAME - 3] + '...':<{_NAME}}"

"""Charts show their numbers in proportion, and refuse what they cannot draw; hostile text is in test_html.py."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.page import charts
from headrace.page.charts import Bar


def test_bars_are_in_proportion() -> None:
    text = charts.bar_chart([Bar(label="a", parts=(3, 1), value=""), Bar(label="b", parts=(2,), value="")])
    assert re.findall(r'width="([0-9.]+)"', text) == ["750.00", "250.00", "500.00"]


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    text = charts.histogram([0, 1, 2, 3], [("n", [10, 5, 0])], x_label="x")
    heights = [float(height) for height in re.findall(r'height="([0-9.]+)"><title>', text)]
    assert len(heights) == 2
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.02)


def test_more_series_than_colours_are_all_drawn() -> None:
    series = [(f"s{number}", [(0.0, number), (1.0, number)]) for number in range(7)]
    assert charts.line_chart(series, x_label="x", y_label="y").count("<path") == 7
    layers = [(f"s{number}", [1]) for number in range(7)]
    text = charts.histogram([0, 1], layers, x_label="x")
    assert text.count("<rect") == text.count("<i class") == 7


def test_a_cut_outside_the_bins_widens_the_axis() -> None:
    text = charts.histogram([0, 1], [("n", [1])], x_label="x", cuts=[("far", 4.0)])
    (x,) = re.findall(r'<line class="cut" x1="([0-9.]+)"', text)
    assert float(x) <= 520


def test_points_that_are_not_finite_break_the_line() -> None:
    text = charts.line_chart([("a", [(0, 1), (1, math.nan), (2, 3)])], x_label="x", y_label="y")
    (path,) = re.findall(r' d="([^"]*)"', text)
    assert path.count("M") == 2
    assert "nan" not in path


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.integers(2, 10))
def test_ticks_are_few_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = charts.ticks(low, high, count)
    assert len(ticks) <= 2 * count + 2
    assert all(low - span * 0.01 <= tick <= high + span * 0.01 for tick in ticks)


def test_a_histogram_refuses_counts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="needs 2 counts"):
        charts.histogram([0, 1, 2], [("n", [1])], x_label="x")

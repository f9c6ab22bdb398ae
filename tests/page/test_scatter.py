"""Points stand where their values are, on logarithmic axes too; what no axis can show is left out."""

import re

import pytest

from headrace.page.scatter import Series, _ticks, scatter_chart


def places(text: str) -> list[float]:
    return [float(x) for x in re.findall(r'cx="([0-9.]+)"', text)]


def test_equal_factors_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    points = [(1e6, 1.0, "a"), (1e7, 2.0, "b"), (1e8, 3.0, "c"), (0.0, 1.0, "none"), (float("nan"), 1.0, "none")]
    text = scatter_chart([Series(name="runs", points=points)], x_label="N", y_label="loss", log_x=True)
    first, second, third = places(text)
    assert second - first == pytest.approx(third - second, abs=0.02)
    assert "none" not in text
    assert ">1M<" in text


def test_a_wide_logarithmic_axis_has_numbers_all_along() -> None:
    places = [at for at, _ in _ticks((6.0, 26.0), True, 7)]
    assert places == list(range(6, 27, 2))


def test_names_of_runs_are_text() -> None:
    hostile = "<script>alert(1)</script>"
    series = [Series(name=hostile, points=[(1.0, 1.0, hostile), (2.0, 2.0, "b")], curve=[(1.0, 1.0), (2.0, 2.0)])]
    assert "<script" not in scatter_chart(series, x_label="x", y_label="y", log_x=True, log_y=True)
    assert "None." in scatter_chart([], x_label="x", y_label="y")

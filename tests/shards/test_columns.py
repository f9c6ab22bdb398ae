"""More columns: a type that holds what every shard has, and no value changed by it."""

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.columns import TYPES, agree, cast_column, extras_table, join_types, type_of

SCALAR = st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=5)


@given(st.lists(SCALAR, min_size=1, max_size=6))
def test_a_column_holds_what_its_rows_hold(values: list[Any]) -> None:
    types, (array,) = extras_table([{"x": value} for value in values])
    for value, got in zip(values, array.to_pylist(), strict=True):
        if types["x"] == "text":
            assert got == value if isinstance(value, str) else isinstance(got, str)
        else:
            assert got == value


@given(SCALAR, SCALAR, SCALAR)
def test_the_order_of_shards_does_not_matter(one: Any, two: Any, three: Any) -> None:
    a, b, c = map(type_of, (one, two, three))
    assert join_types(a, b) == join_types(b, a)
    assert agree([{"x": a}, {"x": b}, {"x": c}]) == agree([{"x": c}, {"x": b}, {"x": a}])


def test_whole_numbers_that_no_float_holds_become_text_beside_floats() -> None:
    big = (1 << 53) + 1
    assert agree([{"x": type_of(big)}, {"x": type_of(0.5)}]) == {"x": "text"}
    assert agree([{"x": type_of(1)}, {"x": type_of(0.5)}]) == {"x": "float"}
    assert agree([{"x": type_of(1)}, {"y": type_of("a")}]) == {"x": "int", "y": "text"}


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None], "float", [1.0, None]),
        ([True, None], "text", ["true", None]),
        ([0.5, math.inf, None], "text", ["0.5", "inf", None]),
        (["12", None], "int", [12, None]),
        (["true", "false", None], "bool", [True, False, None]),
    ],
)
def test_a_column_is_cast_to_what_all_agree_on(values: list[Any], kind: str, expected: list[Any]) -> None:
    column = cast_column(pa.chunked_array([pa.array(values)]), kind)
    assert column.type == TYPES[kind]
    assert column.to_pylist() == expected

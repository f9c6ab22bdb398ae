"""A table of colours says what each of them says, and which rows do the same at the same time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.augment.colour import PLAIN, Colour, ColourDraw, steps_of
from headrace.pipeline.augment.colour_table import ColourTable, draw_table
from headrace.pipeline.augment.config import Augment
from headrace.pipeline.augment.presets import preset_views

AUGMENTS = [
    augment
    for name in ("moco_v3", "simclr")
    for augment in (view.augment for view in preset_views(name, colour_jitter_probability=0.7))
    if augment is not None
] + [Augment(colour_jitter=(0.0, 0.3, 0.0, 0.5), solarize_probability=0.5, solarize_threshold=0)]


@given(
    augment=st.sampled_from(AUGMENTS),
    positions=st.lists(st.tuples(st.integers(0, 2**62 - 1), st.booleans()), max_size=8),
)
def test_the_table_of_many_positions_says_what_each_draw_says(
    augment: Augment, positions: list[tuple[int, bool]]
) -> None:
    draw = ColourDraw(key=9, augment=augment, kernel=23)
    valid = np.array([is_valid for _, is_valid in positions], np.bool_)
    table = draw_table(draw, np.array([position for position, _ in positions], np.int64), valid)
    assert list(table) == [draw(position) if is_valid else PLAIN for position, is_valid in positions]
    assert list(ColourTable.of(list(table))) == list(table)
    assert list(table[1:3]) == list(table)[1:3]


@given(positions=st.lists(st.integers(0, 10**9), max_size=12))
def test_every_row_takes_its_steps_in_their_order(positions: list[int]) -> None:
    table = draw_table(ColourDraw(key=9, augment=AUGMENTS[1], kernel=23), np.array(positions, np.int64))
    taken: list[list[tuple[str, float]]] = [[] for _ in positions]
    for group in table.groups():
        assert len(group.rows) == len(group.values) > 0
        for row, value in zip(group.rows.tolist(), group.values.tolist(), strict=True):
            taken[row].append((group.operation, 0.0 if group.operation == "grayscale" else value))
    assert taken == [[(step.operation, step.value) for step in steps_of(colour)] for colour in table]


def test_taps_are_a_function_of_the_rows_own_sigma() -> None:
    colours = [Colour(blur_sigma=sigma, blur_kernel=23) for sigma in (0.1, 0.4, 1.0, 1.9, 2.0)]
    groups = list(ColourTable.of(colours).groups())
    assert [(group.kernel, group.rows.tolist()) for group in groups] == [(7, [0, 1]), (13, [2]), (23, [3, 4])]
    small = ColourTable.of([Colour(blur_sigma=2.0, blur_kernel=3)])
    assert [group.kernel for group in small.groups()] == [3]

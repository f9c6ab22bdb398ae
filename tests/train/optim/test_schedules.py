"""Each schedule against an implementation of its own, slow and by another route, and against published values."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import build_config, config_to_dict
from headrace.train.optim import SCHEDULES, ChecksSteps, ScheduleConfig
from headrace.train.optim.cooldown import ConstantConfig, RsqrtConfig
from headrace.train.optim.milestones import StepConfig
from headrace.train.optim.schedules import CosineConfig

PEAK = 8e-4


def rates(schedule: ScheduleConfig, steps: int, peak: float = 1.0) -> list[float]:
    return [schedule.rate(step, steps=steps, peak=peak) for step in range(steps)]


@pytest.mark.parametrize(
    ("step", "rate"),
    [(10_000, 8e-4), (20_000, 5.657e-4), (200_000, 1.789e-4), (950_000, 8.208e-5), (975_000, 4.051e-5)],
)
def test_rsqrt_has_the_values_of_the_scaling_study(step: int, rate: float) -> None:
    """A million steps at 8e-4: computed once with big_vision's own code; the defaults are its config's."""
    assert RsqrtConfig().rate(step, steps=1_000_000, peak=PEAK) == pytest.approx(rate, rel=3e-4)


def test_rsqrt_is_the_product_of_three_curves() -> None:
    steps, warmup, scale, cooldown = 97, 11, 7, 23
    s = np.arange(steps, dtype=np.float64)
    expected = (
        np.clip(s / warmup, None, 1)
        * np.clip((steps - s) / cooldown, None, 1)
        / np.sqrt(1 + np.clip(s - warmup, 0, None) / scale)
    )
    given = RsqrtConfig(warmup_steps=warmup, timescale_steps=scale, cooldown_steps=cooldown)
    assert np.allclose(rates(given, steps), expected, rtol=1e-12)


def test_step_falls_where_simmims_schedule_does() -> None:
    """800 epochs of 10 steps: 10 epochs of warm-up, x 0.1 from the first step of epoch 700 on."""
    found = rates(StepConfig(warmup_lr=5e-3), 8000)
    assert [found[0], found[50]] == pytest.approx([5e-3, (5e-3 + 1) / 2])
    assert [set(found[100:7000]), set(found[7000:])] == [{1.0}, {0.1}]


def test_step_with_several_milestones_multiplies_at_each() -> None:
    found = rates(StepConfig(warmup_fraction=0.0, milestones=(0.25, 0.5, 0.9), factor=0.5), 40)
    expected, rate = [], 1.0
    for step in range(40):
        rate = rate * 0.5 if step in (10, 20, 36) else rate
        expected.append(rate)
    assert found == expected


def test_constant_cools_down_linearly_or_by_a_root() -> None:
    linear = rates(ConstantConfig(warmup_steps=4, cooldown_steps=4, cooldown="linear"), 12)
    assert linear == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    root = rates(ConstantConfig(cooldown_steps=4, final_lr=0.2), 6)
    assert root == pytest.approx([1, 1, 1, 0.2 + 0.8 * 0.5, 0.2 + 0.8 * (1 - 0.70710678), 0.2 + 0.8 * (1 - 0.8660254)])
    assert rates(ConstantConfig(), 3) == [1.0, 1.0, 1.0]


def test_cosine_is_the_real_part_of_a_turning_arrow() -> None:
    steps, warmup = 48, 12
    turn, arrow, expected = complex(math.cos(math.pi / 36), math.sin(math.pi / 36)), complex(1), []
    for _ in range(steps - warmup):
        expected.append(0.1 + 0.9 * (1 + arrow.real) / 2)
        arrow *= turn
    found = rates(CosineConfig(warmup_fraction=0.25, final_lr=0.1, warmup_lr=0.0), steps)
    assert found[:warmup] == pytest.approx([step / 12 for step in range(12)])
    assert found[warmup:] == pytest.approx(expected, rel=1e-9)


SHAPES = st.sampled_from(["linear", "sqrt"])
COOLED = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["rsqrt", "constant"]),
        "warmup_steps": st.integers(0, 40),
        "cooldown_steps": st.integers(0, 60),
        "cooldown": SHAPES,
    }
)
FRACTIONAL = st.one_of(
    st.fixed_dictionaries({"kind": st.just("cosine"), "warmup_fraction": st.floats(0, 0.9)}),
    st.fixed_dictionaries(
        {"kind": st.just("step"), "warmup_fraction": st.floats(0, 0.8), "factor": st.floats(0.01, 1)}
    ),
)


@given(data=st.one_of(COOLED, FRACTIONAL), steps=st.integers(100, 300))
def test_every_schedule_rises_to_its_peak_and_falls_from_there(data: dict[str, Any], steps: int) -> None:
    schedule: ScheduleConfig = build_config(SCHEDULES[data["kind"]], data)
    found = rates(schedule, steps, PEAK)
    top = found.index(max(found))
    assert all(0 <= rate <= PEAK * (1 + 1e-12) for rate in found)
    assert max(found) == pytest.approx(PEAK) or data.get("warmup_steps", 0) + data.get("cooldown_steps", 0) == steps
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(found[: top + 1]))
    assert all(a * (1 + 1e-12) >= b for a, b in itertools.pairwise(found[top:]))


@given(data=COOLED, steps=st.integers(100, 200), later=st.integers(1, 1000))
def test_steps_before_a_cooldown_do_not_depend_on_the_length_of_the_run(
    data: dict[str, Any], steps: int, later: int
) -> None:
    """So a run may be cooled down at any of its checkpoints, and its longer sibling goes on unchanged."""
    schedule: ScheduleConfig = build_config(SCHEDULES[data["kind"]], data)
    begins = steps - data["cooldown_steps"]
    assert rates(schedule, steps)[: begins + 1] == rates(schedule, steps + later)[: begins + 1][:steps]


def test_what_cannot_be_is_refused() -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("rsqrt", {"timescale_steps": 0}, "timescale_steps must be at least 1, got 0"),
        ("rsqrt", {"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ("constant", {"cooldown_steps": -5}, "cooldown_steps must be at least 0, got -5"),
        ("constant", {"final_lr": -1.0}, "final_lr must be at least 0 and finite"),
        ("step", {"milestones": [0.9, 0.5]}, r"milestones must rise and lie between .* got \[0.9, 0.5\]"),
        ("step", {"milestones": [1.0]}, "milestones must rise"),
        ("step", {"warmup_fraction": 0.9}, "milestones must rise"),
        ("step", {"factor": 0.0}, "factor must be above 0 and finite, got 0.0"),
        ("constant", {"cooldown": "cosine"}, "linear"),
        ("constant", {"warmup_fraction": 0.1}, "unknown key"),
    ]
    for kind, data, message in wrong:
        with pytest.raises(ValueError, match=message):
            build_config(SCHEDULES[kind], data)


def test_a_run_without_room_for_warm_up_and_cooldown_is_refused() -> None:
    for schedule in (RsqrtConfig(), ConstantConfig(warmup_steps=10_000, cooldown_steps=50_000)):
        assert isinstance(schedule, ChecksSteps)
        schedule.check(60_000)
        with pytest.raises(ValueError, match="do not fit into 59,999 steps"):
            schedule.check(59_999)


def test_every_schedule_of_the_table_is_plain_data_and_back() -> None:
    for kind, cls in SCHEDULES.items():
        schedule = build_config(cls, {})
        assert schedule.kind == kind
        assert build_config(cls, config_to_dict(schedule)) == schedule

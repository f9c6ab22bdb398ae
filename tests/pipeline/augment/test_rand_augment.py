"""What RandAugment draws: timm's operations and levels, as often and as strong as they should be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline import RandAugment
from headrace.pipeline.augment.rand_augment import NAMES, RandDraw, affine_of, argument


@pytest.fixture
def timms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`timms(name, magnitude, sign, increasing)`: the argument that timm makes of a magnitude."""
    from timm.data import auto_augment as timm

    monkeypatch.setattr(timm.random, "random", lambda: sides[0])
    sides = [0.0]

    def level(name: str, magnitude: float, sign: int, *, increasing: bool) -> float:
        sides[0] = 0.9 if sign < 0 else 0.1
        known = timm._RAND_INCREASING_TRANSFORMS if increasing else timm._RAND_TRANSFORMS
        (theirs,) = (one for one in known if one in (name, f"{name}Increasing"))
        make = timm.LEVEL_TO_ARG[theirs]
        return float(make(magnitude, {})[0]) if make else 0.0

    return level


@pytest.mark.parametrize("increasing", [True, False])
def test_operations_and_their_levels_are_timms(timms: Any, increasing: bool) -> None:
    from timm.data import auto_augment as timm

    assert [name.removesuffix("Increasing") for name in timm._RAND_INCREASING_TRANSFORMS] == list(NAMES)
    config = RandAugment(increasing=increasing)
    for name in NAMES:
        for magnitude in (0.0, 0.3, 2.5, 5.0, 7.49, 9.0, 9.99, 10.0):
            for sign in (-1, 1):
                ours = argument(config, name, magnitude, sign)
                assert ours == pytest.approx(timms(name, magnitude, sign, increasing=increasing), abs=1e-12), name


@given(position=st.integers(0, 2**60), key=st.integers(0, 2**64 - 1), count=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_a_batch_draws_what_each_position_does(position: int, key: int, count: int) -> None:
    draw = RandDraw(key, RandAugment(num_ops=count), "bicubic")
    at = np.array([position, position + 1, 7])
    assert draw.of_rows(at) == [draw(one) for one in at.tolist()]
    assert draw.of_rows(at, np.array([True, False, True])) == [draw(position), (), draw(7)]
    assert len(draw(position)) <= count


def test_operations_come_as_often_and_as_strong_as_they_should() -> None:
    config = RandAugment(magnitude=5.0, magnitude_std=0.5)
    done = [one for row in RandDraw(3, config, "bicubic").of_rows(np.arange(15_000)) for one in row]
    counts = np.array([sum(one.name == name for one in done) for name in NAMES])
    assert abs(counts.sum() / 30_000 - 0.5) < 0.01
    assert (abs(counts / counts.sum() - 1 / 15) < 0.006).all()
    turned = np.array([one.value for one in done if one.name == "Rotate"]) / 3  # back to magnitudes
    assert abs((turned > 0).mean() - 0.5) < 0.05
    assert abs(np.abs(turned).mean() - 5) < 0.05
    assert abs(np.abs(turned).std() - 0.5) < 0.05
    steady = RandDraw(3, RandAugment(magnitude=5.0, magnitude_std=0.0, probability=1.0), "bicubic").of_rows(
        np.arange(99)
    )
    assert {len(row) for row in steady} == {2}
    assert {abs(one.value) for row in steady for one in row if one.name == "Rotate"} == {15.0}


def test_a_rotation_of_nothing_moves_nothing() -> None:
    from headrace.pipeline.augment.rand_augment import Operation

    assert affine_of(Operation("Rotate", 0.0), 8) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ops": 0}, "num_ops must be 1..8, got 0"),
        ({"magnitude": 11.0}, "magnitude must be 0..10, got 11.0"),
        ({"magnitude_std": float("inf")}, "magnitude_std must be 0..10, got inf"),
        ({"probability": 0.0}, "probability must be over 0 to 1, got 0.0"),
        ({"translate": -0.1}, "translate must be 0..1, got -0.1"),
        ({"fill": (0, 0, 256)}, r"fill must be levels of 0..255, got \(0, 0, 256\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandAugment(**change)

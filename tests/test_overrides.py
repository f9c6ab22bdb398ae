"""Promises of dotted overrides."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from headrace.config import build_config
from headrace.config_types import OneOf
from headrace.overrides import apply_overrides


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    step: Literal["cut"] = "cut"
    name: str = "cut"
    at: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    step: Literal["test"] = "test"
    name: str
    at: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    steps: tuple[Annotated[Cut | Filter, OneOf("step", lambda: {"cut": Cut, "test": Filter})], ...]


LIST = {"steps": [{"step": "test", "name": "size"}, {"step": "cut"}, {"step": "test", "name": "words"}]}


@pytest.mark.parametrize(("word", "place"), [("cut", 1), ("words", 2), ("0", 0)])
def test_an_item_of_a_list_is_addressed_by_place_name_or_tag(word: str, place: int) -> None:
    changed = build_config(Steps, apply_overrides(LIST, [f"steps.{word}.at=0.25"], Steps))
    assert [step.at for step in changed.steps] == [0.25 if number == place else 0.5 for number in range(3)]
    whole = build_config(Steps, apply_overrides(LIST, [f"steps.{word}={{step: cut, name: new}}"], Steps))
    assert whole.steps[place] == Cut(name="new")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("test", r"override: steps.test: 'test' may be 0 \(size\), 2 \(words\); write its number or its name"),
        ("cuts", r"override: steps.cuts: no item is 'cuts'; there are 0 \(size\), 1 \(cut\), 2 \(words\)"),
        ("3", r"override: steps.3: no item is '3'; there are 0 \(size\), 1 \(cut\), 2 \(words\)"),
    ],
)
def test_a_word_that_fits_no_item_or_several_is_refused_with_those_there_are(word: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        apply_overrides(LIST, [f"steps.{word}.at=0.25"], Steps)


@pytest.mark.parametrize("override", ["lr", "=3", "steps.7.x=1", "name.deep=1", "urls.0.x=3"])
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match="override"):
        apply_overrides({"name": "a", "steps": [], "urls": ["list.csv"]}, [override])


def test_a_value_that_is_nested_too_deep_is_a_mistake_of_the_user() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        apply_overrides({}, ["name=" + "[" * 20_000])

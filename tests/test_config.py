"""Promises of the strict config reader."""

import re
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest
from pydantic import Discriminator

from headrace.config import build_config, config_to_dict, load_config
from headrace.config_types import Extended, OneOf


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    step: Literal["keep"]
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    step: Literal["rule"]
    sql: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    name: str
    unsafe: Literal["remove", "off"] = "remove"
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: tuple[Annotated[Keep | Rule, Discriminator("step")], ...] = ()
    extra: Optimizer | None = None


def _load(tmp_path: Path, text: str, *overrides: str) -> Run:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(Run, path, overrides)


def test_yaml_becomes_typed_and_frozen(tmp_path: Path) -> None:
    run = _load(tmp_path, "name: a\nunsafe: off\noptimizer: {lr: 1e-4}\nsteps: [{step: keep, fraction: 0.15}]\n")
    assert run == Run(name="a", unsafe="off", optimizer=Optimizer(lr=1e-4), steps=(Keep(step="keep", fraction=0.15),))
    with pytest.raises(AttributeError):
        run.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam: a", "unknown key 'nam'; did you mean 'name'? known keys here: name, unsafe, optimizer, steps, extra"),
        ("name: a\noptimizer: {rate: 1}", "unknown key 'optimizer.rate'; known keys here: lr, betas"),
        ("name: a\nextra: {rate: 1}", "unknown key 'extra.rate'; known keys here: lr, betas"),
        ("name: a\nsteps: [{step: keep, q: 1}]", "unknown key 'steps.0.q'; known keys here: step, fraction"),
        ("name: a\nsteps: [{step: drop}]", "steps.0.step: unknown 'drop'; known: keep, rule"),
        ("name: a\nsteps: [{step: keep, fraction: 2}]", "fraction must be in"),
        ("name: 3", "name: input should be a valid string, got 3"),
        ("name: a\nunsafe: remov", "or 'off', got 'remov'; did you mean 'remove'?"),
        ("name: a\nsteps: [{step: rul}]", "steps.0.step: unknown 'rul'; did you mean 'rule'? known: keep, rule"),
        ("name: a\noptimizer: {lr: '1e-3'}", "optimizer.lr: input should be a valid number"),
        ("unsafe: off", "missing key 'name'"),
        ("name: a\nname: b", "line 2: key 'name' is given twice"),
        ("name: &a b\nunsafe: *a", "YAML aliases are not accepted"),
        ("name: [", "not valid YAML"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        _load(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_config(Run, tmp_path / "none.yaml")


def test_overrides_reach_into_mappings_and_lists(tmp_path: Path) -> None:
    run = _load(tmp_path, "name: a\nsteps: [{step: keep}]\n", "optimizer.lr=1e-2", "steps.0.fraction=0.25", "name=b")
    assert (run.optimizer.lr, run.steps[0].fraction, run.name) == (1e-2, 0.25, "b")


def test_a_config_survives_the_way_to_plain_data_and_back() -> None:
    run = build_config(Run, {"name": "a", "steps": [{"step": "rule", "sql": "x > 1"}], "extra": {"lr": 3}})
    assert build_config(Run, config_to_dict(run)) == run


def test_the_known_keys_are_listed_once_for_all_unknown_ones(tmp_path: Path) -> None:
    told = (
        r"; unknown keys 'nam' \(did you mean 'name'\?\), 'step' \(did you mean 'steps'\?\); "
        r"known keys here: name, [a-z, ]*$"
    )
    with pytest.raises(ValueError, match=told) as refused:
        _load(tmp_path, "nam: a\nstep: []\n")
    assert str(refused.value).count("known keys here") == 1


class Step(Protocol):
    """What the dataclasses of an open field have in common."""


STEPS: dict[str, type] = {"keep": Keep, "rule": Rule}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    first: Annotated[Step, OneOf("step", lambda: STEPS)]
    steps: tuple[Annotated[Step, OneOf("step", lambda: STEPS)], ...] = ()


def test_a_field_of_one_of_several_dataclasses_is_read_and_written_back() -> None:
    data = {"first": {"step": "rule", "sql": "a > 1"}, "steps": [{"step": "keep", "fraction": 0.25}]}
    plan = build_config(Plan, data)
    assert plan == Plan(first=Rule(step="rule", sql="a > 1"), steps=(Keep(step="keep", fraction=0.25),))
    assert config_to_dict(plan) == data


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "moco"}, "first.step: unknown 'moco'; known: keep, rule"),
        ({"sql": "a"}, "missing key 'first.step'"),
        ({"step": "rule", "sq": "a"}, "unknown key 'first.sq'; did you mean 'sql'? known keys here: step, sql"),
        ({"step": "keep", "fraction": 2}, "first: fraction must be in (0, 1], got 2.0"),
    ],
)
def test_a_wrong_choice_names_the_key_and_what_is_known(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_config(Plan, {"first": step})


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    step: Annotated[Step, OneOf("step", lambda: {"keep": KeepByDefault}, default="keep")]


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepByDefault:
    step: Literal["keep"] = "keep"
    fraction: float = 0.5


def test_a_choice_with_a_default_may_be_left_out_and_is_written_back() -> None:
    run = build_config(Chosen, {"step": {"fraction": 0.25}})
    assert run == Chosen(step=KeepByDefault(fraction=0.25))
    assert config_to_dict(run) == {"step": {"step": "keep", "fraction": 0.25}}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "moco"}, "step.step: unknown 'moco'; known: keep"),
        ({"sq": 1}, "unknown key 'step.sq'; known keys here: step, fraction"),
        ({"fraction": "a"}, "step.fraction: input should be a valid number, got 'a'"),
        (3, "step: expected a mapping, got 3"),
    ],
)
def test_a_mistake_in_a_choice_with_a_default_is_named_by_what_was_written(step: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_config(Chosen, {"step": step})


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused_everywhere(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lr: input should be a finite number, got"):
        _load(tmp_path, f"name: a\noptimizer: {{lr: {value}}}\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extendable:
    name: str = "x"


def test_a_dataclass_made_when_a_config_is_loaded_knows_its_keys() -> None:
    made = make_dataclass("Made", [("more", int, 1)], bases=(_Extendable,), frozen=True, kw_only=True)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Whole:
        part: Annotated[_Extendable, Extended(lambda: made)]

    assert build_config(Whole, {"part": {"more": 3}}).part == made(more=3)
    with pytest.raises(ValueError, match=r"unknown key 'part.mor'; did you mean 'more'\? known keys here: name, more"):
        build_config(Whole, {"part": {"mor": 3}})

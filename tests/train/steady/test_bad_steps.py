"""A bad step costs itself, and never what was trained before it."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headrace.train.config import RunConfig, SpikeConfig, load_run
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.checkpoint import list_checkpoints, load_checkpoint
from headrace.train.runs.folder import BadStepError, NonFiniteError, SpikeError
from headrace.train.runs.metrics import read_metrics
from headrace.train.steady.bad_steps import (
    BUDGET_STEPS,
    Norms,
    Skipped,
    StepWatch,
    first_layer_norm,
    watch_from_state,
    watch_to_state,
    z_score,
)
from headrace.train.steady.journal import read_journal

KEPT = ("event", "step", "loss", "lr", "grad_norm", "batch_digest", "positions", "skipped_steps")
Spoil = Callable[..., None]


def lines(config: RunConfig) -> list[dict[str, Any]]:
    """The lines of a run without what time and machine decide."""
    read = read_metrics(Path(config.out) / "metrics.jsonl")
    return [{name: line[name] for name in KEPT if name in line} for line in read]


def last_weights(config: RunConfig) -> bytes:
    newest = list_checkpoints(Path(config.out) / "checkpoints")[-1]
    return b"".join((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Return a function that multiplies the loss of the batches at given steps (0-based); no steps = none."""
    forward = Aim.forward

    def at(*steps: int, factor: float = float("nan"), global_batch: int = 16) -> None:
        def spoiled(self: Aim, batch: Any) -> Any:
            loss, report = forward(self, batch)
            bad = self.training and int(batch.position[0]) // global_batch in steps
            return (loss * factor if bad else loss), report

        monkeypatch.setattr(Aim, "forward", spoiled)

    return at


def test_a_stop_saves_the_weights_before_the_bad_step(run_file: Callable[..., Path], spoil: Spoil) -> None:
    path = run_file(validation=None, checkpoint={"every": 100})
    whole = load_run(path, ["out=" + str(path.parent / "whole")])
    train(whole)
    config = load_run(path)
    spoil(5)
    with pytest.raises(
        NonFiniteError, match=r"step 5: loss nan.*--step 6;.*saved at step 5.*on_non_finite=skip.*changes_at: \{5"
    ):
        train(config)
    assert [path.name for path in list_checkpoints(Path(config.out) / "checkpoints")] == ["00000005"]
    spoil()
    assert train(config).finished  # the fault was of the moment: nothing is lost
    assert last_weights(config) == last_weights(whole)
    assert lines(config) == lines(whole)


def test_the_same_fault_again_stops_again_and_skip_passes_it(run_file: Callable[..., Path], spoil: Spoil) -> None:
    path = run_file(validation=None)
    spoil(4)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="saved at step 4"):
            train(load_run(path))
    assert train(load_run(path, ["on_non_finite=skip"])).finished
    found = [line for line in read_metrics(Path(load_run(path).out) / "metrics.jsonl") if line["event"] == "skipped"]
    assert [(line["step"], line["reason"], line["positions"]) for line in found] == [(5, "non_finite", [64, 80])]


def test_a_skipped_step_moves_nothing_and_is_recorded(run_file: Callable[..., Path], spoil: Spoil) -> None:
    config = load_run(run_file(validation=None, checkpoint={"every": 1, "keep": 20}, on_non_finite="skip"))
    spoil(4, 9)
    assert train(config).finished
    folder = Path(config.out) / "checkpoints"
    for name in ("model.safetensors", "optimizer.safetensors"):
        before, after = (load_file(folder / f"{step:08d}" / name) for step in (4, 5))
        assert all(torch.equal(before[key], after[key]) for key in before)
    state = json.loads((folder / "00000012" / "state.json").read_text())
    assert [one["step"] for one in state["watch"]["skipped"]] == [5, 10]
    assert state["watch"]["skipped"][0]["positions"] == [64, 80]
    found = read_metrics(Path(config.out) / "metrics.jsonl")
    skipped = [line for line in found if line["event"] == "skipped"]
    assert [line["step"] for line in skipped] == [5, 10]
    record = json.loads((Path(config.out) / "nonfinite-00000004-rank0.json").read_text())
    assert skipped[0]["samples"] == [f"pictures/{key}" for key in record["key"]]
    digests = {line["step"]: line["batch_digest"] for line in found if line["event"] == "train"}
    assert digests[5] == skipped[0]["batch_digest"]
    assert [line.get("skipped_steps") for line in found if line["event"] == "train"] == [None] * 4 + [1] * 5 + [2] * 3


def test_a_skip_is_the_same_however_often_the_run_was_cut(run_file: Callable[..., Path], spoil: Spoil) -> None:
    """Also where the fault does not come again: a GPU that computed wrongly once."""
    changes = {6: {"optimizer.lr": 0.0005}}
    path = run_file(validation=None, checkpoint={"every": 3, "keep": 10}, on_non_finite="skip", changes_at=changes)
    whole, cut = load_run(path), load_run(path, ["out=" + str(path.parent / "cut")])
    spoil(4, 7)
    train(whole)

    def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
        def stop(line: dict[str, Any]) -> None:
            if line["event"] == "train" and line["step"] == step:
                raise KeyboardInterrupt  # as hard as a kill: nothing is saved

        return stop

    for step in (5, 8):
        with pytest.raises(KeyboardInterrupt):
            train(cut, on_metrics=stop_at(step))
    spoil()
    assert train(cut).finished
    assert lines(cut) == lines(whole)
    assert last_weights(cut) == last_weights(whole)
    journal = (Path(cut.out) / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in journal] == [5, 8]


def test_the_journal_holds_for_the_same_config_alone(run_file: Callable[..., Path], spoil: Spoil) -> None:
    path = run_file(validation=None, steps=3, on_non_finite="skip")
    spoil(1)
    out = train(load_run(path)).out
    spoil()
    for name in ("checkpoints", "metrics.jsonl"):
        (out / name).rename(out / f"old-{name}")
    train(load_run(path, ["seed=4"]))
    assert all(line["event"] == "train" for line in read_metrics(out / "metrics.jsonl"))


def test_the_budget_ends_a_run_that_skips_too_much(run_file: Callable[..., Path], spoil: Spoil) -> None:
    config = load_run(run_file(validation=None, on_non_finite="skip", max_skipped_steps=2))
    spoil(2, 4, 6)
    with pytest.raises(
        NonFiniteError, match=r"step 6: .*max_skipped_steps=2 of the latest 1000 are spent.*at step 6.*with max_skip"
    ):
        train(config)
    with pytest.raises(NonFiniteError, match="step 6"):
        train(config)
    assert train(dataclasses.replace(config, max_skipped_steps=3)).finished


def test_weights_that_are_spoiled_already_are_not_saved(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run(run_file(validation=None, checkpoint={"every": 100}))
    after = Aim.after_step

    def spoiled(self: Aim) -> None:
        after(self)
        with torch.no_grad():
            next(self.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Aim, "after_step", spoiled)
    with pytest.raises(NonFiniteError, match="not finite since a step before"):
        train(config)
    assert not (Path(config.out) / "checkpoints").exists()


def test_a_spike_is_skipped_or_stops_and_is_off_by_default(run_file: Callable[..., Path], spoil: Spoil) -> None:
    options = {"validation": None, "spike": {"window": 4, "z": 6.0}, "checkpoint": {"every": 3, "keep": 10}}
    path = run_file(**options)
    spoil(7, factor=1e4)
    train(load_run(path, ["out=" + str(path.parent / "off")]))
    with pytest.raises(SpikeError, match=r"step 7: gradient norm .* standard deviations above the last 4 .*at step 7"):
        train(load_run(path, ["on_spike=stop", "out=" + str(path.parent / "stop")]))
    config = load_run(path, ["on_spike=skip"])
    train(config)
    (line,) = (line for line in lines(config) if line["event"] == "skipped")
    assert (line["step"], line["positions"]) == (8, [112, 128])
    again = load_run(path, ["on_spike=skip", "out=" + str(path.parent / "again")])
    spoil(7, factor=1e4)

    def stop(line: dict[str, Any]) -> None:
        if line["event"] == "train" and line["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, on_metrics=stop)
    train(again)  # the window comes from the checkpoint: three norms more and it is full
    assert lines(again) == lines(config)
    assert last_weights(again) == last_weights(config)


def test_a_spike_of_the_first_layer_alone_counts() -> None:
    watch, config = StepWatch(), _config(window=4)
    for _ in range(4):
        assert watch.judge(config, loss=1.0, norms=Norms(1.0, 0.1)) is None
        watch.accept(config, Norms(1.0, 0.1))
    fault = watch.judge(config, loss=1.0, norms=Norms(1.0, 0.5))
    assert fault is not None
    assert "first layer" in fault.text
    assert watch.judge(config, loss=1.0, norms=Norms(0.1, 0.01)) is None  # small is no spike
    assert watch.judge(config, loss=1.0, norms=Norms(1.1, 0.11)) is None


def _config(window: int) -> RunConfig:
    config = object.__new__(RunConfig)
    for name, value in {"on_spike": "skip", "spike": SpikeConfig(window=window), "on_non_finite": "skip"}.items():
        object.__setattr__(config, name, value)
    object.__setattr__(config, "max_skipped_steps", 2)
    return config


def test_the_budget_counts_the_latest_steps_alone() -> None:
    config, watch = _config(4), StepWatch()
    for step in (1, 2):
        watch.skipped.append(
            Skipped(
                step=step,
                reason="spike",
                loss=1.0,
                grad_norm=None,
                positions=(0, 1),
                batch_digest=1,
                missing=0,
            )
        )
    assert not watch.within_budget(config, 2)
    assert not watch.within_budget(config, BUDGET_STEPS - 1)
    assert watch.within_budget(config, BUDGET_STEPS)
    assert watch_from_state(json.loads(json.dumps(watch_to_state(watch)))) == watch
    with pytest.raises(ValueError, match="cannot be read"):
        watch_from_state({"skipped": [{"step": 1}], "recent": []})


def test_a_z_score_is_of_logarithms() -> None:
    assert z_score([1.0, 1.0, 1.0], 1.0) == 0
    assert z_score([1.0, 10.0], 10.0) == pytest.approx(1.0)
    assert z_score([1.0, 1.0], 2.718281828) == pytest.approx(20.0)  # a spread of 0 counts as 5 %


def test_the_first_layer_is_the_kernel_that_sees_pixels() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv2d(3, 4, 2))
    assert first_layer_norm(module, torch.device("cpu")) == 0  # no gradient yet
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    kernel = module[1].weight
    kernel.grad = torch.ones_like(kernel)
    assert first_layer_norm(module, torch.device("cpu")) == pytest.approx(kernel.numel() ** 0.5)


def test_what_a_checkpoint_says_of_skipped_steps_is_checked(run_file: Callable[..., Path], spoil: Spoil) -> None:
    config = load_run(run_file(validation=None, steps=3, on_non_finite="skip"))
    train(config)
    path = list_checkpoints(Path(config.out) / "checkpoints")[-1]
    assert load_checkpoint(path).progress.watch == StepWatch()
    spoil(0)
    again = dataclasses.replace(config, out=config.out + "-2")
    train(again)
    state = list_checkpoints(Path(again.out) / "checkpoints")[-1] / "state.json"
    data = json.loads(state.read_text())
    endless = {**data["watch"]["skipped"][0], "step": math.inf}
    for watch in ({"skipped": 3}, {"skipped": [endless], "recent": []}):
        state.write_text(json.dumps(data | {"watch": watch}))
        with pytest.raises(ValueError, match=r"damaged checkpoint: what it says of skipped steps"):
            load_checkpoint(state.parent)
    assert read_journal(json.dumps(endless | {"config": ""})) == {}


def test_bad_steps_are_value_errors() -> None:
    assert issubclass(NonFiniteError, BadStepError)
    assert issubclass(SpikeError, BadStepError)
    assert issubclass(BadStepError, ValueError)

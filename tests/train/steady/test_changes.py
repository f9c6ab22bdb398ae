"""What is ahead of a run may be planned anew; what is behind it may not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.runs.checkpoint import list_checkpoints
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.steady.changes import period_at, periods, planned_changes, planned_mixture

KEPT = ("event", "step", "loss", "lr", "grad_norm", "batch_digest", "changes")
CHANGES = {
    4: {"optimizer.lr": 0.0005, "clip_grad_norm": 0.5},
    7: {"optimizer.weight_decay": 0.2, "schedule": {"final_lr": 1e-5}},
    9: {"steps": 15},
}


def lines(config: RunConfig) -> list[dict[str, Any]]:
    read = read_metrics(Path(config.out) / "metrics.jsonl")
    return [{name: line[name] for name in KEPT if name in line} for line in read]


def last_weights(config: RunConfig) -> bytes:
    newest = list_checkpoints(Path(config.out) / "checkpoints")[-1]
    return b"".join((newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors"))


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def stop(line: dict[str, Any]) -> None:
        if line["event"] == "train" and line["step"] == step:
            raise KeyboardInterrupt  # as hard as a kill: nothing is saved

    return stop


def test_a_planned_run_is_the_same_however_often_it_was_cut_and_whenever_it_was_planned(
    run_file: Callable[..., Path],
) -> None:
    planned = load_run(run_file("planned", validation=None, changes_at=CHANGES))
    train(planned)
    assert [line["step"] for line in lines(planned) if line["event"] == "change"] == [4, 7, 9]
    assert lines(planned)[-1]["step"] == 15
    later: dict[int, dict[str, Any]] = {}
    cut = load_run(run_file("cut", validation=None))
    for at, stops in ((4, 4), (7, 8), (9, None)):
        later[at] = CHANGES[at]
        if stops is not None:
            with pytest.raises(KeyboardInterrupt):  # the change is planned when its step is almost there
                train(load_run(run_file("cut", validation=None, changes_at=later)), on_metrics=stop_at(stops))
    cut = load_run(run_file("cut", validation=None, changes_at=later))
    train(cut)
    assert lines(cut) == lines(planned)
    assert last_weights(cut) == last_weights(planned)


def test_each_number_holds_from_its_step_on(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file("a", validation=None, changes_at=CHANGES))
    plain = load_run(run_file("b", validation=None))
    train(config)
    train(plain)
    rates = {line["step"]: line["lr"] for line in lines(config) if line["event"] == "train"}
    found = periods(config)
    for step, rate in rates.items():
        now = period_at(found, step - 1).config
        assert rate == now.schedule.rate(step - 1, steps=now.steps, peak=now.optimizer.lr)
    assert rates[4] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 3 / 12)) / 2)
    assert rates[5] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 4 / 12)) / 2)
    before = [line for line in lines(config) if line["event"] == "train" and line["step"] <= 4]
    assert before == [line for line in lines(plain) if line["step"] <= 4]
    (change,) = (line["changes"] for line in lines(config) if line["step"] == 7 and line["event"] == "change")
    assert change == {"optimizer.weight_decay": [0.05, 0.2], "schedule.final_lr": [0.0, 1e-5]}


def test_a_finished_run_is_made_longer(run_file: Callable[..., Path]) -> None:
    short = load_run(run_file(steps=6, validation=None))
    train(short)
    path = run_file(steps=6, validation=None, changes_at={6: {"steps": 9}})
    assert load_run(path).total_steps == 9
    result = train(load_run(path))
    assert (result.step, result.finished) == (9, True)
    with pytest.raises(ValueError, match=r"steps: was 6, is 9; .*may change: changes_at: \{9: \{steps: \.\.\.\}\}"):
        train(load_run(run_file(steps=9, validation=None)))


def test_the_past_is_not_rewritten(run_file: Callable[..., Path]) -> None:
    done = {"validation": None, "steps": 12, "changes_at": {4: {"optimizer.lr": 0.0005}}}
    train(load_run(run_file(**done)))
    for changes in ({}, {4: {"optimizer.lr": 0.0004}}, {3: {"optimizer.lr": 0.1}, **done["changes_at"]}):  # type: ignore[dict-item]
        with pytest.raises(ValueError, match=r"changes_at\.[34]: was .*and 12 steps are done; .*from step 12 on"):
            train(load_run(run_file(**{**done, "changes_at": changes})))
    with pytest.raises(ValueError, match=r"optimizer\.lr: was 0\.001, is 0\.5; .*changes_at: \{12: \{optimizer\.lr:"):
        train(load_run(run_file(**done), ["optimizer.lr=0.5"]))


def test_the_plan_ahead_is_free(run_file: Callable[..., Path]) -> None:
    ahead = {"validation": None, "changes_at": {10: {"optimizer.lr": 0.5}}}
    with pytest.raises(KeyboardInterrupt):
        train(load_run(run_file(**ahead)), on_metrics=stop_at(7))
    config = load_run(run_file(validation=None))
    plain = load_run(run_file("plain", validation=None))
    train(config)
    train(plain)
    assert lines(config) == lines(plain)


def test_weights_of_a_mixture_become_segments(
    run_file: Callable[..., Path], pictures: str, other_pictures: str
) -> None:
    path = run_file(validation=None)
    data = yaml.safe_load(path.read_text())
    shared = {"shuffle_window": 32, "chunk_samples": 4}
    sources = [{"name": "pictures", "url": pictures, **shared}, {"name": "other.v2", "url": other_pictures, **shared}]
    data["mixture"]["sources"] = sources
    changes = {5: {"mixture.weights": {"other.v2": 3.0}}, 8: {"mixture": {"weights": {"pictures": 0}}}}
    path.write_text(yaml.safe_dump({**data, "changes_at": changes}))
    config = load_run(path)
    assert [(one.start, one.weights) for one in planned_mixture(config).segments] == [
        (80, {"other.v2": 3.0}),
        (128, {"pictures": 0.0}),
    ]
    by_hand = {**data, "out": config.out + "-hand"}
    by_hand["mixture"] = {
        **data["mixture"],
        "segments": [{"start": 80, "weights": {"other.v2": 3.0}}, {"start": 128, "weights": {"pictures": 0.0}}],
    }
    path.write_text(yaml.safe_dump(by_hand))
    train(config)
    train(load_run(path))
    assert [line for line in lines(config) if line["event"] == "train"] == lines(load_run(path))
    assert len([line for line in lines(config) if line["event"] == "change"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": {"steps": 3}}, r"'x' is not a step"),
        ({0: {"steps": 20}}, r"'0' is not a step"),
        ({3: {}}, r"changes_at\.3: it changes nothing"),
        ({3: {"seed": 1}}, r"changes_at\.3: seed cannot change on the way; what can: clip_grad_norm, steps, optimizer"),
        ({3: {"optimizer.kind": "lamb"}}, r"optimizer\.kind cannot change"),
        ({3: {"optimizer.rate": 1.0}}, r"changes_at\.3: unknown key 'optimizer\.rate'; known keys here: lr"),
        ({3: {"optimizer": {"lr": -1.0}}}, r"changes_at\.3: optimizer: lr and eps must be above 0"),
        ({3: {"optimizer.lr": "fast"}}, r"changes_at\.3: optimizer\.lr: "),
        ({3: {"mixture.segments": []}}, r"planned by position"),
        ({3: {"mixture.weights": {"nobody": 1}}}, r"no source is named nobody"),
        ({3: {"mixture.weights": 3}}, r"must give a number for each name"),
        ({3: {"schedule.kind": "no"}}, r"changes_at\.3: schedule\.kind: unknown 'no'; known: cosine"),
        ({13: {"optimizer.lr": 0.1}}, r"changes_at\.13: the run has 12 steps by then: it comes too late"),
        ({12: {"optimizer.lr": 0.1}}, r"changes_at\.12: the run has 12 steps"),
        ({5: {"steps": 4}}, r"changes_at\.5: .*too late"),
    ],
)
def test_what_cannot_be_planned_is_said_when_the_file_is_read(
    run_file: Callable[..., Path], changes: dict[Any, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_run(run_file(changes_at=changes))


def test_changes_are_given_on_the_command_line_too(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(validation=None), ["changes_at.4.optimizer.lr=0.0005", "changes_at.4.steps=20"])
    assert planned_changes(config.changes_at) == {4: {"optimizer.lr": 0.0005, "steps": 20}}
    assert any(line == "at step 4: optimizer.lr 0.001 -> 0.0005, steps 12 -> 20" for line in plan_run(config))
    assert config.total_steps == 20


def test_a_plan_comes_back_from_the_records(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(validation=None, steps=6, changes_at={3: {"optimizer.lr": 0.5}}))
    train(config)
    assert load_run(Path(config.out) / "run.yaml") == config
    state = json.loads((list_checkpoints(Path(config.out) / "checkpoints")[-1] / "state.json").read_text())
    assert state["config"]["changes_at"] == {"3": {"optimizer.lr": 0.5}}

"""The average of the weights: a plain recurrence, part of the run, and the same however the run is computed."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from headrace.train.config import RunConfig, load_run
from headrace.train.loop import train
from headrace.train.optim.ema import EmaConfig, WeightAverage
from headrace.train.runs.initial import initial_weights
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.plan import plan_run
from headrace.train.runs.weights import read_weights
from headrace.train.state import TrainState, open_state
from headrace.train.steady.changes import averaged_since, periods

EMA = {"decay": 0.9, "warmup": False}
EVERY_STEP = {"every": 1, "keep": 100}


def stored(config: RunConfig, step: int, kind: str = "model") -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / "checkpoints" / f"{step:08d}" / f"{kind}.safetensors")


def losses(config: RunConfig) -> list[dict[str, Any]]:
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    kept = ("event", "step", "loss", "ema_loss", "lr", "grad_norm")
    return [{name: line[name] for name in kept if name in line} for line in lines]


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def stop(line: dict[str, Any]) -> None:
        if line["event"] == "train" and line["step"] == step:
            raise KeyboardInterrupt  # as hard as a kill: nothing is saved

    return stop


def test_the_average_is_the_plain_recurrence_over_all_steps(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=6, ema={"decay": 0.5}, checkpoint=EVERY_STEP, validation=None))
    first = load_run(run_file("first", steps=1, optimizer={"lr": 1e-30, "weight_decay": 0.0}, validation=None))
    train(config)
    train(first)  # its weights are those of step 0, to the last bit but for 1e-30
    expected = {name: tensor.double() for name, tensor in stored(first, 1).items()}
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4]):
        weights, average = stored(config, step + 1), stored(config, step + 1, "ema")
        assert average.keys() <= weights.keys()
        for name, tensor in average.items():
            expected[name] = decay * expected[name] + (1 - decay) * weights[name].double()
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_the_decay_warms_up_unless_it_is_told_not_to() -> None:
    assert [EmaConfig().decay_at(n) for n in (0, 1, 10, 100)] == pytest.approx([0.1, 2 / 11, 11 / 20, 101 / 110])
    assert EmaConfig().decay_at(89_990) == 0.9999
    assert EmaConfig(warmup=False).decay_at(0) == 0.9999
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
            EmaConfig(decay=decay)


def test_an_average_changes_nothing_of_the_training(run_file: Callable[..., Path]) -> None:
    plain, averaged = load_run(run_file("plain", steps=6)), load_run(run_file("averaged", steps=6, ema=EMA))
    train(plain)
    train(averaged)
    without = [{name: line[name] for name in line if name != "ema_loss"} for line in losses(averaged)]
    assert without == losses(plain)
    for kind in ("model", "optimizer"):
        one, other = (
            (Path(config.out) / "checkpoints" / "00000006" / f"{kind}.safetensors").read_bytes()
            for config in (plain, averaged)
        )
        assert one == other
    state = json.loads((Path(plain.out) / "checkpoints" / "00000006" / "state.json").read_text())
    assert state["version"] == 3, "an older headrace can go on with a run that has no average"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_killed_run_has_the_average_of_one_that_was_not(run_file: Callable[..., Path], asynchronous: bool) -> None:
    given: dict[str, Any] = {"steps": 9, "ema": {"decay": 0.99}}
    given["checkpoint"] = {"every": 3, "keep": 9, "asynchronous": asynchronous}
    whole, cut = load_run(run_file("whole", **given)), load_run(run_file("cut", **given))
    train(whole)
    for at in (5, 7):
        with pytest.raises(KeyboardInterrupt):
            train(cut, on_metrics=stop_at(at))
    train(cut)
    assert losses(cut) == losses(whole)
    for name in ("checkpoints/00000009/ema.safetensors", "ema/model.safetensors", "model.safetensors"):
        one, other = load_file(Path(cut.out) / name), load_file(Path(whole.out) / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_a_skipped_step_leaves_the_average_as_it_is(run_file: Callable[..., Path]) -> None:
    skips = {"on_spike": "skip", "spike": {"window": 2, "z": 0.01}, "max_skipped_steps": 100}
    config = load_run(run_file(steps=9, ema=EMA, checkpoint=EVERY_STEP, validation=None, **skips))
    train(config)
    skipped = {line["step"] for line in read_metrics(Path(config.out) / "metrics.jsonl") if line["event"] == "skipped"}
    assert skipped
    for step in range(2, 10):
        before, after = stored(config, step - 1, "ema"), stored(config, step, "ema")
        assert all(torch.equal(before[name], after[name]) for name in before) == (step in skipped)


def test_accumulation_gives_the_average_of_the_large_batch(run_file: Callable[..., Path]) -> None:
    whole = load_run(run_file("whole", steps=4, ema=EMA))
    parts = load_run(run_file("parts", steps=4, ema=EMA, images_per_micro_batch=3))
    train(whole)
    train(parts)
    one, other = (load_file(Path(config.out) / "ema" / "model.safetensors") for config in (whole, parts))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4)


def test_validation_is_of_both_and_puts_the_weights_back(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=8, ema=EMA))
    train(config)
    lines = [line for line in losses(config) if line["event"] == "validation"]
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert lines[0]["ema_loss"] == lines[0]["loss"]
    assert all(line["ema_loss"] != line["loss"] for line in lines[1:])
    # What the average is worth is what a run that starts from it is worth.
    again = load_run(run_file("again", steps=1, init_from=f"{config.out}/ema"))
    train(again)
    assert losses(again)[1]["loss"] == pytest.approx(lines[-1]["ema_loss"], rel=1e-6)
    alone = load_run(run_file("alone", steps=4, ema=EMA), ["validation.of_average=false"])
    train(alone)
    assert not any("ema_loss" in line for line in losses(alone))


def test_every_reader_of_weights_takes_the_average_by_its_path(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=6, ema=EMA))
    train(config)
    out = Path(config.out)
    exported, newest = read_weights(out / "ema" / "model.safetensors"), read_weights(out / "ema")
    in_step = read_weights(out / "checkpoints" / "00000003" / "ema")
    assert (exported.step, newest.step, in_step.step) == (6, 6, 3)
    for name, tensor in newest.tensors.items():
        assert torch.equal(exported.tensors[name], tensor)
    weights = read_weights(out)
    assert any(not torch.equal(weights.tensors[name], tensor) for name, tensor in newest.tensors.items())
    kind = initial_weights(newest.model.build(), out / "checkpoints" / "00000003" / "ema", {})
    assert "average of a run" in str(kind)
    plain = load_run(run_file("plain", steps=3))
    train(plain)
    with pytest.raises(ValueError, match=r"00000003 has no average of the weights: its run had no `ema` at that step"):
        read_weights(Path(plain.out) / "ema")


def test_an_average_is_switched_on_and_off_on_the_way(
    run_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """It begins with the weights of its step; a run that planned it from the start has the same."""
    old = load_run(run_file("run", steps=6))
    train(old)
    with pytest.raises(ValueError, match=r"ema: was None, is \{.*\}; .*may change: changes_at: \{6: \{ema: \.\.\.\}\}"):
        train(load_run(run_file("run", steps=6, ema=EMA, changes_at={6: {"steps": 12}})))
    changes = {6: {"steps": 12, "ema": EMA}, 9: {"ema.decay": 0.5}, 11: {"ema": None}}
    caplog.set_level("INFO")
    later = load_run(run_file("run", steps=6, changes_at=changes, checkpoint=EVERY_STEP))
    train(later)
    assert "the average of the weights begins at step 6, with the weights of that step" in caplog.text
    planned = load_run(run_file("planned", steps=6, changes_at=changes, checkpoint=EVERY_STEP))
    train(planned)
    assert [averaged_since(periods(later), step) for step in (0, 5, 6, 9, 10, 11)] == [None, None, 6, 6, 6, None]
    for step in range(7, 11):
        one, other = stored(later, step, "ema"), stored(planned, step, "ema")
        assert all(torch.equal(one[name], other[name]) for name in one)
    weights, average = stored(planned, 6), stored(planned, 6, "ema")
    assert all(torch.equal(weights[name], tensor) for name, tensor in average.items())
    last = Path(later.out) / "checkpoints" / "00000012"
    assert not (last / "ema.safetensors").exists()
    assert not (Path(later.out) / "ema").exists()
    (change,) = (
        line
        for line in read_metrics(Path(planned.out) / "metrics.jsonl")
        if line.get("step") == 6 and line["event"] == "change"
    )
    assert change["changes"]["ema.decay"] == [None, 0.9]


def test_a_damaged_average_is_found_when_the_run_goes_on(run_file: Callable[..., Path]) -> None:
    config = load_run(run_file(steps=9, ema=EMA))
    with pytest.raises(KeyboardInterrupt):
        train(config, on_metrics=stop_at(7))
    reference = load_run(run_file("reference", steps=9, ema=EMA))
    train(reference)
    path = Path(config.out) / "checkpoints" / "00000006" / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    train(config)  # from step 3
    assert losses(config) == losses(reference)
    path.with_name("ema.safetensors").unlink()
    with pytest.raises(ValueError, match=r"ema\.safetensors"):
        read_weights(Path(config.out) / "checkpoints" / "00000006" / "ema")


def test_the_plan_counts_the_memory_of_an_average(run_file: Callable[..., Path]) -> None:
    from headrace.train.objectives.build import build_objective

    config = load_run(run_file(ema=EMA))
    objective = build_objective(config.objective, image_size=16, seed=0)
    size = 4 * sum(parameter.numel() for parameter in objective.parameters()) / 1e6
    (line,) = (line for line in plan_run(config) if line.startswith("memory:"))
    assert f"ema {size:.2f} MB" in line
    plain = next(line for line in plan_run(load_run(run_file("plain"))) if line.startswith("memory:"))
    assert "ema" not in plain


def test_weights_that_are_not_fp32_are_averaged_in_fp32_and_put_back() -> None:
    module = nn.Linear(4, 3, dtype=torch.bfloat16)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, first_step=2)
    assert average.tensors.keys() == {"weight"}
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    average.update(module, EmaConfig(decay=0.75, warmup=False), step=2)
    torch.testing.assert_close(average.tensors["weight"], 0.75 * before.float() + 0.25 * module.weight.detach().float())
    own = module.weight.detach().clone()
    with contextlib.suppress(RuntimeError), average.in_place_of(module):
        assert not torch.equal(module.weight, own)
        raise RuntimeError("inside")
    assert torch.equal(module.weight, own)


def test_a_state_without_an_average_has_none(run_file: Callable[..., Path]) -> None:
    from headrace.train.parallel.ranks import ALONE

    with open_state(load_run(run_file()), ALONE) as state:
        assert isinstance(state, TrainState)
        assert state.average is None

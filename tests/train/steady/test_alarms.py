"""Spikes and dips are found where a drawn curve has them, nowhere else, and as if the run had never been killed."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.report import read_runs, render, summaries
from headrace.train.steady.alarms import AlarmConfig, Alarms

LAYERS = {"patch": 1.0, "blocks.0": 0.3, "blocks.1": 0.1}

Lines = list[dict[str, Any]]


def drawn(seed: int, *, spikes: bool = False, noise: float = 1.0, lines: int = 240) -> Lines:
    """Return gradients, losses and accuracies as a run has them, smooth but for their noise.

    With `spikes` the first layer's gradient jumps at line 100, the others' at 103, accuracy falls for three looks from
    line 120 on, and the loss for four lines from 150 on.
    """
    rng = np.random.default_rng(seed)
    found: Lines = []
    for line in range(1, lines + 1):
        fall = np.exp(-line / 60)
        found.append({"event": "train", "step": 10 * line, "loss": float(2 + 3 * fall + 0.1 * noise * rng.normal())})
        found.append({"event": "gradients", "step": 10 * line})
        for layer, size in LAYERS.items():
            value = size * (0.3 + fall) * np.exp(0.3 * noise * rng.normal())
            found[-1][f"max/{layer}"] = float(value)
        if line % 8 == 0:
            accuracy = 0.45 - 0.2 * fall + 0.003 * noise * rng.normal()
            found.append({"event": "monitor/knn", "step": 10 * line, "accuracy": float(accuracy)})
    for one in found if spikes else []:
        step = one["step"]
        one |= {"max/patch": 40.0} if one["event"] == "gradients" and 1000 <= step <= 1050 else {}
        one |= {"max/blocks.1": 9.0} if one["event"] == "gradients" and step == 1030 else {}
        one |= {"accuracy": one["accuracy"] - 0.15} if "accuracy" in one and 1200 <= step <= 1360 else {}
        one |= {"loss": one["loss"] + 2.5} if "loss" in one and 1500 <= step <= 1530 else {}
    return found


def told(lines: Lines, config: AlarmConfig | None = AlarmConfig()) -> Lines:  # noqa: B008  it is frozen
    alarms = Alarms(config)
    return [alarm for line in lines for alarm in alarms.take(line)]


@pytest.mark.parametrize("seed", range(5))
def test_spikes_and_dips_name_step_and_layer(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = told(drawn(seed, spikes=True))
    assert [(one["event"], one["step"], one.get("layer", one.get("curve"))) for one in found] == [
        ("spike", 1000, "patch"),
        ("spike", 1030, "blocks.1"),
        ("dip", 1200, "monitor/knn/accuracy"),
        ("recovered", 1440, "monitor/knn/accuracy"),
        ("dip", 1500, "train/loss"),
        ("recovered", 1540, "train/loss"),
    ]
    assert found[0]["times"] > 5
    assert list(found[0]["layers"]) == ["patch"]
    assert found[2]["value"] < found[2]["before"]
    assert found[3]["worst"] <= found[2]["value"]
    assert len(caplog.messages) == 6
    assert caplog.messages[0].startswith("step 1000: spike: the largest gradient of patch is 40, ")
    assert caplog.messages[2].startswith("step 1200: dip: monitor/knn/accuracy is 0.2")
    assert not told(drawn(seed, spikes=True), None)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.2, 1.0, 1.5]))
def test_a_smooth_curve_with_noise_raises_no_alarm(seed: int, noise: float) -> None:
    assert told(drawn(seed, noise=noise)) == []


def test_a_loss_that_rises_smoothly_is_no_dip_and_one_that_stays_up_is_told_once() -> None:
    rise = [{"event": "train", "step": line, "loss": -1 + min(1, line / 60)} for line in range(300)]
    assert told(rise) == []
    stays = [*rise, *({"event": "train", "step": line, "loss": 3.0} for line in range(300, 500))]
    assert [one["step"] for one in told(stays)] == [300]


def test_a_step_that_was_left_out_and_a_layer_without_gradient_are_no_spike() -> None:
    lines = [{"event": "gradients", "step": line, "max/a": 1.0, "max/b": 0.0} for line in range(60)]
    lines[50] |= {"max/a": None}
    lines[51] |= {"max/b": 1e-3}
    lines += [{"event": "train", "step": 60, "loss": None}, {"event": "monitor/knn", "step": 60, "error": "gone"}]
    assert told(lines) == []


@pytest.mark.parametrize("cut", [0, 1, 99, 2000])
def test_a_run_that_was_killed_tells_the_same(cut: int) -> None:
    """Killed before the line of an alarm was written, too: it is told when the run goes on."""
    lines = drawn(1, spikes=True)
    whole, alarms = [], Alarms(AlarmConfig())
    for line in lines:
        whole += [line, *alarms.take(line)]
    places = [place for place, line in enumerate(whole) if line["event"] in ("spike", "dip", "recovered")]
    for kept in [*places, *(place + 1 for place in places), cut]:
        written = whole[:kept]
        # The lines of alarms that the next step would find, in the order of a run that goes on.
        alarms = Alarms(AlarmConfig(), written)
        rest = [line for line in whole[kept:] if line["event"] in ("train", "gradients", "monitor/knn")]
        again = [*written, *alarms.missed, *(one for line in rest for one in (line, *alarms.take(line)))]
        assert again == whole


def test_a_run_tells_a_spike_in_its_log_metrics_and_page(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = Aim.forward

    def spoiled(self: Aim, batch: Any) -> Any:
        loss, report = forward(self, batch)
        return (loss * 1000 if self.training and int(batch.position[0]) == 25 * 16 else loss), report

    monkeypatch.setattr(Aim, "forward", spoiled)
    config = load_run(run_file(steps=28, validation=None, gradient_norms="by_layer", alarms={"spike_times": 20.0}))
    train(config)
    path = Path(config.out) / "metrics.jsonl"
    events = {line["event"]: line for line in read_metrics(path) if line["event"] in ("spike", "dip")}
    spike = events["spike"]
    assert spike["step"] == events["dip"]["step"] == 26
    assert len(spike["layers"]) > 3
    assert spike["times"] > 20
    assert any(f"step 26: spike: the largest gradient of {spike['layer']}" in text for text in caplog.messages)
    runs = read_runs([config.out])
    page = render(runs, title="t").decode()
    assert (summaries(runs)[0]["spikes"], summaries(runs)[0]["dips"]) == (1, 1)
    assert "<h2>Spikes and dips</h2>" in page
    assert "<h2>Spikes by layer</h2>" in page
    assert page.count("<circle") == len(spike["layers"]) + 1
    assert f"headrace trace {config.out} --step 26" in page


def hostile() -> Iterator[dict[str, Any]]:
    for layers in (None, 5, {"<evil>": "x"}, {"a": 1e999}):
        yield {"event": "spike", "step": 1, "layer": 7, "max": "<evil>", "times": [], "layers": layers}
    yield {"event": "dip", "step": 2, "curve": ["<evil>"], "value": {}, "before": "x", "before_step": None}
    yield {"event": "recovered", "step": 3, "curve": "<evil>", "worst": None}


def test_alarms_that_others_wrote_are_shown_as_far_as_they_can_be(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in hostile()))
    page = render(read_runs([str(tmp_path)]), title="t").decode()
    assert "Spikes and dips" in page
    assert "<evil>" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spike_times": 1.0}, "spike_times must be above 1"),
        ({"spike_window": 3}, r"spike_window must be 20\.\.10000, got 3"),
        ({"dip_share": 0.0}, "dip_share must be above 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlarmConfig(**changes)

"""A monitor looks, and changes nothing: same weights, same resume; its faults cost no step."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from headrace.shards.dataset import open_dataset
from headrace.train.boundary import Boundary
from headrace.train.config import RunConfig, load_run, published_dict
from headrace.train.evaluate import monitors
from headrace.train.evaluate.features import FeaturesConfig, dataset_features
from headrace.train.evaluate.few_shot import fit_ridge
from headrace.train.evaluate.knn import KnnConfig, knn_classes
from headrace.train.evaluate.monitor_config import MonitorConfig
from headrace.train.evaluate.monitors import SharedSets, _only_looking
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.loop import train
from headrace.train.objectives.aim import Aim
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.report import read_runs, render
from tests.ports import free_port

# Each argument is a run: the run file and its overrides. Each meets on a port of its own.
TRAIN = """
import json, os, sys
from headrace.train.config import load_run
from headrace.train.loop import train

for given in sys.argv[1:]:
    path, *overrides = json.loads(given)
    assert train(load_run(path, overrides)).finished
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
"""
# Rank 1 finds no image of the test set at step 2.
FAILING = """
import json, os, sys
from headrace.pipeline import Stream
from headrace.train.config import load_run
from headrace.train.loop import train

forward, passes = Stream.__next__, []

def failing(stream):
    if stream.sources[0].config.name == "data" and os.environ["RANK"] == "1":
        passes.append(stream)
        if len(set(map(id, passes))) == 4:
            raise OSError("the server is gone")
    return forward(stream)

Stream.__next__ = failing
path, *overrides = json.loads(sys.argv[1])
assert train(load_run(path, overrides)).finished
"""


@pytest.fixture
def looked(run_file: Callable[..., Path], pictures: str, other_pictures: str) -> Callable[..., Path]:
    """Return a function that writes a run file with a monitor of each kind."""

    def write(name: str = "looked", **changes: Any) -> Path:
        sets = {"train": pictures, "test": other_pictures, "samples": 0}
        listed = [{"kind": kind, "every": 3, **sets} for kind in ("knn", "linear", "few_shot")]
        return run_file(name, **{"steps": 6, "monitors": listed, "gradient_norms": "by_layer", **changes})

    return write


def of(config: RunConfig, event: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(Path(config.out) / "metrics.jsonl") if line["event"] == event]


def without_times(config: RunConfig) -> list[dict[str, Any]]:
    kept = ("event", "step", "loss", "grad_norm", "batch_digest", "accuracy", "train_samples", "error")
    return [
        {name: value for name, value in line.items() if name in kept or name.startswith(("l2/", "max/"))}
        for line in read_metrics(Path(config.out) / "metrics.jsonl")
    ]


def test_a_run_with_monitors_has_the_weights_of_one_without(
    looked: Callable[..., Path], run_file: Callable[..., Path]
) -> None:
    config, plain = load_run(looked()), load_run(run_file("plain", steps=6))
    train(config)
    train(plain)
    weights = [(Path(each.out) / "model.safetensors") for each in (config, plain)]
    one, other = map(load_file, weights)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    moments = [Path(each.out) / "checkpoints" / "00000006" / "optimizer.safetensors" for each in (config, plain)]
    assert moments[0].read_bytes() == moments[1].read_bytes()
    for kind in ("knn", "linear", "few_shot"):
        lines = of(config, f"monitor/{kind}")
        assert [line["step"] for line in lines] == [0, 3, 6]
        assert all(line["accuracy"] > 0.5 and line["seconds"] >= line["seconds_features"] >= 0 for line in lines)
        assert (lines[0]["train_samples"], lines[0]["test_samples"]) == (96, 45)


def test_monitors_of_one_step_share_a_pass_and_keep_nothing(
    looked: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, pictures: str, other_pictures: str
) -> None:
    passes, kept = [], []
    labelled, keep = monitors._labelled_set, SharedSets.keep_for

    def counted(*given: Any) -> Any:
        passes.append(given[3])
        return labelled(*given)

    def looking(shared: SharedSets, later: list[MonitorConfig]) -> None:
        keep(shared, later)
        kept.append((shared.step, len(shared.sets)))

    monkeypatch.setattr(monitors, "_labelled_set", counted)
    monkeypatch.setattr(SharedSets, "keep_for", looking)
    sets = {"train": pictures, "test": other_pictures}
    listed = [
        {"kind": "knn", "every": 3, **sets},
        {"kind": "linear", "every": 6, **sets},
        {"kind": "few_shot", "every": 3, "layers": "0", **sets},
    ]
    train(load_run(looked(monitors=listed)))
    both = [pictures, other_pictures]
    assert passes == both * 2 * 3  # the blocks of few_shot are others
    assert kept == [(0, 2), (0, 0), (0, 0), (3, 0), (3, 0), (6, 2), (6, 0), (6, 0)]


def test_a_resumed_run_has_the_same_monitors(looked: Callable[..., Path], tmp_path: Path) -> None:
    path = looked()
    config = load_run(path)
    train(config)
    again = load_run(path, [f"out={tmp_path / 'again'}"])
    shutil.copytree(config.out, again.out)
    shutil.rmtree(Path(again.out) / "checkpoints" / "00000006")
    (Path(again.out) / "model.safetensors").unlink()
    train(again)
    assert without_times(again) == without_times(config)
    last = Path("checkpoints") / "00000006" / "model.safetensors"
    assert (Path(again.out) / last).read_bytes() == (Path(config.out) / last).read_bytes()


def test_the_numbers_are_those_of_frozen_features(
    looked: Callable[..., Path], pictures: str, other_pictures: str
) -> None:
    config = load_run(looked())
    out = train(config).out
    wanted = FeaturesConfig(layers=(0, 1), pooled=True)
    trunk = open_trunk(out)
    bank, asked = (dataset_features(trunk, url, config=wanted) for url in (pictures, other_pictures))
    told = knn_classes(bank.tokens_NLD, bank.label_N, asked.tokens_NLD, KnnConfig())
    expected = float((told == asked.label_N).double().mean())
    assert of(config, "monitor/knn")[-1]["accuracy"] == pytest.approx(expected, abs=0.03)  # those are of 16 bits
    ridge = fit_ridge(bank.tokens_NLD, bank.label_N, classes=3)
    best = max(reversed(monitors.LINEAR_L2S), key=ridge.left_out_accuracy)
    expected = ridge.accuracy(asked.tokens_NLD, asked.label_N, best)
    assert of(config, "monitor/linear")[-1]["accuracy"] == pytest.approx(expected, abs=0.05)


def test_modes_and_generators_stay_as_they_are() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.teacher = nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()

    odd = Odd()
    state, mean = torch.random.get_rng_state(), odd.norm.running_mean
    assert mean is not None
    before = mean.clone()
    with _only_looking(odd, torch.device("cpu")):  # type: ignore[arg-type]
        assert not odd.norm.training
        odd.norm(torch.randn(8, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(mean, before)
    assert (odd.training, odd.norm.training, odd.teacher.training) == (True, True, False)


@pytest.mark.parametrize("error", [OSError("the server is gone"), ValueError("bad"), torch.OutOfMemoryError("full")])
def test_a_fault_costs_no_step_and_a_line_says_it(
    looked: Callable[..., Path],
    run_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    knn_of, calls = monitors.HEADS["knn"], []

    def failing(*given: Any) -> tuple[float, float]:
        calls.append(given)
        if len(calls) == 2:
            raise error
        return knn_of(*given)

    monkeypatch.setitem(monitors.HEADS, "knn", failing)
    config, plain = load_run(looked()), load_run(run_file("plain", steps=6))
    train(config)
    train(plain)
    one, other = (load_file(Path(each.out) / "model.safetensors") for each in (config, plain))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    lines = of(config, "monitor/knn")
    assert [(line["step"], "error" in line) for line in lines] == [(0, False), (3, True), (6, False)]
    assert lines[1]["error"] == str(error)
    assert len(of(config, "monitor/linear")) == 3
    assert f"monitor knn: {error}; training goes on" in caplog.text


def test_a_fault_of_ours_is_not_hidden(looked: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(monitors.HEADS, "knn", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(load_run(looked()))


def test_damaged_samples_are_left_out_and_counted(
    looked: Callable[..., Path], write_dataset: Callable[..., str], tmp_path: Path, other_pictures: str
) -> None:
    url = write_dataset(tmp_path / "few", samples=40)
    dataset = open_dataset(url)
    offset, size = (dataset.index(0).column(name)[7].as_py() for name in ("offset", "size"))
    tar = Path(dataset.tar_url(0))
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 0xFF
    tar.write_bytes(data)
    listed = [{"kind": "knn", "every": 6, "train": url, "test": other_pictures}]
    config = load_run(looked(monitors=listed))
    train(config)
    line = of(config, "monitor/knn")[0]
    assert (line["train_samples"], line["test_samples"], line["damaged_samples"]) == (39, 45, 1)


def test_a_part_of_a_set_sorted_by_class_keeps_its_classes(
    looked: Callable[..., Path], write_dataset: Callable[..., str], tmp_path: Path, other_pictures: str
) -> None:
    url = write_dataset(
        tmp_path / "sorted", samples=256, change=lambda number, columns: columns | {"label": number // 128}
    )
    listed = [{"kind": "knn", "every": 6, "train": url, "test": other_pictures, "samples": 32}]
    config = load_run(looked(monitors=listed))
    train(config)
    line = of(config, "monitor/knn")[0]
    assert line["train_samples"] == 32
    assert 0 < line["accuracy"] < 1  # of both classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "/nowhere"}, "monitors, knn: .*/nowhere"),
        ({"layers": "7"}, "monitors, knn: layers '7'"),
        ({"every": 0}, "every must be at least 1"),
        ({"name": "a b"}, "name must be of letters"),
        ({"kind": "guess"}, "monitors.0.kind"),
        ({"evry": 1}, "unknown key 'monitors.0.evry'"),
    ],
)
def test_what_could_not_look_is_refused_before_the_first_step(
    looked: Callable[..., Path], pictures: str, change: dict[str, Any], message: str
) -> None:
    path = looked(monitors=[{"kind": "knn", "every": 3, "train": pictures, "test": pictures, **change}])
    with pytest.raises(ValueError, match=message):
        train(load_run(path))
    assert not (path.parent / "looked").exists()


def test_a_set_without_labels_is_refused_before_the_first_step(
    looked: Callable[..., Path], write_dataset: Callable[..., str], tmp_path: Path, pictures: str
) -> None:
    url = write_dataset(tmp_path / "bare", samples=8, change=lambda _, columns: {"caption": columns["caption"]})
    listed = [{"kind": "knn", "every": 3, "train": pictures, "test": url}]
    with pytest.raises(ValueError, match=r"monitors, knn: .*label"):
        train(load_run(looked(monitors=listed)))


def test_two_monitors_of_one_kind_need_names(looked: Callable[..., Path], pictures: str) -> None:
    one = {"kind": "knn", "every": 3, "train": pictures, "test": pictures}
    with pytest.raises(ValueError, match="two have one name"):
        load_run(looked(monitors=[one, dict(one)]))
    assert len(load_run(looked(monitors=[one, {**one, "name": "other"}])).monitors) == 2


def test_a_published_config_names_no_folder(looked: Callable[..., Path]) -> None:
    assert "/" not in published_dict(load_run(looked()))["monitors"][0]["train"]


def test_monitors_may_change_when_a_run_is_continued(looked: Callable[..., Path]) -> None:
    config = load_run(looked(steps=3))
    train(config)
    more = load_run(looked(steps=3, monitors=[], gradient_norms="off"))
    assert train(more).finished


def test_a_signal_breaks_a_monitor_off(
    looked: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint of the step is written before it, so nothing is lost but the line."""
    look = Boundary.look_if_due

    def signalled(boundary: Boundary, *, last: bool) -> None:
        if boundary.state.step == 3:
            boundary.monitors = boundary.monitors[1:]  # not the validation
            os.kill(os.getpid(), signal.SIGTERM)
        look(boundary, last=last)

    monkeypatch.setattr(Boundary, "look_if_due", signalled)
    config = load_run(looked())
    result = train(config)
    assert result.stopped_by == signal.SIGTERM
    assert result.step == 3  # the wait for the next batch was over at once
    assert [line["step"] for line in of(config, "monitor/knn")] == [0]
    assert "monitor knn is broken off" in caplog.text
    monkeypatch.undo()
    assert train(config).finished
    assert [line["step"] for line in of(config, "monitor/knn")] == [0, 3, 6]


def test_gradient_norms_are_those_of_autograd(looked: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at where clipping begins."""
    seen: list[dict[str, torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def looking(parameters: Any, *given: Any) -> torch.Tensor:
        given_parameters = list(parameters)
        seen.append({name: p.grad.clone() for name, p in zip(names, given_parameters, strict=True)})
        return clip(given_parameters, *given)

    names: list[str] = []
    before = Aim.before_step

    def naming(aim: Aim, *given: int) -> None:
        names[:] = [name for name, _ in aim.named_parameters()]
        before(aim, *given)

    monkeypatch.setattr(Aim, "before_step", naming)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", looking)
    config = load_run(looked(monitors=[], steps=5, log_every=2))
    train(config)
    lines = of(config, "gradients")
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        gradients = seen[line["step"] - 1]
        layer = "encoder.trunk.blocks.1"
        inside = torch.cat([tensor.flatten() for name, tensor in gradients.items() if name.startswith(f"{layer}.")])
        assert line[f"l2/{layer}"] == pytest.approx(float(inside.norm()), rel=1e-5)
        assert line[f"max/{layer}"] == pytest.approx(float(inside.abs().max()), rel=1e-6)
        total = sum(value**2 for name, value in line.items() if name.startswith("l2/")) ** 0.5
        train_line = next(other for other in of(config, "train") if other["step"] == line["step"])
        assert total == pytest.approx(train_line["grad_norm"], rel=1e-5)
        assert {"l2/encoder.preprocessor.patchifier.proj", "l2/encoder.trunk.blocks.0"} < line.keys()


def test_curves_are_in_the_report_and_the_event_file(looked: Callable[..., Path]) -> None:
    config = load_run(looked(tensorboard=True))
    train(config)
    page = render(read_runs([config.out]), title="x").decode()
    for text in ("Accuracy of monitors", "few_shot", "Gradient norm by layer", "encoder.trunk."):
        assert text in page
    events = next(Path(config.out).glob("events.out.*")).read_bytes()
    assert b"monitor/knn/accuracy" in events
    assert b"gradients/l2/encoder.trunk.blocks.0" in events


def processes(number: int, program: str, *arguments: str) -> list[str]:
    """Run `program` so many times with the variables that torchrun would set; return what each said."""
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", program, *arguments]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    running = [
        subprocess.Popen(command, env={**environment, **rank}, stderr=subprocess.PIPE, text=True) for rank in ranks
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * number, errors
    return errors


def test_two_processes_see_what_one_sees(looked: Callable[..., Path], tmp_path: Path) -> None:
    """DDP, and a spread model whose first forward pass is a monitor's, as there is no validation."""
    path = looked(validation=None, images_per_micro_batch=3)
    alone = load_run(path)
    train(alone)
    outs = {name: tmp_path / name for name in ("ddp", "fsdp")}
    told = [json.dumps([str(path), f"out={out}", f"parallel.strategy={name}"]) for name, out in outs.items()]
    processes(2, TRAIN, *told)
    reference = without_times(alone)
    for out in outs.values():
        lines = without_times(load_run(path, [f"out={out}"]))
        assert [(line["event"], line["step"]) for line in lines] == [(one["event"], one["step"]) for one in reference]
        for line, one in zip(lines, reference, strict=True):
            for name in one.keys() - {"event", "batch_digest"}:
                assert line[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), (name, line)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_fault_of_one_process_is_left_by_both(looked: Callable[..., Path], strategy: str, tmp_path: Path) -> None:
    config = load_run(looked(validation=None))
    listed = [{"kind": "knn", "every": 3, "train": config.monitors[0].train, "test": config.monitors[0].test}]
    path, out = looked(validation=None, monitors=listed), tmp_path / "out"
    processes(2, FAILING, json.dumps([str(path), f"out={out}", f"parallel.strategy={strategy}"]))
    lines = of(load_run(path, [f"out={out}"]), "monitor/knn")
    assert [line.get("error") for line in lines] == [None, "the server is gone", None]

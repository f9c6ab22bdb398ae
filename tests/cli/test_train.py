"""`headrace train` says what it will do, does it, and answers a mistake with one line."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml

from headrace.cli.train import NOTICES, _show
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.train.loop import TrainResult

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run file of a tiny AIM over 40 small pictures."""
    rng = np.random.default_rng(0)
    images = [simplejpeg.encode_jpeg(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(40)]
    samples = [Sample(f"{i:04d}", image, "jpg", {"label": i % 2}) for i, image in enumerate(images)]
    write_shard(str(tmp_path / "data"), "00000", samples)
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    data = {
        "out": str(tmp_path / "run"),
        "seed": 0,
        "steps": 3,
        "global_batch": 8,
        "mixture": {"lanes": 2, "image_size": 16, "sources": [{"name": "data", "url": str(tmp_path / "data")}]},
        "objective": {"kind": "aim", "model": "tiny", "patch": 4, "width": 16, "depth": 1, "heads": 2, "head_width": 8},
        "validation": {"dataset": str(tmp_path / "data"), "every": 3, "samples": 10},
        "device": "cpu",
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_run_and_its_probe(run: Run, run_file: Path, tmp_path: Path) -> None:
    code, out = run("train", str(run_file), "steps=4")
    assert code == 0
    assert "step 0: validation loss" in out
    assert f"\n{tmp_path / 'run'}: 4 steps done" in out
    data = str(tmp_path / "data")
    for flags, name in (((), "trained"), (("--untrained",), "untrained")):
        code, out = run("probe", str(tmp_path / "run"), "--train", data, "--test", data, "--epochs", "1", *flags)
        assert code == 0
        shown = json.loads(out)
        assert shown.pop("next").startswith(f"headrace probe {tmp_path / 'run'} ")
        assert shown == json.loads((tmp_path / "run" / f"probe-{name}.json").read_text())
        assert shown["protocol"]["untrained"] == (name == "untrained")


def test_monitors_are_planned_shown_and_in_the_result(run: Run, run_file: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    changes = yaml.safe_load(run_file.read_text())
    changes["monitors"] = [{"kind": "knn", "every": 3, "train": data, "test": f"{data}", "samples": 20}]
    run_file.write_text(yaml.safe_dump(changes | {"gradient_norms": "by_layer", "log_every": 1}))
    code, out = run("train", str(run_file), "--dry-run")
    assert code == 0
    assert "monitor knn: about 20 of 40 samples against 20 of 40, every 3 steps" in out
    code, out = run("train", str(run_file))
    assert code == 0
    assert "step 0: monitor/knn accuracy 0." in out
    assert "step 3: monitor/knn accuracy 0." in out
    code, out = run("train", str(run_file), "--json", "--quiet")
    assert json.loads(out)["monitors"]["knn"]["step"] == 3
    code, out = run("train", str(run_file), "out=elsewhere", "monitors.0.test=/nowhere", "--dry-run")
    assert code == 1
    assert "monitors, knn: " in out


def test_a_dry_run_of_a_probe_checks_its_inputs_and_writes_nothing(run: Run, run_file: Path, tmp_path: Path) -> None:
    assert run("train", str(run_file), "steps=1")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    data, probed = str(tmp_path / "data"), str(tmp_path / "run")
    code, out = run("probe", probed, "--train", data, "--test", data, "--samples", "20", "--dry-run")
    assert code == 0
    assert "step 1: mean of blocks 0 of width 16" in out
    assert f"fit on {data}: 20 samples, 10,240 bytes of features" in out
    assert f"judge on {data}: 40 samples, 20,480 bytes of features" in out
    assert f"write {tmp_path / 'run' / 'probe-trained.json'}" in out
    for flags in (("--dry-run",), ()):
        code, out = run("probe", probed, "--train", data, "--test", str(tmp_path / "none"), *flags)
        assert code == 1
        assert f"{tmp_path / 'none'} is not a dataset" in out
    code, out = run("probe", probed, "--train", data, "--test", data, "--layers", "7", "--dry-run")
    assert code == 1
    assert "layers '7': expected" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_file_in_the_place_of_the_run_folder_is_named(run: Run, run_file: Path, flags: tuple[str, ...]) -> None:
    for out in (run_file, run_file / "run"):
        code, text = run("train", str(run_file), f"out={out}", *flags)
        assert code == 1
        assert f"out is {out}, and there is a file in the way" in text


def test_a_dry_run_tells_size_cost_and_epochs_and_writes_nothing(run: Run, run_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out = run("train", str(run_file), "steps=10", "--dry-run")
    assert code == 0
    assert "steps: 10 of 8 images = 80 images" in out
    assert "source data: 80 of 40 samples = 2.00 epochs" in out
    assert "validation: 10 of 40 samples, every 3 steps" in out
    assert "parameters: " in out
    assert "FLOPs per image: " in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective.patchh=4",
            "unknown key 'objective.patchh'; did you mean 'patch'? known keys here: kind, model, patch",
        ),
        ("objective.patch=5", "patch 5 does not divide image_size 16"),
        ("global_batch=9", "global batch 9 is not a multiple of the 2 lanes"),
        ("steps", "override 'steps' is not of the form key.path=value"),
        ("mixture.sources.0.url=/nowhere/at/all", "/nowhere/at/all is not a dataset"),
        ("validation.dataset=/nowhere/at/all", "/nowhere/at/all is not a dataset"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(run: Run, run_file: Path, override: str, message: str) -> None:
    for more in ((), ("--dry-run",)):
        code, error = run("train", str(run_file), override, *more)
        assert code == 1
        assert error.count("headrace: ") == 1
        assert message in error
        assert "\n" not in error


def test_a_plan_without_its_data_says_what_is_missing_and_what_is_known(run: Run, run_file: Path) -> None:
    code, error = run("train", str(run_file), "mixture.sources.0.url=/nowhere/at/all", "--dry-run")
    assert code == 1
    assert error.startswith("headrace: /nowhere/at/all is not a dataset")
    for known in ("parameters: 5,624", "FLOPs per image: ", "steps: 3 of 8 images", "memory: weights", "GPU-days"):
        assert known in error


def test_a_changed_run_is_refused_in_one_line(run: Run, run_file: Path) -> None:
    assert run("train", str(run_file))[0] == 0
    code, error = run("train", str(run_file), "optimizer.lr=0.1")
    assert code == 1
    assert "optimizer.lr: was 0.001, is 0.1" in error
    code, out = run("train", str(run_file))  # the finished run is left as it is
    assert (code, out.count("validation")) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_as_schedulers_read_it(run_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    program = [sys.executable, "-c", "from headrace.cli.app import main; main()"]
    command = [*program, "train", str(run_file), "steps=100000", "log_every=1", "validation.every=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"train"' in metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert out.splitlines()[-1] == (
        f"{tmp_path / 'run'}: stopped by {number.name} and saved at step {steps[0]}; the same command continues"
    )
    assert "Traceback" not in errors
    # Off a terminal each line of metrics is a line on stderr.
    assert errors.splitlines()[0].startswith("step 1/100000: loss ")


def test_steps_are_shown_off_a_terminal_and_logged_where_asked(run: Run, run_file: Path) -> None:
    code, out = run("train", str(run_file), "log_every=1")
    assert code == 0
    assert [
        line.split(":")[0] for line in out.splitlines() if line.startswith("step ") and "/" in line.split(":")[0]
    ] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
    ]


def test_a_planned_change_of_what_holds_already_is_said_as_such() -> None:
    same, other = {"optimizer.lr": (0.1, 0.1)}, {"clip_grad_norm": (None, 1.0)}
    assert NOTICES["change"]({"step": 4, "changes": same}) == "step 4: optimizer.lr as before"
    assert NOTICES["change"]({"step": 4, "changes": {**same, **other}}) == "step 4: clip_grad_norm None -> 1.0"


def test_a_quiet_run_says_how_it_ended_and_nothing_else(run: Run, run_file: Path, tmp_path: Path) -> None:
    code, out = run("train", str(run_file), "log_every=1", "-q")
    assert code == 0
    assert [line.split(";")[0] for line in out.splitlines()] == [f"{tmp_path / 'run'}: 3 steps done"]


def test_the_log_says_what_an_operator_asks(
    run: Run, run_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert run("train", str(run_file), "-v")[0] == 0
    out = tmp_path / "run"
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("headrace.train")]
    assert any(text.startswith(f"run {out}: objective aim, ") and text.endswith("step 0 of 3") for text in texts)
    assert any(text.startswith(f"checkpoint {out / 'checkpoints' / '00000003'}: ") for text in texts)
    assert any(text.startswith(f"validation on {tmp_path / 'data'}: loss ") for text in texts)
    assert any(text.startswith(f"exported {out / 'model.safetensors'}: ") for text in texts)
    assert f"resumed from {out / 'checkpoints' / '00000003'}: 3 steps are done" in texts


def test_help_has_an_example(run: Run) -> None:
    for command in ("train", "probe"):
        code, out = run(command, "--help")
        assert code == 0
        assert f"headrace {command}" in out


def test_it_ends_with_the_next_command(run: Run, run_file: Path, tmp_path: Path) -> None:
    _, out = run("train", str(run_file), "steps=1")
    told = [line for line in out.splitlines() if not line.startswith("step ")]  # stderr comes behind stdout here
    assert told[-1] == f"next: headrace probe {tmp_path / 'run'} --train DATASET --test DATASET"


def test_a_probe_names_its_comparison(run: Run, run_file: Path, tmp_path: Path) -> None:
    assert run("train", str(run_file), "steps=1")[0] == 0
    data, probed = str(tmp_path / "data"), str(tmp_path / "run")
    options = ["probe", probed, "--train", data, "--test", data, "--epochs", "1", "--samples", "20", "--json"]
    first = json.loads(run(*options)[1])
    code, out = run(*first["next"].removeprefix("headrace ").split())
    assert (code, json.loads(out)["protocol"]) == (0, {**first["protocol"], "untrained": True})
    plan = json.loads(run(*options, "--dry-run")[1])["plan"]
    assert plan[-1] == f"write {tmp_path / 'run' / 'probe-trained.json'}"


def test_what_no_probe_reads_is_handed_to_the_annotator(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "open_clip").mkdir()
    _show(TrainResult(out=tmp_path, step=1, is_first=True, has_trunk=False))
    model = f"{{model: {tmp_path}/open_clip/model_config.json, checkpoint: {tmp_path}/open_clip/model.safetensors}}"
    assert capsys.readouterr().out.endswith(f"next: headrace curate RECIPE.yaml 'annotate.clip={model}'\n")


def test_json_is_one_object_with_the_last_metrics(run: Run, run_file: Path, tmp_path: Path) -> None:
    code, out = run("train", str(run_file), "-q", "log_every=1", "--json")
    facts = json.loads(out)
    assert (code, facts["out"], facts["step"], facts["stopped_by"]) == (0, str(tmp_path / "run"), 3, None)
    assert (facts["train"]["step"], facts["validation"]["step"]) == (3, 3)
    code, out = run("train", str(run_file), "log_every=1", "--json", "--dry-run")
    assert "steps: 3 of 8 images = 24 images" in json.loads(out)["plan"]


def test_json_leaves_stdout_to_the_object(run_file: Path) -> None:
    program = [sys.executable, "-c", "from headrace.cli.app import main; main()"]
    done = subprocess.run([*program, "train", str(run_file), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["step"] == 3
    assert "step 0: validation loss" in done.stderr

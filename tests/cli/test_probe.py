"""`headrace probe` answers a mistake with one line; what it computes is tested with training."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.train.config import load_run
from headrace.train.loop import train

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither a run folder with checkpoints, nor a checkpoint, nor a model.safetensors"),
        (("--lrs", "0.1,fast"), "--lrs '0.1,fast': expected numbers"),
        (("--lrs", "0.1,-1"), "learning rates must be above 0"),
        (("--lrs", "0.1,inf"), "learning rates must be above 0 and finite"),
        (("--epochs", "0"), "epochs and images_per_batch must be at least 1"),
        (("--weight-decays", "0.1;0.2"), "--weight-decays '0.1;0.2': expected numbers"),
        (("--protocol", "x"), "protocol: unknown 'x'; known: quick, aim, moco_v3"),
        (("--head", "x"), "head: unknown 'x'; known: attentive, linear"),
        (("--train", ""), "--train and --test name the labelled datasets"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, text = run("probe", tmp_path, "--train", "a", "--test", "b", *options)
    assert code == 1
    assert text.startswith("headrace: ")
    assert message in text
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    code, text = run("probe", tmp_path / "nothing", "--train", "a", "--test", "b", "--dry-run")
    assert code == 1
    assert "neither a run folder with checkpoints" in text


# A pause after each save, so that a kill which a busy machine delivers late still finds epochs left to do.
SLOW = """
import time
from headrace.cli.app import main
from headrace.train.evaluate.fit import FitFile
save = FitFile.save_when_due
FitFile.save_when_due = lambda *given: (save(*given), time.sleep(1000))  # until it is killed
main()
"""


def test_a_probe_that_is_killed_goes_on_to_the_same_numbers(run: Run, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    train_tiny(tmp_path, data)
    command = ["probe", str(tmp_path / "run"), "--train", data, "--test", data, "--epochs", "20", "--lrs", "0.01"]
    command += ["--memory-bytes", "1000", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    whole = json.loads(run(*command, "--out", str(tmp_path / "whole" / "probe.json"))[1])
    cut = [*command, "--out", str(tmp_path / "cut" / "probe.json")]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *cut], stdout=subprocess.DEVNULL)
    while not list((tmp_path / "cut").glob(".probe-*.safetensors")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "probe.json").exists()
    code, text = run(*cut)
    again = json.loads(text)
    assert code == 0
    assert again["features"] == "cache"
    assert again["peak_memory_bytes"] > 0
    whole["peak_memory_bytes"] = again["peak_memory_bytes"]
    assert again == whole
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["probe.json"]


def test_a_protocol_is_changed_by_the_other_options(run: Run, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    train_tiny(tmp_path, data)
    options = ["--protocol", "moco_v3", "--augment", "none", "--epochs", "1", "--images-per-batch", "16"]
    code, text = run("probe", str(tmp_path / "run"), "--train", data, "--test", data, *options)
    result = json.loads(text)
    assert code == 0
    told = result["protocol"]
    assert (told["head"], told["optimizer"], told["lrs"], told["epochs"]) == ("linear", "sgd", [12.0], 1)
    code, text = run(*shlex.split(result["next"])[1:])
    assert json.loads(text)["protocol"] == {**told, "untrained": True}


def test_a_dry_run_needs_neither_weights_nor_data(run: Run) -> None:
    options = ["--protocol", "aim", "--train-images", "1281167", "--test-images", "50000", "--dry-run", "--json"]
    code, text = run("probe", "aim-0.6B", *options)
    plan = json.loads(text)["plan"]
    assert code == 0
    assert [line.split(":")[0] for line in plan][-5:] == ["features", "time", "host memory", "device memory", "disk"]


def write_pictures(folder: Path) -> str:
    """Write a dataset of 40 pictures in two classes."""
    rows = []
    for number in range(40):
        picture = np.full((16, 16, 3), (number * 5 % 100, 200 * (number % 2), 50), np.uint8)
        rows.append(Sample(f"{number:04d}", simplejpeg.encode_jpeg(picture), "jpg", {"label": number % 2}))
    write_shard(str(folder), "00000", rows)
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


def train_tiny(folder: Path, data: str) -> None:
    """Train a run of one step in `folder`/run."""
    path = folder / "run.yaml"
    path.write_text(f"""
        {{out: {folder}/run, seed: 0, steps: 1, global_batch: 8, device: cpu,
        mixture: {{lanes: 2, image_size: 16, sources: [{{name: data, url: "{data}", shuffle_window: 16}}]}},
        objective: {{kind: aim, model: tiny, patch: 8, width: 16, depth: 1, heads: 2, head_width: 16, head_depth: 1}}}}
    """)
    train(load_run(path))

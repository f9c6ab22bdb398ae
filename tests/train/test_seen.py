"""A run records what its steps saw, and `headrace stream --verify-run` proves it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from headrace.config import config_to_dict
from headrace.pipeline.seen import FILE, read_record
from headrace.train.config import load_run
from headrace.train.loop import train
from headrace.train.runs.plan import plan_run


def verify(mixture: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from headrace.cli.app import main; main()", "stream", str(mixture)]
    return subprocess.run([*command, "--verify-run", run, *more], capture_output=True, text=True, timeout=200)


@pytest.fixture
def mixture_file(run_file: Callable[..., Path], tmp_path: Path) -> tuple[Path, list[str]]:
    """A mixture whose weights and lanes change, and the overrides that make a run of it."""
    config = load_run(run_file())
    data = config_to_dict(config.mixture)
    lanes = config.mixture.lanes
    data["segments"] = [{"start": 4 * config.global_batch, "lanes": lanes // 2}]
    path = tmp_path / "changing.yaml"
    path.write_text(yaml.safe_dump(data))
    segment = json.dumps(data["segments"])
    return path, [f"mixture.segments={segment}"]


def test_a_run_that_was_killed_and_goes_on_is_proven(
    run_file: Callable[..., Path], mixture_file: tuple[Path, list[str]]
) -> None:
    mixture, overrides = mixture_file
    config = load_run(run_file(log_every=5), overrides)
    assert train(config).finished
    whole = read_record(Path(config.out) / FILE)
    done = verify(mixture, config.out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (
        f"{config.out}: {config.steps:,} steps saw their {config.steps * config.global_batch:,} planned samples\n"
    )
    # As if it had been killed behind the checkpoint of step 6.
    for step in (9, 12):
        shutil.rmtree(Path(config.out) / "checkpoints" / f"{step:08d}")
    (Path(config.out) / "model.safetensors").unlink()
    assert train(load_run(run_file(log_every=5), overrides)).finished
    again = read_record(Path(config.out) / FILE)
    assert [digest for line in again for digest in line["digests"]] == [
        digest for line in whole for digest in line["digests"]
    ]
    told = json.loads(verify(mixture, config.out, "--json").stdout)
    assert (told["holds"], told["num_steps"], told["differs"]) == (True, config.steps, None)


def test_a_run_of_another_mixture_is_found_out_at_its_first_step(
    run_file: Callable[..., Path], mixture_file: tuple[Path, list[str]]
) -> None:
    mixture, overrides = mixture_file
    config = load_run(run_file(steps=6), overrides)
    assert train(config).finished
    done = verify(mixture, config.out, "segments=[]")
    assert done.returncode == 1
    size = config.global_batch
    assert done.stdout == (
        f"{config.out}: step 5 (positions {4 * size} to {5 * size - 1}) is the first that saw other samples than this "
        "mixture plans\n"
    )
    record = Path(config.out) / FILE
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:-1]))
    done = verify(mixture, config.out)
    assert (done.returncode, done.stdout) == (1, f"{config.out}: not recorded: steps 6\n")
    done = verify(mixture, str(mixture.parent / "nowhere"))
    assert done.returncode == 1
    assert "no step is recorded there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_mixture_that_ends_before_the_last_step_is_refused_before_the_first(run_file: Callable[..., Path]) -> None:
    """96 samples, two epochs: 12 steps of 16."""
    config = load_run(run_file(steps=12), ["mixture.sources.0.repeat=2"])
    assert "source pictures: 192 of 96 samples = 2.00 epochs" in plan_run(config)
    config = load_run(run_file(steps=13), ["mixture.sources.0.repeat=2"])
    for refuse in (plan_run, train):
        with pytest.raises(ValueError, match="the mixture ends after step 12 of 13"):
            refuse(config)
    assert not list(Path(config.out).glob("*.jsonl"))

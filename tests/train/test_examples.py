"""The run files in examples/ are read, are what they say, and plan without their data."""

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from headrace.train.config import load_run
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.clip import ClipConfig
from headrace.train.runs import cost
from headrace.train.runs.cost import PlanError
from headrace.train.runs.plan import plan_run

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = sorted(path for path in EXAMPLES.glob("*.yaml") if "\nobjective:" in path.read_text())
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def a_machine_with_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, a terabyte free, and a folder without data."""
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: Usage(0, 0, 10**12))
    monkeypatch.chdir(tmp_path)


def test_there_is_a_run_for_a_laptop_and_one_for_each_published_size() -> None:
    names = {path.stem for path in RUNS}
    assert {"aim-laptop", "aim-0.6B", "aim-1B", "aim-3B", "aim-7B"} <= names


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_an_example_plans_without_its_data_and_says_what_is_missing(path: Path) -> None:
    with pytest.raises(PlanError, match=r"^data/[a-z0-9-]+ is not a dataset") as caught:
        plan_run(load_run(path))
    starts = [line.split(":")[0] for line in caught.value.lines]
    known = ["objective", "parameters", "FLOPs per image", "steps", "learning rate", "memory", "checkpoint", "time"]
    # Where no GPU is, a run that is too large for one is told of it behind these.
    assert starts[: len(known) + 1] == [*known, "activations"]


@pytest.mark.parametrize(
    ("model", "steps", "strategy", "recompute"),
    [
        ("0.6B", 500_000, "auto", "none"),
        ("1B", 1_200_000, "ddp", "none"),
        ("3B", 1_200_000, "fsdp", "selective"),
        ("7B", 1_200_000, "fsdp", "full"),
    ],
)
def test_a_published_size_has_the_papers_numbers(model: str, steps: int, strategy: str, recompute: str) -> None:
    """arXiv:2401.08541, table 1 and section 4.2: batch 4096, learning rate 0.001, betas (0.9, 0.95), 31,250 warm-up."""
    config = load_run(EXAMPLES / f"aim-{model}.yaml")
    assert (config.steps, config.global_batch, config.mixture.image_size) == (steps, 4096, 224)
    assert [source.weight for source in config.mixture.sources] == [0.8, 0.2]
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (0.001, (0.9, 0.95), 0.05)
    rates = [schedule.rate(step, steps=steps, peak=optimizer.lr) for step in (0, 31_249, 31_250, 31_251, steps)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[2] == 0.001
    assert rates[4] == 0
    assert (config.parallel.strategy, config.activation_checkpointing) == (strategy, recompute)
    with torch.device("meta"):
        objective = build_objective(config.objective, image_size=224, seed=0)
    bytes_each = 16 * sum(parameter.numel() for parameter in objective.parameters())
    assert (bytes_each > 40e9) == (config.parallel.strategy == "fsdp")  # over half of an 80 GB GPU


@pytest.mark.parametrize("model", ["0.6B", "1B", "3B", "7B"])
def test_a_published_size_has_the_papers_pictures(model: str) -> None:
    """Crops of 0.4 to 1, bicubic, flip, no jitter; validation on Resize(256) and CenterCrop(224), bicubic."""
    config = load_run(EXAMPLES / f"aim-{model}.yaml")
    augment, validation = config.mixture.augment, config.validation
    assert (augment.crop, augment.scale, augment.ratio) == ("random", (0.4, 1.0), (3 / 4, 4 / 3))
    assert (augment.interpolation, augment.flip, augment.recolours) == ("bicubic", True, False)
    assert validation is not None
    assert (validation.center_fraction, validation.interpolation) == (0.875, "bicubic")


def test_the_training_codes_recipe_is_beside_the_papers() -> None:
    config = load_run(EXAMPLES / "aim-0.6B-l3m.yaml")
    augment, objective = config.mixture.augment, config.objective
    assert isinstance(objective, AimConfig)
    assert (augment.colour_jitter, augment.colour_jitter_probability) == ((0.4, 0.4, 0.2, 0.1), 0.8)
    assert (augment.scale, augment.interpolation) == ((0.4, 1.0), "bicubic")
    assert (objective.norm_eps, objective.head_identity_residual) == (1e-5, True)
    rates = [config.schedule.rate(step, steps=125_000, peak=0.001) for step in (0, 3125, 125_000)]
    assert rates == pytest.approx([1e-6, 0.001, 0.0])


def test_a_batch_of_a_published_size_goes_into_its_lanes_and_micro_batches() -> None:
    for model in ("0.6B", "1B", "3B", "7B"):
        config = load_run(EXAMPLES / f"aim-{model}.yaml")
        assert config.global_batch % config.mixture.lanes == 0
        for gpus in (8, 64):  # a micro-batch is a whole part of a rank's share
            assert config.global_batch // gpus % (config.images_per_micro_batch or 1) == 0


SLURM = {
    "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "node1\\nnode2\\n" || true',
    "srun": 'shift; exec "$@"',
    "scancel": 'echo "scancel $*" >> calls; kill -USR1 "$(cat pid)"',
    # As torchrun does it: deaf to USR1 itself, with a process that saves and ends.
    "torchrun": 'echo "torchrun $*" >> calls; exec python3 "$(dirname "$0")/trainer.py"',
}
TRAINER = """
import os, signal, sys, time
assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
open("pid.part", "w").write(str(os.getpid()))
os.rename("pid.part", "pid")
time.sleep(0 if "ENDS" in os.environ else 60)
sys.exit(int(os.environ.get("ENDS", 0)))
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Programs with the names of Slurm's on the path, which write down how they are called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trainer.py").write_text(TRAINER)
    for name, body in SLURM.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}


def start(env: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["bash", str(EXAMPLES / "slurm.sbatch"), "run.yaml", "steps=9"], env=env)


def test_a_slurm_job_that_runs_out_of_time_saves_and_is_queued_again(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = start(slurm)
    while not (tmp_path / "pid").exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    shown, launched, cancelled, requeued = (tmp_path / "calls").read_text().splitlines()
    assert shown == "scontrol show hostnames node[1-2]"
    assert "--nnodes=2 --nproc-per-node=8" in launched
    assert launched.endswith("--rdzv-endpoint=node1:29500 --no-python headrace train run.yaml steps=9")
    assert (cancelled, requeued) == ("scancel --signal=USR1 7", "scontrol requeue 7")


@pytest.mark.parametrize("code", [0, 1])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(code: int, tmp_path: Path, slurm: dict[str, str]) -> None:
    assert start({**slurm, "ENDS": str(code)}).wait(30) == code
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_the_guide_shows_the_whole_slurm_script() -> None:
    script = (EXAMPLES / "slurm.sbatch").read_text()
    assert f"```bash\n{script}```" in (EXAMPLES.parent / "docs" / "training.md").read_text()
    assert script.startswith("#!/bin/bash")


@pytest.mark.parametrize(
    ("scale", "model", "samples", "batch", "lr", "warmup", "beta2"),
    [
        ("small", "ViT-B-32", 12_800_000, 4096, 5e-4, 500, 0.98),
        ("medium", "ViT-B-32", 128_000_000, 4096, 5e-4, 500, 0.98),
        ("large", "ViT-B-16", 1_280_000_000, 8192, 5e-4, 500, 0.98),
        ("xlarge", "ViT-L-14", 12_800_000_000, 90_112, 1e-3, 10_000, 0.95),
    ],
)
def test_a_scale_of_datacomp_has_its_numbers(
    scale: str, model: str, samples: int, batch: int, lr: float, warmup: int, beta2: float
) -> None:
    """DataComp, arXiv:2304.14108, appendix D; the optimizer's others are open_clip's."""
    config = load_run(EXAMPLES / f"clip-datacomp-{scale}.yaml")
    assert (config.global_batch, config.mixture.image_size, config.objective.model) == (batch, 224, model)
    assert 0 <= samples - config.steps * batch < batch
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (lr, (0.9, beta2), 1e-6, 0.2)
    assert schedule.rate(warmup, steps=config.steps, peak=lr) == pytest.approx(lr)
    assert schedule.rate(warmup - 1, steps=config.steps, peak=lr) < lr
    assert config.mixture.augment.scale == (0.9, 1.0)
    assert config.mixture.augment.interpolation == "bicubic"
    assert not config.mixture.augment.flip


@pytest.mark.parametrize(
    ("model", "billions"), [("ViT-B-32", 14.78), ("ViT-B-16", 41.09), ("ViT-L-14", 175.33), ("ViT-H-14", 381.68)]
)
def test_the_operations_of_a_pair_are_those_of_open_clips_profile(model: str, billions: float) -> None:
    """`docs/model_profile.csv` of open_clip: forward, two operations a multiplication. Ours: three times that."""
    with torch.device("meta"):
        objective = build_objective(ClipConfig(kind="clip", model=model), image_size=224, seed=0)
    assert objective.train_flops_per_image == pytest.approx(3e9 * billions, rel=0.01)

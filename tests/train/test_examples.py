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

from headrace.pipeline.augment.views import planned_views
from headrace.train.config import load_run
from headrace.train.models.trunks.big_vision import BigVisionConfig
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.clip import ClipConfig
from headrace.train.objectives.simmim import Simmim
from headrace.train.objectives.supervised import SupervisedConfig
from headrace.train.optim.adafactor import AdafactorConfig
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


# Their activations take seconds to count, and small ones of the same objectives are counted too.
LARGE = ("simmim-swin", "simmim-vit", "moco-vit", "moco-resnet", "simclr-vit", "byol-vit", "swav-vit", "vit-l", "vit-g")
PLANNED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.full] if path.stem.startswith(LARGE) else []) for path in RUNS
]


@pytest.mark.parametrize("path", PLANNED)
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
time.sleep(0 if "ENDS" in os.environ else 300)
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
    assert job.wait(200) == 0
    shown, launched, cancelled, requeued = (tmp_path / "calls").read_text().splitlines()
    assert shown == "scontrol show hostnames node[1-2]"
    assert "--nnodes=2 --nproc-per-node=8" in launched
    assert launched.endswith("--rdzv-endpoint=node1:29500 --no-python headrace train run.yaml steps=9")
    assert (cancelled, requeued) == ("scancel --signal=USR1 7", "scontrol requeue 7")


@pytest.mark.parametrize("code", [0, 1])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(code: int, tmp_path: Path, slurm: dict[str, str]) -> None:
    assert start({**slurm, "ENDS": str(code)}).wait(200) == code
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


@pytest.mark.parametrize(
    ("name", "views", "lr", "warmup"),
    [
        ("moco-vit-s", [224, 224], 0.0024, 40),
        ("moco-vit-b", [224, 224], 0.0024, 40),
        ("moco-resnet50", [224, 224], 4.8, 10),
        ("simclr-vit-b", [224, 224], 0.0024, 40),
        ("byol-vit-b", [224, 224], 0.0024, 40),
        ("swav-vit-b", [224, 224] + [96] * 6, 0.0024, 40),
    ],
)
def test_a_contrastive_paper_has_its_numbers(name: str, views: list[int], lr: float, warmup: int) -> None:
    """MoCo v3, arXiv:2104.02057, and its code: batch 4,096, 300 epochs, rate x batch / 256, a cosine to 0."""
    config = load_run(EXAMPLES / f"{name}.yaml")
    assert [view.image_size for view in planned_views(config.mixture)] == views
    assert (config.global_batch, config.steps) == (4096, 300 * 1_281_167 // 4096)
    rates = [config.rate(step) for step in (0, round(warmup / 300 * config.steps), config.steps - 1)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(lr, rel=1e-3)
    assert rates[2] < 1e-6 * lr
    first, second = planned_views(config.mixture)[:2]
    if config.objective.kind in ("moco", "byol"):
        told = [(view.augment.blur_probability, view.augment.solarize_probability) for view in (first, second)]
        assert told == [(1.0, 0.0), (0.1, 0.2)]
        assert first.augment.colour_jitter == second.augment.colour_jitter == (0.4, 0.4, 0.2, 0.1)
        assert (first.augment.colour_jitter_probability, first.augment.grayscale_probability) == (0.8, 0.2)
        assert first.augment.scale == ((0.2, 1.0) if name == "moco-resnet50" else (0.08, 1.0))
    if name.startswith("moco"):
        assert config.objective.temperature == (1.0 if name == "moco-resnet50" else 0.2)
    if "vit" in name:
        assert config.objective.backbone.patch_projection == "frozen"
        assert (config.optimizer.weight_decay, config.optimizer.decays, config.optimizer.betas) == (
            0.1,
            "all",
            (0.9, 0.999),
        )


@pytest.mark.parametrize(
    ("name", "variant", "batch"),
    [("b", ("B", 16), 4096), ("l", ("L", 16), 4096), ("giant", ("g", 14), 16384), ("gigantic", ("G", 14), 16384)],
)
def test_the_scaling_study_has_its_numbers(name: str, variant: tuple[str, int], batch: int) -> None:
    """arXiv:2106.04560, appendices B and C, and its code's `train_vit_g.py`; rates at steps told by that code."""
    config = load_run(EXAMPLES / f"vit-{name}-jft-like.yaml")
    objective, optimizer = config.objective, config.optimizer
    assert isinstance(objective, SupervisedConfig)
    assert isinstance(optimizer, AdafactorConfig)
    assert (config.steps, config.global_batch, config.mixture.image_size) == (1_000_000, batch, 224)
    assert ((objective.model, objective.patch), objective.num_classes, objective.loss) == (variant, 29_593, "sigmoid")
    assert (objective.vit, objective.pixels, objective.class_bias) == (BigVisionConfig(), "centred", -10.0)
    assert (objective.vit.pool, objective.vit.bias) == ("map", True)
    assert optimizer.weight_decay * optimizer.lr == pytest.approx(0.03 * 8e-4)
    assert (optimizer.momentum_dtype, optimizer.decay_multipliers) == ("bfloat16", {"head.*": 100.0})
    expected = {10_000: 8e-4, 20_000: 5.657e-4, 200_000: 1.789e-4, 950_000: 8.208e-5, 975_000: 4.051e-5}
    assert {step: config.rate(step) for step in expected} == pytest.approx(expected, rel=2e-4)
    assert (config.clip_grad_norm, config.monitors[0].layers) == (1.0, "end")
    assert config.global_batch // 8 % (config.images_per_micro_batch or 1) == 0


@pytest.mark.parametrize(
    ("name", "trained"),
    # The encoder's are timm's counts for these shapes (S: 21,665,664; B: 85,798,656; ResNet-50: 23,508,032), less a
    # frozen projection where there is one.
    [("moco-vit-s", 21_665_664), ("moco-vit-b", 85_798_656), ("moco-resnet50", 23_508_032)],
)
def test_moco_has_the_encoders_of_its_paper(name: str, trained: int) -> None:
    with torch.device("meta"):
        objective = build_objective(load_run(EXAMPLES / f"{name}.yaml").objective, image_size=224, seed=0)
    # Positions are computed here, and parameters without a gradient there.
    positions = 197 * objective.trunk.shape.width if "vit" in name else 0
    assert sum(parameter.numel() for parameter in objective.trunk.parameters()) == trained - positions
    linears = [layer for layer in objective.projector if isinstance(layer, torch.nn.Linear)]
    width = objective.trunk.feature_width
    inside = [] if name == "moco-resnet50" else [(4096, 4096)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(width, 4096), *inside, (4096, 256)]
    assert not any(parameter.requires_grad for parameter in objective.momentum.parameters())


@pytest.mark.parametrize(("size", "millions"), [("s", 49.0), ("b", 86.9), ("l", 195), ("h", 655), ("g", 1061)])
def test_the_study_of_masked_images_has_its_numbers(size: str, millions: float) -> None:
    """arXiv:2206.04664 and its code: 192 pixels, batch 2,048, rate x batch / 512, x 0.1 at 7/8 of the steps, clip 5."""
    config = load_run(EXAMPLES / "simmim-swinv2.yaml", [f"objective.backbone.model=swinv2-{size}"])
    with torch.device("meta"):
        objective = build_objective(config.objective, image_size=config.mixture.image_size, seed=0)
    assert isinstance(objective, Simmim)
    count = sum(parameter.numel() for parameter in objective.encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)
    assert (objective.num_cells, objective.num_hidden, config.objective.target_window) == (36, 22, 47)
    assert (config.mixture.image_size, config.global_batch, config.steps) == (192, 2048, 500_000)
    assert (config.mixture.augment.scale, config.mixture.augment.interpolation) == ((0.67, 1.0), "bilinear")
    assert (config.clip_grad_norm, config.optimizer.weight_decay, config.optimizer.betas) == (5.0, 0.05, (0.9, 0.999))
    rates = [config.rate(step) for step in (0, 6250, 437_499, 437_500)]
    assert rates == pytest.approx([2e-6, 4e-4, 4e-4, 4e-5])

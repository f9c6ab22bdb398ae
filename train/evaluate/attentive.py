"""The attentive probe: how much a frozen trunk knows of classes it was never told.

The trunk is not changed, and the test set decides nothing: the learning rate is chosen on a held-out tenth of the
training set. Published tables take the best rate on the test set; `by_lr` has those numbers too.
"""

import dataclasses
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headrace.shards.permutation import make_key, permute
from headrace.train.evaluate.features import Features, FeaturesConfig, check_features, dataset_features
from headrace.train.evaluate.trunk import open_trunk, parse_layers, trunk_of
from headrace.train.models.heads import AttentiveProbes
from headrace.train.parallel.ranks import join_ranks
from headrace.train.runs.released import check_released_names, write_released
from headrace.train.runs.weights import read_weights

HOLDOUT = 0.1
MIN_LR = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How a trunk is probed: as AIM's authors do (arXiv:2411.14402, table A2), in fewer epochs, with higher rates."""

    train: str
    """URL of a labelled dataset to fit on."""
    test: str
    """URL of a labelled dataset to judge on."""
    layers: str = "last6"
    """Blocks whose outputs are averaged: lastN, all, or numbers such as 3,4,5."""
    epochs: int = 10
    """Passes over the features."""
    images_per_batch: int = 512
    """Images of one step."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates, all fitted in one pass; the one best on held-out training samples is reported."""
    weight_decay: float = 0.05
    """AdamW's, on matrices."""
    clip_grad_norm: float = 3.0
    """Per probe."""
    seed: int = 0
    """Decides the probes' first weights, the held-out tenth and the order of samples."""
    untrained: bool = False
    """Replace the trunk's weights by fresh ones from the run's seed: the comparison."""
    samples: int = 0
    """Training samples to use, the first of the dataset; 0 = all."""
    memory_bytes: int = 8 << 30
    """Most that the features of one dataset may take."""
    center_fraction: float = 1.0
    """Side of the centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224), as published."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.images_per_batch) < 1 or self.samples < 0 or not self.lrs:
            raise ValueError("epochs and images_per_batch must be at least 1, samples at least 0, lrs not empty")
        if not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"learning rates must be above 0 and finite, got {self.lrs}")
        if not 0 < self.center_fraction <= 1:
            raise ValueError(f"center_fraction must be within 0..1, got {self.center_fraction}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeShape:
    """What the trunk and the labels ask of a probe."""

    width: int
    heads: int
    classes: int


def probe(checkpoint: Path, config: ProbeConfig, *, device: str = "auto", export: Path | None = None) -> dict[str, Any]:
    """Fit probes on the frozen trunk of `checkpoint` and return accuracies with the protocol, as JSON-able data.

    `checkpoint` is a run folder, a checkpoint in it, an exported `model.safetensors`, or a released one of AIM. Into
    the folder `export` the trunk is written with the chosen probe, in the form of the released models.
    """
    with join_ranks(device) as ranks:
        trunk = open_trunk(checkpoint, untrained=config.untrained, device=ranks.device)
        encoder = trunk.encoder
        if export is not None:
            check_released_names(encoder)
        layers = parse_layers(config.layers, encoder.shape.depth)
        wanted = FeaturesConfig(
            layers=layers,
            samples=config.samples,
            memory_bytes=config.memory_bytes,
            center_fraction=config.center_fraction,
        )
        wanted_test = dataclasses.replace(wanted, samples=0)
        # A mistake in the test set must not be found after an hour over the training set.
        check_features(encoder.shape, config.test, wanted_test)
        train = dataset_features(trunk, config.train, config=wanted)
        test = dataset_features(trunk, config.test, config=wanted_test)
        classes = int(train.label_N.max()) + 1
        if int(test.label_N.max()) >= classes:
            raise ValueError(f"{config.test} has label {int(test.label_N.max())}, {config.train} only 0..{classes - 1}")
        shape = ProbeShape(heads=encoder.shape.heads, classes=classes, width=encoder.shape.width)
        probes = fit_probes(train, config, shape=shape, device=ranks.device)
        by_lr = judge_probes(probes, train, test, config)
        best = max(by_lr, key=lambda row: row["holdout_accuracy"])
        if export is not None:
            write_released(export, encoder, probes, number=by_lr.index(best), blocks=layers)
    return {
        "accuracy": best["test_accuracy"],
        "lr": best["lr"],
        "by_lr": by_lr,
        "checkpoint": str(checkpoint),
        "step": trunk.step,
        "seed_of_run": trunk.model.seed,
        "classes": classes,
        "train_samples": len(train.label_N),
        "test_samples": len(test.label_N),
        "blocks": list(layers),
        "protocol": asdict(config),
    }


def plan_probe(checkpoint: Path, config: ProbeConfig) -> list[str]:
    """Return what `probe` would do, one fact a line. Raises ValueError for what it would refuse before it begins."""
    weights = read_weights(checkpoint)
    trunk = trunk_of(weights.model.sketch(), weights).shape
    layers = parse_layers(config.layers, trunk.depth)
    what = f"fresh weights of seed {weights.model.seed}" if config.untrained else f"step {weights.step}"
    lines = [f"probe {weights.path}, {what}: mean of blocks {', '.join(map(str, layers))} of width {trunk.width}"]
    for use, url, samples in (("fit on", config.train, config.samples), ("judge on", config.test, 0)):
        wanted = FeaturesConfig(layers=layers, samples=samples, memory_bytes=config.memory_bytes)
        shape = check_features(trunk, url, wanted)
        lines.append(f"{use} {url}: {shape[0]:,} samples, {2 * math.prod(shape):,} bytes of features")
    rates = ", ".join(f"{lr:g}" for lr in config.lrs)
    lines.append(f"{config.epochs} epochs of batches of {config.images_per_batch}, learning rates {rates}")
    return lines


def fit_probes(train: Features, config: ProbeConfig, *, shape: ProbeShape, device: torch.device) -> AttentiveProbes:
    """Fit one probe a learning rate, all but the held-out training samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make_key(config.seed, "probe"))
        probes = AttentiveProbes(
            width=shape.width, heads=shape.heads, classes=shape.classes, num_probes=len(config.lrs)
        ).to(device)
    fit, _ = split_rows(len(train.label_N), config.seed)
    optimizer = _optimizer(probes, config)
    batches = max(1, len(fit) // config.images_per_batch)
    steps = config.epochs * batches
    for step in range(steps):
        epoch, number = divmod(step, batches)
        order = fit[permute(np.arange(len(fit)), len(fit), make_key(config.seed, "probe order", epoch))]
        for group in optimizer.param_groups:
            group["lr"] = _rate(group["peak"], step / steps)
        _fit_step(probes, optimizer, train, order[number::batches], config)
    return probes


def judge_probes(
    probes: AttentiveProbes, train: Features, test: Features, config: ProbeConfig
) -> list[dict[str, float]]:
    """Return the accuracy of each probe, on the held-out training samples and on the test set."""
    _, held = split_rows(len(train.label_N), config.seed)
    held_RN, test_RN = (
        _accuracy(probes, part, rows, config) for part, rows in ((train, held), (test, np.arange(len(test.label_N))))
    )
    rows = zip(config.lrs, held_RN, test_RN, strict=True)
    return [{"lr": lr, "holdout_accuracy": round(a, 6), "test_accuracy": round(b, 6)} for lr, a, b in rows]


def split_rows(samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to fit on and the held-out rows, a tenth, both ascending.

    Raises ValueError for under ten samples.
    """
    if samples < 10:
        raise ValueError(f"a probe needs at least 10 training samples, got {samples}")
    order = permute(np.arange(samples), samples, make_key(seed, "probe holdout"))
    held = round(HOLDOUT * samples)
    return np.sort(order[held:]), np.sort(order[:held])


def _optimizer(probes: AttentiveProbes, config: ProbeConfig) -> torch.optim.AdamW:
    groups = []
    for number, lr in enumerate(config.lrs):
        # The query is one vector written as a row: like other vectors it is not decayed.
        query, *matrices = probes.parameters_of(number)
        groups += [
            {"params": matrices, "lr": lr, "peak": lr},
            {"params": [query], "lr": lr, "peak": lr, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _rate(peak: float, progress: float) -> float:
    lowest = min(MIN_LR, peak)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2


def _fit_step(
    probes: AttentiveProbes,
    optimizer: torch.optim.AdamW,
    train: Features,
    rows: NDArray[np.int64],
    config: ProbeConfig,
) -> None:
    probes.train()
    logits_RBC, label_B = _logits(probes, train, rows)
    label_RB = label_B.expand(len(config.lrs), -1)
    # Summed over probes: each one's gradient is then what it would be alone.
    loss = functional.cross_entropy(logits_RBC.flatten(0, 1), label_RB.flatten()) * len(config.lrs)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    for number in range(len(config.lrs)):
        torch.nn.utils.clip_grad_norm_(probes.parameters_of(number), config.clip_grad_norm)
    optimizer.step()


def _accuracy(probes: AttentiveProbes, features: Features, rows: NDArray[np.int64], config: ProbeConfig) -> list[float]:
    probes.eval()
    right = torch.zeros(len(config.lrs))
    with torch.no_grad():
        for start in range(0, len(rows), config.images_per_batch):
            logits_RBC, label_B = _logits(probes, features, rows[start : start + config.images_per_batch])
            right += (logits_RBC.argmax(dim=2) == label_B).sum(dim=1).cpu()
    return [float(count) / len(rows) for count in right]


def _logits(probes: AttentiveProbes, features: Features, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    place, device = torch.from_numpy(rows), probes.query[0].device
    return probes(features.tokens_NLD[place].to(device).float()), features.label_N[place].to(device)

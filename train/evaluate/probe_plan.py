"""What a probe would take: hours, memory, disk; also of a model without weights and a dataset that is not here."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from headrace.pipeline.prefetch import AHEAD_BYTES, LEAST_AHEAD
from headrace.train.config import load_run
from headrace.train.evaluate.feature_cache import cache_shape
from headrace.train.evaluate.features import FeaturesConfig, check_features
from headrace.train.evaluate.fit import PART_BYTES
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import FITTED, POOLED, choose_place, feature_layers, probe_kind
from headrace.train.evaluate.trunk import END, FrozenTrunk, open_trunk, read_layers, trunk_of
from headrace.train.evaluate.trunk_feed import WINDOW_BYTES
from headrace.train.models.encoder import Encoder
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.patch_config import AIM_SHAPES
from headrace.train.parallel.ranks import join_ranks
from headrace.train.peak import PEAK_FLOPS
from headrace.train.runs.cost import STATED_MFU
from headrace.train.runs.weights import ModelRecord, read_weights

PUBLISHED_SIDE = 224
MEASURED_SECONDS = 3.0
# Weight, gradient and two moments of a head's parameter, float32.
BYTES_PER_PARAMETER = 16
YAML = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFacts:
    """What is said of what is not here."""

    train_images: int = 0
    """Images to fit on; 0 = those of the dataset."""
    test_images: int = 0
    """Images to judge on; 0 = those of the dataset."""
    classes: int = 1000
    """Classes, for the size of the heads."""
    images_per_second: float = 0.0
    """Of one process through the trunk; 0 = from `tflops`, or measured."""
    tflops: float = 0.0
    """Sustained TFLOP/s of one process; 0 = measured where weights are at hand, else 40 % of an H100's peak."""
    processes: int = 1
    """Processes that share the work."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """The model that a plan is for; its encoder has no memory."""

    name: str
    encoder: Encoder
    checkpoint: Path | None
    """None = there are no weights."""


def plan_probe(
    model: str | Path,
    config: ProbeConfig,
    facts: PlanFacts = PlanFacts(),
    *,
    cache: Path | None = None,
    device: str = "auto",
) -> list[str]:
    """Return what `probe` would do and take, one fact a line. Raises ValueError for what it would refuse.

    `model` is what `probe` reads, or a run file, or the name of a published size such as aim-7B.
    """
    probe_kind(config.head)
    planned = planned_model(str(model), config)
    trunk = planned.encoder.shape
    layers = read_layers(config.layers, planned.encoder)
    features = FeaturesConfig(
        layers=layers,
        more_layers=feature_layers(config, planned.encoder),
        pooled=config.head in POOLED,
        memory_bytes=2**63,  # what does not fit into memory goes through the trunk in every epoch
    )
    read = "the end of the encoder" if layers == END else f"mean of blocks {', '.join(map(str, layers))}"
    lines = [f"probe {planned.name}: {read} of width {trunk.width}"]
    counts = []
    for use, url, given, samples in (
        ("fit on", config.train, facts.train_images, config.samples),
        ("judge on", config.test, facts.test_images, 0),
    ):
        if not given and not url:
            raise ValueError(
                "which images? Name datasets by --train and --test, or say --train-images and --test-images"
            )
        images = given or check_features(trunk, url, replace(features, samples=samples))[0]
        counts.append(min(images, samples) if samples else images)
        size = features.num_bytes(trunk, counts[-1])
        lines.append(f"{use} {url or 'a dataset'}: {counts[-1]:,} samples, {size:,} bytes of features")
    if config.head not in FITTED:
        return lines
    size = features.num_bytes(trunk, counts[0])
    place, why = choose_place(config, size, cache=cache, processes=facts.processes)
    rates = ", ".join(f"{lr:g}" for lr in config.lrs)
    decays = ", ".join(f"{decay:g}" for decay in config.weight_decays)
    lines += [
        f"{config.epochs} epochs of batches of {config.images_per_batch}, learning rates {rates}, decays {decays}",
        f"features: {why}",
        _hours_line(planned, config, facts, counts=(counts[0], counts[1]), place=place, device=device),
        *_memory_lines(planned, config, facts, features=features, held=size if place == "memory" else 0),
        _disk_line(
            planned, config, facts, features=features, train=counts[0], images=sum(counts) if place == "cache" else 0
        ),
    ]
    return lines


def planned_model(model: str, config: ProbeConfig) -> PlannedModel:
    """Return the model of a checkpoint, a run file, or a name such as aim-7B, without memory for its weights."""
    path = Path(model)
    if path.suffix in YAML and path.is_file():
        run = load_run(path)
        record = ModelRecord(objective=run.objective, image_size=run.mixture.image_size, seed=run.seed)
        return _sketched(f"the model of {path}, without weights", record)
    name = model.removeprefix("aim-")
    if not path.exists() and model.startswith("aim-") and name in AIM_SHAPES:
        record = ModelRecord(objective=AimConfig(kind="aim", model=name), image_size=PUBLISHED_SIDE, seed=0)
        return _sketched(f"{model}, without weights", record)
    weights = read_weights(path)
    what = f"fresh weights of seed {weights.model.seed}" if config.untrained else f"step {weights.step}"
    return _sketched(f"{weights.path}, {what}", weights.model, path)


def _sketched(name: str, record: ModelRecord, checkpoint: Path | None = None) -> PlannedModel:
    return PlannedModel(name, trunk_of(record.sketch(), record, name), checkpoint)


def _hours_line(
    planned: PlannedModel, config: ProbeConfig, facts: PlanFacts, *, counts: tuple[int, int], place: str, device: str
) -> str:
    train, test = counts
    # In a trunk's epoch the held-out tenth is decoded, and does not go through; it does when it is judged.
    images = (round(0.9 * train) * config.epochs + round(0.1 * train) if place == "trunk" else train) + test
    rate, source = _images_per_second(planned, config, facts, device)
    hours = images / rate / facts.processes / 3600
    return (
        f"time: {hours:,.3g} hours for {images:,} images through the trunk at {rate * facts.processes:,.4g} images/s "
        f"of {facts.processes} process{'es' if facts.processes > 1 else ''} ({source}), if the stream gives as many; "
        "the heads come on top"
    )


def _images_per_second(planned: PlannedModel, config: ProbeConfig, facts: PlanFacts, device: str) -> tuple[float, str]:
    if facts.images_per_second:
        return facts.images_per_second, "given"
    flops = planned.encoder.forward_flops
    if facts.tflops:
        return facts.tflops * 1e12 / flops, f"{flops / 1e12:.3g} TFLOP an image at {facts.tflops:g} TFLOP/s, given"
    if planned.checkpoint is None:
        rate = STATED_MFU * PEAK_FLOPS["H100"] / flops
        return rate, f"{flops / 1e12:.3g} TFLOP an image at {STATED_MFU:.0%} of an H100's bf16 peak, assumed"
    with join_ranks(device) as ranks:
        trunk = open_trunk(planned.checkpoint, untrained=config.untrained, device=ranks.device)
        return measured_rate(trunk, config), f"measured here, on {ranks.device.type}"


def measured_rate(trunk: FrozenTrunk, config: ProbeConfig) -> float:
    """Return the images a second that the trunk takes, over some seconds."""
    layers, pooled = read_layers(config.layers, trunk.encoder), config.head in POOLED
    side, batch = trunk.image_size, config.images_per_forward
    images = np.zeros((batch, side, side, 3), np.uint8)
    trunk.means(images[:1], [layers], pooled=pooled)  # what is made once is not measured
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < MEASURED_SECONDS:
        trunk.means(images, [layers], pooled=pooled)
        done += batch
        if trunk.device.type == "cuda":
            torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def _memory_lines(
    planned: PlannedModel, config: ProbeConfig, facts: PlanFacts, *, features: FeaturesConfig, held: int
) -> list[str]:
    shape = planned.encoder.shape
    rows = -(-config.images_per_batch // facts.processes)
    pixels = 3 * shape.image_size**2
    ahead = max(LEAST_AHEAD * rows * pixels, AHEAD_BYTES) + rows * pixels
    batch, weights = features.num_bytes(shape, rows), 4 * sum(p.numel() for p in planned.encoder.parameters())
    heads = BYTES_PER_PARAMETER * _head_parameters(planned, config, facts, features)
    # Residual stream in float32 twice, MLP of 4 x width and q, k, v in bf16, and the averages.
    token = shape.width * (8 + 8 + 6 + 4 * (1 if features.pooled else len(features.layer_sets)))
    forward = min(config.images_per_forward, rows) * shape.num_patches * token
    return [
        f"host memory: {_gb(ahead + WINDOW_BYTES + batch + held / facts.processes)} a process at most: pictures ahead "
        f"{_gb(ahead)}, shuffle window {_gb(WINDOW_BYTES)}, a batch of features {_gb(batch)}, features held "
        f"{_gb(held / facts.processes)}; twice the weights while they are read, {_gb(2 * weights)}",
        f"device memory: about {_gb(weights + heads + 2 * batch + forward + PART_BYTES)}: weights {_gb(weights)}, "
        f"{len(config.settings) * len(features.layer_sets)} heads with gradients and moments {_gb(heads)}, "
        f"a batch of features {_gb(2 * batch)}, forward {_gb(forward)}, heads at work {_gb(PART_BYTES)}; unmeasured",
    ]


def _head_parameters(planned: PlannedModel, config: ProbeConfig, facts: PlanFacts, features: FeaturesConfig) -> int:
    with torch.device("meta"):
        head = FITTED[config.head](planned.encoder.shape, facts.classes, len(config.settings))
    return len(features.layer_sets) * sum(parameter.numel() for parameter in head.parameters())


def _disk_line(
    planned: PlannedModel, config: ProbeConfig, facts: PlanFacts, *, features: FeaturesConfig, train: int, images: int
) -> str:
    shape = planned.encoder.shape
    state = 12 * _head_parameters(planned, config, facts, features)
    layout = cache_shape((len(features.layer_sets), *features.row_shape(shape)), images, config.images_per_forward)
    cached = ""
    if images:
        read = f"{_gb(config.epochs * features.num_bytes(shape, train))} read in {config.epochs} epochs"
        cached = f"cache {_gb(layout.num_bytes)} in {layout.num_pieces:,} pieces, {read}; "
    return f"disk: {cached}state of the fit {_gb(state)}, saved every epoch, gone at the end"


def _gb(size: float) -> str:
    if not size or math.isinf(size):
        return "none"
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
